"""VERB init: a look at the data, the recipe that fits it, and what it will do."""

import os
from pathlib import Path

import typer

from tunesmith.command import to_type
from tunesmith.console import say, warn
from tunesmith.errors import TunesmithError
from tunesmith.planning.fit import fit, unfitted
from tunesmith.planning.plan import look_at_data, plan_of
from tunesmith.planning.speed import known_speed, time_one_pass
from tunesmith.planning.starter import Answers, write_starter
from tunesmith.planning.steps import all_lengths
from tunesmith.planning.tokens import tokens_of
from tunesmith.planning.words import plan_lines
from tunesmith.printable import printable
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import read_recipe
from tunesmith.runs import Run
from tunesmith.weights.small_files import CONFIG, read_json


def start(path: Path, answers: Answers, typed: bool) -> None:
    """Look at the data, write the recipe that fits it, and say what it will do.

    Data or a base that cannot be looked at now are no reason to lose what was `typed`: the recipe is written with the
    defaults, which it says, and so does a warning. Raises TunesmithError where nothing was typed.
    """
    plain = Recipe.model_validate(
        {
            "name": answers.name,
            "base": os.path.expanduser(answers.base),
            "train": {"max_length": 8},  # what fits is found below, whatever the base's context is
            "data": {"sources": [{"path": os.path.expanduser(answers.data)}]},
        }
    )
    run, plan = Run(Path("runs") / answers.name), None
    try:
        tokens = tokens_of(plain)
        looks, held_out = look_at_data(plain, tokens)
        config = read_json(tokens.folder / CONFIG) if tokens.folder else {}
        fitted = fit(looks, config)
        written = write_starter(path, answers, fitted)
        if tokens.base and not known_speed(tokens.base, run):
            say("timing one pass through the base")
            time_one_pass(tokens.base, all_lengths(looks))
        recipe = read_recipe(path)
        plan = plan_of(recipe, run, tokens, looks, held_out)
    except TunesmithError as error:
        if not typed or os.path.lexists(path):
            raise
        warn(f"the settings are defaults, and may not fit the data: {error.what}\n  fix: {error.fix}")
        written = write_starter(path, answers, unfitted("the data could not be looked at"))
    for line in plan_lines(plan, recipe) if plan else ():
        typer.echo(printable(line))
    for file in written:
        typer.echo(printable(f"wrote {file}"))
    typer.echo(printable(f"next: {to_type('run', path)}"))
