"""What of a run is not what its recipe says: found from the records alone, without the base, the data or a network.

The pipeline decides with digests of the base and of the data files (decides.py). The chat and the report, which make
nothing, use this to name what is old; and a recipe with which the stages that stand were not made is not kept. Nor are
rows made anew, or trained on, under checkpoints that began with others: that is refused before torch is loaded.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tunesmith.decides import Needs, as_begun, data_settings, kept_recipe
from tunesmith.errors import RecipeError, ResumeError
from tunesmith.recipe import Recipe, Source
from tunesmith.recipe_defaults import without_defaults
from tunesmith.record import Record, made_from, output_digest, read_record
from tunesmith.runs import Run, checkpoint_folders
from tunesmith.stages import STAGES, Stage, stage_of

NAMES = {"system": "chat.system", "date": "data.date", "max_length": "train.max_length",
         "data.weights": "data.sources[].weight"}  # fmt: skip
"""Settings of a stage that the recipe calls otherwise."""
INPUTS = {
    "base": "base: other weights, another tokenizer or chat template",
    "data": "data/: other rows",
    "ancestor": "ancestor/: other weights to begin with (--fork)",
    "prompts": "evaluate.prompts: other prompts",
    "scores": "scores/: other scores of the rows",
    "like": "data.select.like: other examples",
}
"""Input of a stage -> what is said where it is another one."""
WAYS_OUT = (
    "set it back; or begin anew in this run with --fresh, which deletes what was trained here; or make a new run, by "
    "another name in the recipe or with --run-dir, to which --fork THIS_RUN gives the adapter of this one to go on from"
)


def stale(recipe: Recipe, run: Run, verb: str, but: Collection[str] = ()) -> list[str]:
    """How the stages that stand, up to `verb`, differ from the recipe and from each other, one text each.

    `but`: settings whose difference does not matter to who asks.
    """
    begun = kept_recipe(run).base if run.recipe.exists() else recipe.base
    recipe = as_begun(recipe, run)
    found = [f"the run was made from {begun}, the recipe says {recipe.base}"] if begun != recipe.base else []
    for stage, record in _standing(run, verb):
        differ = settings_differ(stage, record, recipe, run)
        found += [f"{stage.folder}/ was made with {how}" for name, how in differ.items() if name not in but]
        found += [
            f"{stage.folder}/ was made from another {name} than the one that is there now" for name in _cut(run, record)
        ]
    return found


def cut_from_training(run: Run) -> bool:
    """Whether the model, the GGUF or the answers that stand are of another adapter than the one that stands."""
    after = [
        record for stage, record in _standing(run, "evaluate") if stage.folder not in ("data", "scores", "adapter")
    ]
    return any(set(_cut(run, record)) - {"data/"} for record in after)


def may_be_kept(recipe: Recipe, run: Run, last: Stage) -> bool:
    """Whether recipe.yaml may say `recipe` once the stage `last` stands: it is what all stages up to it were made with.

    After prepare or score alone, not where a training has begun: it may refuse the new data, and would then say so too
    late.
    """
    if last.verb in ("prepare", "score") and (read_record(run.adapter) or checkpoint_folders(run.checkpoints)):
        return False
    return not any(settings_differ(stage, record, recipe, run) for stage, record in _standing(run, last.verb))


def settings_differ(stage: Stage, record: Record, recipe: Recipe, run: Run) -> dict[str, str]:
    """Each setting that a stage was made with and the recipe has otherwise: its name -> both values in words."""
    if stage.scores and not stage.is_wanted(recipe):
        return {}  # nobody reads them now
    try:
        if stage.folder == run.data.name:
            settings = data_settings(recipe)
        else:
            settings, _ = stage.load_decides()(recipe, run, record.inputs.get("base", ""))
    except (RecipeError, ResumeError):  # the prompts, or an earlier stage's folder, are no longer on this machine
        return {}
    return {
        name: f"{name} {was}, the recipe says {now}" for name, (was, now) in _both(record.settings, settings).items()
    }


def needs_differ(was: Needs, now: Needs, sources: Sequence[Source] = ()) -> list[str]:
    """One text for each setting that differs, with both values, and for each input that is another one.

    `sources`: of the recipe, in its order, to name those that are other ones.
    """
    own = {f"source_{number}": f"data: {source.path} has other rows" for number, source in enumerate(sources)}
    settings = [f"{name}: {then} -> {here}" for name, (then, here) in _both(was[0], now[0]).items()]
    others = [name for name in sorted(was[1].keys() | now[1].keys()) if was[1].get(name) != now[1].get(name)]
    return settings + [(INPUTS | own).get(name, f"data: {name.replace('_', ' ')} is no more") for name in others]


def keep_rows_of_checkpoints(run: Run, needs: Needs, sources: Sequence[Source]) -> None:
    """Raise ResumeError if the rows would change under checkpoints that were trained on them."""
    standing = read_record(run.data)
    if not standing or made_from(standing, *needs) or not checkpoint_folders(run.checkpoints):
        return
    changed = needs_differ((standing.settings, standing.inputs), needs, sources)
    raise ResumeError(
        "the run has checkpoints that were trained on other data:\n  - " + "\n  - ".join(changed),
        fix=WAYS_OUT,
        where=str(run.checkpoints),
    )


def _both(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each setting that is not the same, by the recipe's name for it: what it was and what it is now."""
    bare_was, bare_now = dict(_leaves(without_defaults(was))), dict(_leaves(without_defaults(now)))
    all_was, all_now = dict(_leaves(was)), dict(_leaves(now))

    def shown(bare: Mapping[str, Any], full: Mapping[str, Any], name: str) -> Any:
        return bare[name] if isinstance(bare.get(name), list) else full.get(name, "its default")

    return {
        NAMES.get(name, name): (shown(bare_was, all_was, name), shown(bare_now, all_now, name))
        for name in sorted(bare_was.keys() | bare_now.keys())
        if bare_was.get(name) != bare_now.get(name)
    }


def _standing(run: Run, verb: str) -> Iterator[tuple[Stage, Record]]:
    """The stages up to `verb` that stand, with their records."""
    for stage in STAGES[: STAGES.index(stage_of(verb)) + 1]:
        if record := read_record(run.path / stage.folder):
            yield stage, record


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of each setting; a list is one value."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _cut(run: Run, record: Record) -> list[str]:
    """What a stage was made from that is no longer what stands. A folder that is gone says nothing."""
    found = []
    for stage in STAGES:
        made = read_record(run.path / stage.folder) if stage.folder in record.inputs else None
        if made and record.inputs[stage.folder] != output_digest(made):
            found.append(f"{stage.folder}/")
    data = read_record(run.data)
    if data and record.inputs.get("base") != data.inputs.get("base") and {"base"} <= record.inputs.keys():
        found.append("base")
    return found
