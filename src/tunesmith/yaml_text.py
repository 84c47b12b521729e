"""YAML that people write: what it says, and in which line; whatever is wrong with it is a RecipeError."""

import json
from collections.abc import Iterator
from typing import Any

import yaml

from tunesmith.errors import RecipeError
from tunesmith.values import NO_TEXT

Loc = tuple[str | int, ...]
Places = dict[Loc, int | str]
"""Where each value of a recipe was said: a line of its file, or a `--set` of the command line."""
TYPES = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")}
NAMES = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}
DEEPEST, MOST = 50, 100_000  # an alias of aliases of aliases is a short text of endless values
TOO_DEEP = f"values in values more than {DEEPEST} deep, or in themselves"
FLATTER = "write it flat: nothing in a recipe is more than four deep"
LONGEST_NUMBER = 100  # letters; Python writes none of more than 4,300 digits


class _Loader(yaml.SafeLoader):
    """Brackets too deep, and a value that Python cannot make, such as a 30th of February, are faults with a line."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _fault(self.peek_event(), TOO_DEEP, FLATTER)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            problem = f"{node.value} cannot be read ({error})"[:200]
            raise _fault(node, problem, "write a value that there is, or put a text in quotes") from error


def read_yaml(text: str, what: str, where: str = "") -> tuple[Any, Places]:
    """The value in a text, and the line of every key and list item in it.

    Raises RecipeError that calls the text `what`, for all that is no YAML or says more than a recipe can hold.
    """
    fix = "correct it; indent with spaces"
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines = _all_lines(node, what, where) if node else {}
        return loader.construct_document(node) if node else None, lines
    except yaml.reader.ReaderError as error:
        fix = "take it out"
        problem, line = f"it holds {json.dumps(text[error.position])}", text.count("\n", 0, error.position) + 1
    except yaml.MarkedYAMLError as error:
        fix = error.fix if isinstance(error, _FaultError) else fix
        problem, line = error.problem or "no YAML", error.problem_mark.line + 1 if error.problem_mark else 0
    place = f"{where}, line {line}" if where and line else where
    shown = problem.encode(errors="backslashreplace").decode()
    raise RecipeError(f"{what} is not valid YAML: {shown}", fix=fix, where=place)


def _all_lines(node: yaml.Node, what: str, where: str) -> Places:
    """Raises RecipeError for a key that is set twice, MarkedYAMLError for what a recipe cannot hold."""
    lines: Places = {}
    for loc, line in _lines(node):
        if loc in lines:  # YAML would silently take the last one
            name = ".".join(map(str, loc))
            said = f"{name} is set twice, in lines {lines[loc]} and {line}"
            raise RecipeError(said if where else f"{what}: {said}", fix="keep one of them", where=where)
        if len(lines) == MOST:
            raise _fault(node, f"it says more than {MOST:,} values", "leave some out")
        lines[loc] = line
    return lines


def _lines(node: yaml.Node, loc: Loc = ()) -> Iterator[tuple[Loc, int]]:
    """Place in the text -> line, for every key and list item."""
    if node.tag not in TYPES:
        raise _fault(
            node, f"a value of the type {node.tag.rpartition(':')[2]}", "leave out the tag, or put a text in quotes"
        )
    if len(loc) > DEEPEST:
        raise _fault(node, TOO_DEEP, FLATTER)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in NAMES or NO_TEXT.search(key.value):
                shown = json.dumps(key.value)[:40] if isinstance(key, yaml.ScalarNode) else "that is a list or mapping"
                raise _fault(key, f"the key {shown} is no name", "write a name, such as train: a text in one line")
            yield (*loc, key.value), key.start_mark.line + 1
            yield from _lines(value, (*loc, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*loc, index), value.start_mark.line + 1
            yield from _lines(value, (*loc, index))
    elif node.tag.endswith((":int", ":float")) and len(node.value) > LONGEST_NUMBER:
        raise _fault(node, f"a number of {len(node.value):,} digits", "write a shorter one, or put a text in quotes")


class _FaultError(yaml.MarkedYAMLError):
    """What is YAML, but nothing that a recipe can hold."""

    fix = ""


def _fault(node: Any, problem: str, fix: str) -> _FaultError:
    fault = _FaultError(problem=problem, problem_mark=node.start_mark)
    fault.fix = fix
    return fault
