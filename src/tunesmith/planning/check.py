"""VERB check: what a recipe will do to its data, before anything is done."""

from collections.abc import Iterator

from tunesmith.console import warn
from tunesmith.data.hub import resolve_commit
from tunesmith.decides import missing_files, source_files, sources_of
from tunesmith.errors import DataError, RecipeError
from tunesmith.planning.plan import look_at_data, plan_of
from tunesmith.planning.speed import known_speed, time_one_pass
from tunesmith.planning.steps import all_lengths
from tunesmith.planning.tokens import tokens_of
from tunesmith.planning.words import plan_lines
from tunesmith.recipe import Recipe
from tunesmith.runs import Run
from tunesmith.weights.locate import refuse_no_base


def check_plan(recipe: Recipe, run: Run, timed: bool = False) -> Iterator[str]:
    """The plan in lines. `timed`: time one pass where the speed of this machine is not known.

    Raises RecipeError that names every file that is missing, DataError for data and BaseError for a base that cannot
    be used.
    """
    if missing := missing_files(recipe):
        fix = "put them there, or correct the recipe; paths are taken from its folder"
        raise RecipeError(f"the recipe names what is not on this machine: {'; '.join(missing)}", fix=fix)
    refuse_no_base(recipe.base)
    try:
        for source in sources_of(recipe):
            if not source_files(source):
                resolve_commit(source)
    except DataError as error:  # what the Hub has is nobody's fault here, and nothing of it is needed to check a recipe
        warn(f"there is no plan, because the data cannot be looked at: {error.what}\n  fix: {error.fix}")
        return
    tokens = tokens_of(recipe)
    looks, held_out = look_at_data(recipe, tokens)
    unknown = timed and tokens.base and not known_speed(tokens.base, run)
    if unknown and tokens.base and time_one_pass(tokens.base, all_lengths(looks)) is None:
        warn("one pass could not be timed: torch is missing, or memory too small")
    yield from plan_lines(plan_of(recipe, run, tokens, looks, held_out), recipe)
