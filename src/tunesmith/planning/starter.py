"""The questions of `init`, and the commented recipe that is made of the answers and of what fits the data."""

import io
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer
from pydantic import ValidationError

from tunesmith.data.read import conversations
from tunesmith.decides import FILE, refuse_missing, source_files
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.files import write_user_file
from tunesmith.machine import gpu, need_utf8
from tunesmith.planning.fit import Fitted
from tunesmith.recipe import Recipe, Source
from tunesmith.recipe_file import schema_text
from tunesmith.recipe_problems import in_words
from tunesmith.weights.locate import is_local, refuse_no_base

SMALL, LLAMA = "builtin:smollm2-135m-instruct", "meta-llama/Llama-3.2-1B-Instruct"
TEMPLATE = """\
# yaml-language-server: $schema=./schema.json
# `tunesmith run {file}` does all stages; `tunesmith check {file}` says what they will do.
name: {name}  # name of the run folder and of the model files
base: {base}  # Hub id[@revision], folder, GGUF file, or builtin:smollm2-135m-instruct
data:
  sources:
    - path: {data}  # JSON, JSONL, Parquet or CSV (a glob is fine), or the id of a data set on the Hub
      format: auto  # sharegpt, messages, alpaca, question-answer, ...; auto looks at the columns
  held_out: {fitted.held_out:g}  # {why[held_out]}
lora:
  rank: {fitted.rank}  # {why[rank]}
train:
  epochs: {fitted.epochs}  # {why[epochs]}
  tokens_per_step: {fitted.tokens_per_step}  # {why[tokens_per_step]}
  max_length: {fitted.max_length}  # {why[max_length]}
  lr: {fitted.lr:g}  # {why[lr]}
  evaluate_every: {fitted.every}  # {why[evaluate_every]}
  # stop_after: 10min        # pause after so long; the same command goes on
checkpoint:
  every: 5min  # what a killed run loses at most
export:
  gguf: [F16, Q8_0, Q4_K_M]
chat:
  system: null  # system prompt where the data have none
  temperature: {fitted.temperature:g}  # {why[temperature]}
"""
COMMENT_AT = 28
"""Column of the comments, where what they speak of is shorter."""


@dataclass(frozen=True)
class Answers:
    """What a starter recipe is made from."""

    data: str
    name: str
    base: str = SMALL


def answers_from(data: str | None, base: str | None, name: str | None, ask: bool) -> Answers:
    """What was given, and what is asked for on the terminal; Enter takes what is in brackets.

    Raises TunesmithError for what was given, or is not given and not asked for, and can make no recipe.
    """
    if ask and isinstance(sys.stdin, io.TextIOWrapper):  # what is no text is refused by name, as a wrong answer
        sys.stdin.reconfigure(errors="surrogateescape")
    if data is None:
        if not ask:
            what = "init needs conversations to make a recipe for"
            raise RecipeError(what, fix="name a file, a folder or a data set of the Hub: init DATA")
        data = _asked("Conversations (file or Hub data set)", "", _refuse_data)
    else:
        _refuse_data(data)
    if base is None:
        base = (
            _asked("Base model (Hub id, folder, GGUF file)", LLAMA if gpu() else SMALL, _refuse_base) if ask else SMALL
        )
    else:
        _refuse_base(base)
    if name is None:
        name = _name_for(data)
        name = _asked("Name of the run", name, lambda text: _refuse_answer(name=text)) if ask else name
    else:
        _refuse_answer(name=name)
    return Answers(data, name, base)


def _asked(question: str, default: str, refuse: Callable[[str], None]) -> str:
    """What is typed, without spaces around it; asked again, with the reason, where `refuse` raises TunesmithError."""

    def held(typed: str) -> str:
        text = typed.strip() or default
        try:
            refuse(text)
        except TunesmithError as error:
            raise typer.BadParameter(f"{error.what}\n  fix: {error.fix}") from error
        return text

    answer: str = typer.prompt(question, default=default or None, value_proc=held)
    return answer


def _refuse_data(path: str) -> None:
    _refuse_answer(data=path)
    source = Source(path=os.path.expanduser(path))
    if source_files(source):
        next(conversations(source), None)  # of a known kind, with columns that can be read
    else:
        refuse_missing(path, named=True)


def _refuse_base(base: str) -> None:
    _refuse_answer(base=base)
    refuse_no_base(base, named=True)


def _refuse_answer(name: str = "a", base: str = "a", data: str = "a") -> None:
    """Raise RecipeError for an answer that no recipe can hold."""
    if said := _problem(name, base, data):
        raise RecipeError(said, fix="give another answer")


def _name_for(data: str) -> str:
    """A name of a run from the name of its data."""
    stem = FILE.sub("", data.rstrip("/").rpartition("/")[2])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")
    return name if name and not _problem(name=name) else "my-model"


def refuse_place(path: Path) -> None:
    """Raise RecipeError if a starter recipe cannot be written there: it exists, or the name is none of a recipe."""
    need_utf8(path.absolute())
    if path.suffix not in (".yaml", ".yml"):
        what = f"{path} is no name of a recipe, which ends in .yaml"
        raise RecipeError(what, fix=f"name a file, such as {path / 'recipe.yaml'} or {path}.yaml")
    if os.path.lexists(path):
        fix = "name another file: `tunesmith init DATA --to NAME.yaml`"
        raise RecipeError(f"{path} exists already and is not overwritten", fix=fix)


def write_starter(path: Path, answers: Answers, fitted: Fitted) -> list[Path]:
    """Write the recipe, and schema.json for editors beside it if there is none; returns the files written.

    Raises RecipeError if the recipe's file exists or can be none, or if an answer makes no valid recipe.
    """
    refuse_place(path)
    _refuse_answer(answers.name, answers.base, answers.data)
    file = shlex.quote(str(path)) if str(path).isprintable() else "RECIPE"
    data = _seen_from(path, answers.data) if source_files(Source(path=answers.data)) else answers.data
    base = _seen_from(path, answers.base) if is_local(answers.base) and os.path.exists(answers.base) else answers.base
    name, base, data = map(_quoted, (answers.name, base, data))
    text = TEMPLATE.format(file=file, name=name, base=base, data=data, fitted=fitted, why=fitted.why)
    write_user_file(path, "".join(map(_aligned, text.splitlines(keepends=True))))
    schema = path.with_name("schema.json")
    if os.path.lexists(schema):
        return [path]
    write_user_file(schema, schema_text())
    return [path, schema]


def _aligned(line: str) -> str:
    """A line of the template with its comment in the column of the others; no name or path has two spaces in it."""
    setting, mark, comment = line.rpartition("  # ")
    return f"{setting + '  ':<{COMMENT_AT}}# {comment}" if mark and setting.strip() else line


def _seen_from(recipe: Path, file: str) -> str:
    """A path as a recipe says it: from its own folder, whatever the working folder is."""
    if os.path.isabs(file) or recipe.parent.resolve() == Path.cwd().resolve():
        return file
    return os.path.relpath(file, recipe.parent)


def _problem(name: str = "a", base: str = "a", data: str = "a") -> str:
    """Which answer no recipe can hold, and why; empty where all are well."""
    try:
        Recipe.model_validate({"name": name, "base": base, "data": {"sources": [{"path": data}]}})
    except ValidationError as error:
        first = error.errors()[0]
        return f"{first['loc'][0]}{in_words(first)}"
    return ""


def _quoted(text: str) -> str:
    """As YAML can hold it; plain where that reads the same."""
    plain = all(letter.isalnum() or letter in "-_./:@" for letter in text) and text[:1].isalpha() and text[-1:] != ":"
    if plain and text.lower() not in {"null", "true", "false", "yes", "no", "on", "off"}:
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    shown = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(shown)}"'  # line breaks of Unicode, which YAML would read as a space
