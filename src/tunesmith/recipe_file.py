"""Recipes in and out of YAML: every problem at once, each with its file and line."""

import glob
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tunesmith.boundary import why_unread
from tunesmith.command import NAME
from tunesmith.console import say
from tunesmith.errors import RecipeError
from tunesmith.past import ANY, RETIRED
from tunesmith.recipe import Recipe
from tunesmith.recipe_defaults import without_defaults
from tunesmith.recipe_problems import place_of, report
from tunesmith.values import NO_TEXT
from tunesmith.yaml_text import Loc, Places, read_yaml

DATA = (".jsonl", ".csv", ".parquet")  # a recipe may be .json, which is YAML too
ITEM = re.compile("[0-9]{1,9}")  # the number of a list item


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`, with `--set` changes such as "train.lr=1e-4" applied before it is checked.

    Relative data and prompt files are taken from the recipe's folder. Raises RecipeError with all problems.
    """
    try:
        _refuse_other_file(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        fix = "name a YAML file; `tunesmith init` writes one"
        fix = f"save it as UTF-8, or {fix}" if isinstance(error, UnicodeError) else fix
        if isinstance(error, FileNotFoundError) and path.suffix.lower() not in (".yaml", ".yml"):
            what = f"there is no {path}, neither a recipe nor the folder of a run"
            raise RecipeError(what, fix=f"{fix}; `tunesmith list` shows runs") from error
        raise RecipeError(f"recipe {path} cannot be read: {why_unread(error)}", fix=fix) from error
    raw, lines = read_yaml(text, "recipe", str(path))
    if path.suffix.lower() == ".json" and not (isinstance(raw, dict) and Recipe.model_fields.keys() & raw):
        raise _is_data(path)
    if not isinstance(raw, dict):
        raise RecipeError("recipe is not a mapping of settings", fix="start from `tunesmith init`", where=str(path))
    return _anchored(_checked(raw, changes, path, lines), path.parent)


def _refuse_other_file(path: Path) -> None:
    """Raise RecipeError for data and GGUF files, which are named where a recipe is asked for."""
    with path.open("rb") as file:
        start = file.read(4)
    *before, last = "", *(suffix.lower() for suffix in path.suffixes)
    packed = last not in (".yaml", ".yml") and set(DATA) & set(before)  # as .jsonl.gz, of which init says more
    if last in DATA or packed or start == b"PAR1":
        raise _is_data(path)
    if start == b"GGUF":
        fix = (
            f"to chat with it, type `{NAME} chat {shlex.quote(str(path))}`; to train it, name it as `base` in a recipe"
        )
        raise RecipeError(f"recipe {path} cannot be read: it is a GGUF file", fix=fix)


def _is_data(path: Path) -> RecipeError:
    fix = f"type `{NAME} init {shlex.quote(str(path))}`, which writes a recipe for it"
    return RecipeError(f"{path} is data, and no recipe", fix=fix)


def with_changes(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """A recipe in memory with `--set` changes, through the same checker. Raises RecipeError with all problems."""
    return _checked(recipe.model_dump(mode="json"), changes, Path(f"recipe {recipe.name}"), {})


def _checked(raw: dict[str, Any], changes: Sequence[str], path: Path, lines: Places) -> Recipe:
    for change in changes:
        _apply(raw, lines, change)
    _retire(raw, path, lines)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise report(error, path, lines) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def dump_short(recipe: Recipe) -> str:
    """The recipe as YAML, without what is at its default."""
    said = without_defaults(recipe.model_dump(mode="json"))
    kept = {name: value for name, value in said.items() if value != {} and value != Recipe.model_fields[name].default}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=120)


def lasting(recipe: Recipe, file: Recipe) -> Recipe:
    """The recipe with what holds for one call only (train.stop_after, cadence, chat slots) as the file has it.

    What `--set` says of these is done and forgotten; nothing of a result depends on it.
    """
    chat = {name: getattr(file.chat, name) for name in ("context", "slots")}
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"stop_after": file.train.stop_after}),
            "checkpoint": file.checkpoint,
            "chat": recipe.chat.model_copy(update=chat),
        }
    )


def schema_text() -> str:
    """The JSON schema that editors complete and check recipes with."""
    return json.dumps(Recipe.model_json_schema(), indent=1, sort_keys=True) + "\n"


def _retire(raw: dict[str, Any], path: Path, lines: Places) -> None:
    """Take out fields of earlier versions: one that asks for nothing with a word, one that asks for something fails."""
    for name, (harmless, reason, fix) in RETIRED.items():
        *sections, key = name.split(".")
        holder = raw
        for section in sections:
            holder = holder.get(section, {}) if isinstance(holder, dict) else {}
        if not isinstance(holder, dict) or key not in holder:
            continue
        if harmless not in (ANY, holder[key]):
            where = place_of((*sections, key), path, lines)
            raise RecipeError(f"{name} is {holder[key]}: {reason}", fix=fix, where=where)
        if path.name != "recipe.yaml" or not path.with_name("manifest.json").exists():  # not a run of version 0.1
            say(f"{path}: {name} no longer counts; {reason}")
        del holder[key]


def _apply(raw: dict[str, Any], lines: Places, change: str) -> None:
    """Write one `a.b=value` into the raw recipe; a number names a list item."""
    if NO_TEXT.search(change):
        raise RecipeError(f"--set {json.dumps(change)} holds what is no character of a text", fix="take it out")
    key, equals, text = change.partition("=")
    parts: Loc = tuple(int(p) if ITEM.fullmatch(p) else p for p in key.split("."))
    if not equals or not all(p != "" for p in parts):
        raise RecipeError(f'--set "{change}" is not of the form a.b=value', fix="write --set train.lr=1e-4")
    here: Any = raw
    for part in parts[:-1]:
        if isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif isinstance(here, dict):
            if here.get(str(part)) is None:
                here[str(part)] = {}
            here = here[str(part)]
        else:
            here = None
        if not isinstance(here, dict | list):
            raise RecipeError(
                f"--set {key}: {part} holds no settings", fix="`tunesmith check --fields` prints every key"
            )
    value, _ = read_yaml(text, f'--set {key}: "{text}"')
    if isinstance(here, list) and not (isinstance(parts[-1], int) and parts[-1] < len(here)):
        raise RecipeError(f"--set {key}: the list has no item {parts[-1]}", fix=f"it has items 0 to {len(here) - 1}")
    here[parts[-1] if isinstance(here, list) else str(parts[-1])] = value
    for known in [loc for loc in lines if loc[: len(parts)] == parts]:
        del lines[known]
    for end in range(1, len(parts) + 1):  # the sections that it made are its own as well
        lines.setdefault(parts[:end], f"--set {change}")


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with paths that exist beside its file made absolute, so that it means the same from any folder."""

    def anchor(path: str) -> str:
        path = os.path.expanduser(path)
        if Path(path).is_absolute() or not path:
            return path
        if os.path.exists(folder / path):  # False also for a name that is too long
            return str((folder / path).resolve())
        return str(Path(glob.escape(str(folder.resolve()))) / path) if glob.glob(path, root_dir=folder) else path

    data = recipe.data
    sources = tuple(s.model_copy(update={"path": anchor(s.path)}) for s in data.sources)
    held_out = data.held_out
    if not isinstance(held_out, float):
        held_out = held_out.model_copy(update={"path": anchor(held_out.path)})
    select = data.select
    if select and select.like:
        select = select.model_copy(update={"like": anchor(select.like)})
    prompts = recipe.evaluate.prompts
    mirror = recipe.checkpoint.mirror
    if mirror and "://" not in mirror:  # it need not be there yet
        mirror = str((folder / os.path.expanduser(mirror)).absolute())
    licence_files = tuple(anchor(path) for path in recipe.publish.licence_files)
    return recipe.model_copy(
        update={
            "publish": recipe.publish.model_copy(update={"licence_files": licence_files}),
            "data": data.model_copy(update={"sources": sources, "held_out": held_out, "select": select}),
            "base": anchor(recipe.base),
            "checkpoint": recipe.checkpoint.model_copy(update={"mirror": mirror}),
            "evaluate": recipe.evaluate.model_copy(
                update={"prompts": prompts if prompts == "default" else anchor(prompts)}
            ),
        }
    )
