"""VERB init: a commented starter recipe after a few questions."""

import io
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import typer
from pydantic import ValidationError

from tunesmith.errors import RecipeError
from tunesmith.files import write_user_file
from tunesmith.machine import need_utf8
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import schema_text

SMALL, LLAMA = "builtin:smollm2-135m-instruct", "meta-llama/Llama-3.2-1B-Instruct"
TEMPLATE = """\
# yaml-language-server: $schema=./schema.json
# `tunesmith check {file}` prints every setting; `tunesmith run {file}` does all stages.
name: {name}          # name of the run folder and of the model files
base: {base}          # Hub id[@revision], folder, GGUF file, or builtin:smollm2-135m-instruct
data:
  sources:
    - path: {data}    # JSON, JSONL, Parquet or CSV (a glob is fine), or the id of a data set on the Hub
      format: auto    # sharegpt, messages, alpaca, prompt-completion; auto looks at the first row
  held_out: 0.05      # share kept out of training to measure the loss
lora:
  rank: 16            # width of the adapter
train:
{train}  evaluate_every: 50 steps   # measure the held-out loss
  # stop_after: 10min        # pause after so long; the same command goes on
checkpoint:
  every: 5min         # what a killed run loses at most
export:
  gguf: [F16, Q8_0, Q4_K_M]
chat:
  system: null        # system prompt where the data have none
"""
GPU = """\
  epochs: 1
  tokens_per_step: 16384     # tokens in one step, the same on every machine
  max_length: 2048           # longest conversation, in tokens
  lr: 2e-4
"""
CPU = """\
  epochs: 3
  tokens_per_step: 2048      # tokens in one step, the same on every machine
  max_length: 512            # longest conversation, in tokens
  lr: 5e-4
"""


@dataclass(frozen=True)
class Answers:
    """What a starter recipe is made from."""

    name: str = "my-model"
    base: str = SMALL
    data: str = "data.jsonl"
    gpu: bool = False


def ask() -> Answers:
    """Ask on the terminal; Enter takes what is in brackets."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # what is no text is refused by name, as a wrong answer
        sys.stdin.reconfigure(errors="surrogateescape")
    plain = Answers()
    gpu = typer.confirm("Train on an NVIDIA GPU?", default=False)
    return Answers(
        name=_answer("Name of the run", "name", plain.name),
        base=_answer("Base model (Hub id, folder, GGUF file)", "base", LLAMA if gpu else SMALL),
        data=_answer("Conversations (file or Hub data set)", "data", plain.data),
        gpu=gpu,
    )


def _answer(question: str, field: str, default: str) -> str:
    """What is typed, without spaces around it; asked again where no recipe can hold it."""

    def held(typed: str) -> str:
        text = typed.strip() or default
        if said := _problem(**{field: text}):
            raise typer.BadParameter(said)
        return text

    answer: str = typer.prompt(question, default=default, value_proc=held)
    return answer


def refuse_place(path: Path) -> None:
    """Raise RecipeError if a starter recipe cannot be written there: it exists, or the name is none of a recipe."""
    need_utf8(path.absolute())
    if path.suffix not in (".yaml", ".yml"):
        what = f"{path} is no name of a recipe, which ends in .yaml"
        raise RecipeError(what, fix=f"name a file, such as {path / 'recipe.yaml'} or {path}.yaml")
    if os.path.lexists(path):
        raise RecipeError(
            f"{path} exists already and is not overwritten", fix="name another file: tunesmith init NAME.yaml"
        )


def write_starter(path: Path, answers: Answers) -> list[Path]:
    """Write the recipe, and schema.json for editors beside it if there is none; returns the files written.

    Raises RecipeError if the recipe's file exists or can be none, or if an answer makes no valid recipe.
    """
    refuse_place(path)
    if said := _problem(answers.name, answers.base, answers.data):
        raise RecipeError(said, fix="give another answer")
    file = shlex.quote(str(path)) if str(path).isprintable() else "RECIPE"
    name, base, data = map(_quoted, (answers.name, answers.base, answers.data))
    write_user_file(
        path, TEMPLATE.format(file=file, name=name, base=base, data=data, train=GPU if answers.gpu else CPU)
    )
    schema = path.with_name("schema.json")
    if os.path.lexists(schema):
        return [path]
    write_user_file(schema, schema_text())
    return [path, schema]


def _problem(name: str = Answers.name, base: str = Answers.base, data: str = Answers.data) -> str:
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
