"""VERB init: a commented starter recipe after a few questions."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from tunesmith.errors import RecipeError
from tunesmith.files import write_user_file
from tunesmith.recipe_file import read_recipe, schema_text

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
    plain = Answers()
    gpu = typer.confirm("Train on an NVIDIA GPU?", default=False)
    return Answers(
        name=typer.prompt("Name of the run", default=plain.name),
        base=typer.prompt("Base model (Hub id, folder, GGUF file)", default=LLAMA if gpu else SMALL),
        data=typer.prompt("Conversations (file or Hub data set)", default=plain.data),
        gpu=gpu,
    )


def write_starter(path: Path, answers: Answers) -> list[Path]:
    """Write the recipe, and schema.json for editors beside it if there is none; returns the files written.

    Raises RecipeError if the recipe's file exists, or if an answer makes no valid recipe.
    """
    if os.path.lexists(path):
        raise RecipeError(
            f"{path} exists already and is not overwritten", fix="name another file: tunesmith init NAME.yaml"
        )
    quoted = replace(answers, base=_quoted(answers.base), data=_quoted(answers.data))
    train = GPU if answers.gpu else CPU
    text = TEMPLATE.format(file=path, name=_quoted(quoted.name), base=quoted.base, data=quoted.data, train=train)
    write_user_file(path, text)
    try:
        read_recipe(path)
    except RecipeError:
        path.unlink()  # only the file this call made
        raise
    schema = path.with_name("schema.json")
    if os.path.lexists(schema):
        return [path]
    write_user_file(schema, schema_text())
    return [path, schema]


def _quoted(text: str) -> str:
    """As YAML can hold it; plain where that reads the same."""
    plain = all(letter.isalnum() or letter in "-_./:@" for letter in text) and text[:1].isalpha() and text[-1:] != ":"
    return (
        text
        if plain and text.lower() not in {"null", "true", "false", "yes", "no", "on", "off"}
        else "'" + text.replace("'", "''") + "'"
    )
