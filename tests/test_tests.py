"""Tests that cannot fail are kept out of the suite, and the list of mutants fits the sources."""

import ast
from functools import cache
from pathlib import Path

import pytest
from mutant_list import MUTANTS
from mutants import mutated

HERE = Path(__file__).parent
SRC = HERE.parent / "src" / "tunesmith"
FILES = sorted(HERE.glob("*.py"))
LOOSE = {"Exception", "BaseException"}
"""A test that waits for one of these is satisfied by a spelling mistake."""


@cache
def tree_of(path):
    return ast.parse(path.read_text())


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def cases_in(tree):
    return [node for node in functions(tree) if node.name.startswith("test")]


def name_of(node):
    """Last part of what is called or named: raises for pytest.raises."""
    return getattr(node, "attr", getattr(node, "id", ""))


def inside(function):
    """The nodes of a function, without those of functions defined in it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield child
            yield from inside(child)


def asserts_that_cannot_fail(tree):
    """`assert (a, b)`, `assert "text"`, and `assert a, b == c`, where the comparison is only the message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            constant = isinstance(node.test, ast.Constant) and node.test.value
            filled = isinstance(node.test, ast.Tuple | ast.List | ast.Set) and node.test.elts
            if constant or filled or isinstance(node.msg, ast.Compare):
                yield node.lineno


def loose_raises(tree):
    """pytest.raises(Exception), alone or in a tuple."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) == "raises":
            kinds = node.args[0].elts if node.args and isinstance(node.args[0], ast.Tuple) else node.args[:1]
            if not kinds or LOOSE & {name_of(kind) for kind in kinds}:
                yield node.lineno


def silent_ends(tree):
    """A test that returns early passes without a word; pytest.skip needs its reason."""
    for test in cases_in(tree):
        yield from (node.lineno for node in inside(test) if isinstance(node, ast.Return))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) == "skip" and not (node.args or node.keywords):
            yield node.lineno


def checks(function):
    """Whether a function itself can fail a test: it asserts, waits for an error, or calls what is named assert_..."""
    for node in ast.walk(function):
        called = name_of(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Assert) or called in {"raises", "warns", "fail"} or called.startswith("assert_"):
            return True
        if called == "run" and any(k.arg == "check" and getattr(k.value, "value", 0) is True for k in node.keywords):
            return True  # a process that asserts, and ends with an error
    return False


def called_in(function):
    return {name_of(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}


def cases_that_check_nothing(tree, helpers):
    """Tests without an assert or raises of their own or of a helper that they call (one that calls one counts)."""
    for test in cases_in(tree):
        if not checks(test) and not called_in(test) & helpers:
            yield test.lineno


def helpers_that_check():
    """Names of the functions of tests/ that can fail a test, themselves or by a helper."""
    found, everything = set(), [function for path in FILES for function in functions(tree_of(path))]
    while True:
        more = {function.name for function in everything if checks(function) or found & called_in(function)}
        if more == found:
            return found - {test.name for path in FILES for test in cases_in(tree_of(path))}
        found = more


KINDS = {
    "an assert that cannot fail": asserts_that_cannot_fail,
    "a loose raises": loose_raises,
    "a silent end": silent_ends,
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_test_passes_whatever_happens(kind):
    assert len(FILES) > 30, "found few tests; have they moved?"
    assert [f"{path.name}:{line}: {kind}" for path in FILES for line in KINDS[kind](tree_of(path))] == []


def test_every_test_checks_something():
    helpers = helpers_that_check()
    assert sum(len(cases_in(tree_of(path))) for path in FILES) > 200
    found = [f"{path.name}:{line}" for path in FILES for line in cases_that_check_nothing(tree_of(path), helpers)]
    assert found == []


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (asserts_that_cannot_fail, "assert (a, b == c)"),
        (asserts_that_cannot_fail, "assert a, b == (1, 2)"),
        (asserts_that_cannot_fail, "assert 'text'"),
        (loose_raises, "with pytest.raises(Exception, match='x'): pass"),
        (loose_raises, "with pytest.raises((ValueError, builtins.Exception)): pass"),
        (silent_ends, "def test_x():\n    if a:\n        return\n    assert b"),
        (silent_ends, "def test_x():\n    pytest.skip()"),
        (lambda tree: cases_that_check_nothing(tree, set()), "def test_x():\n    work()"),
    ],
)
def test_these_checks_look(kind, wrong):
    assert list(kind(ast.parse(wrong)))


def test_every_mutant_fits_the_sources():
    assert len(MUTANTS) >= 40 and len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        mutated(mutant, SRC)  # ValueError: its text is not there exactly once


def test_every_room_has_a_mutant():
    rooms = {path.relative_to(SRC).parts[0].removesuffix(".py") for path in SRC.rglob("*.py")} - {"__init__"}
    assert rooms - {mutant.file.split("/")[0].removesuffix(".py") for mutant in MUTANTS} == set()


def test_the_tests_nearest_to_a_mutant_exist():
    known = {path.name: {test.name for test in cases_in(tree_of(path))} for path in FILES}
    for mutant in MUTANTS:
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            file, _, name = test.partition("[")[0].partition("::")
            assert file in known and (not name or name in known[file]), f"{mutant.name}: there is no {test}"
