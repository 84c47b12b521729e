"""What decides the result of each stage: its settings and the digests of its inputs.

One pure function per stage, used by the verb (which commits with it) and by the pipeline (which compares it with the
record that stands before it imports anything heavy). Reads records and data files; never torch.
"""

import glob
import json
import os
import re
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tunesmith.boundary import why_unread
from tunesmith.data_files import folder_files
from tunesmith.errors import DataError, RecipeError, ResumeError
from tunesmith.files import digest_file, fingerprint, names_like
from tunesmith.past import BEFORE, DEFAULT_CHANGED, WORDS_OF_0_1, begun_by
from tunesmith.recipe import EvaluateConfig, Recipe, Source
from tunesmith.recipe_file import read_recipe
from tunesmith.record import made_from, output_digest, read_record
from tunesmith.runs import Run
from tunesmith.stages import Stage, stage_at
from tunesmith.values import NO_TEXT
from tunesmith.yaml_text import read_yaml

Needs = tuple[dict[str, Any], dict[str, str]]
"""Settings and inputs (name -> digest), as commit_stage takes them."""
AUTOS = ("micro_batch_tokens", "precision", "recompute")
"""Fields of `train` that may say `auto`: decided once, on the machine that trains, and kept in the run's recipe."""
OUTSIDE = {"stop_after", "recompute", "micro_batch_tokens", "deterministic", "sample"}
"""Fields of `train` outside the mathematics: when to pause, what to show, how the same sums are computed here."""
OUTSIDE_ROWS = {"path", "streaming", "weight"}
"""Fields of a source that change no row: a file is known by its bytes, so that a moved one is the same, and training
alone repeats rows."""
COMMIT = re.compile("[0-9a-f]{40}")
FILE = re.compile(r"(?i)\.(jsonl?|ndjson|parquet|arrow|feather|csv|tsv|txt|xlsx|ya?ml|gz|bz2|xz|zst|zip|7z)$|[*?\[\\ ]")
"""What a path to files looks like, where an id of the Hub does not."""
DEFAULT_PROMPTS = Path(__file__).parent / "evaluation" / "prompts.yaml"


def data_needs(recipe: Recipe, run: Run, base_digest: str) -> Needs:
    """prepare: conversations, cleaning and template. The digest of a Hub data set is its id and revision.

    Of rows that stand: files that are no longer on this machine are as they were, and so are the prompts, whatever the
    recipe says now. They decide rows that are made, and make none anew.
    """
    standing, gone = read_record(run.data), gone_sources(recipe, run)
    if standing is None or "prompts" not in standing.inputs:
        return data_needs_now(recipe, base_digest)
    inputs = {
        name: standing.inputs[name] if source in gone else source_digest(source)
        for name, source in _named_sources(recipe).items()
    }
    return data_settings(recipe), inputs | {"base": base_digest, "prompts": standing.inputs["prompts"]}


def data_needs_now(recipe: Recipe, base_digest: str) -> Needs:
    """The same of rows that are to be made: every file is looked at. Raises DataError if one is missing."""
    inputs = {name: source_digest(source) for name, source in _named_sources(recipe).items()}
    return data_settings(recipe), inputs | {"base": base_digest, "prompts": fingerprint(read_prompts(recipe))}


def gone_sources(recipe: Recipe, run: Run) -> list[Source]:
    """The sources whose files the rows that stand were made from, and that are no longer on this machine."""
    standing = read_record(run.data)
    if standing is None or not run.recipe.exists():
        return []
    begun = sources_of(kept_recipe(run))
    fetched = standing.counts.get("revisions", {})  # what came from the Hub, by its id
    return [
        source
        for number, (source, then) in enumerate(zip(sources_of(recipe), begun, strict=False))
        if not source_files(source)
        and then.path == source.path
        and source.path not in fetched
        and f"source_{number}" in standing.inputs
    ]


def _named_sources(recipe: Recipe) -> dict[str, Source]:
    return {f"source_{number}": source for number, source in enumerate(sources_of(recipe))}


def data_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings alone, without a look at the files."""
    settings: dict[str, Any] = {
        "data": _plain(recipe.data, exclude={"sources": {"__all__": OUTSIDE_ROWS}, "select": True}),
        "max_length": recipe.train.max_length,
        "system": recipe.chat.system,
        "seed": recipe.seed,
    }
    if isinstance(recipe.data.held_out, Source):
        for name in OUTSIDE_ROWS:
            settings["data"]["held_out"].pop(name)
    return settings


def trained_settings(recipe: Recipe) -> dict[str, Any]:
    """Every field that changes the mathematics of training, and which of the rows it is given."""
    settings = {"lora": _plain(recipe.lora), "train": _plain(recipe.train, exclude=OUTSIDE), "seed": recipe.seed}
    chosen: dict[str, Any] = {}
    if recipe.data.select:
        chosen["select"] = _plain(recipe.data.select, exclude={"like"})  # known by its bytes, an input of the scores
    if any(source.weight != 1 for source in recipe.data.sources):
        chosen["weights"] = [source.weight for source in recipe.data.sources]
    return settings | ({"data": chosen} if chosen else {})


def run_settings(recipe: Recipe) -> dict[str, Any]:
    """The same, and what decides the rows: what two runs differ in."""
    rows, trained = data_settings(recipe), trained_settings(recipe)
    return rows | trained | {"data": rows["data"] | trained.get("data", {})}


def adapter_needs(recipe: Recipe, run: Run, base_digest: str) -> Needs:
    """train: every field that changes the mathematics; cadence, keep and stop fields do not."""
    settings = trained_settings(recipe)
    ancestor = read_record(run.ancestor)
    begun = {"ancestor": output_digest(ancestor)} if ancestor else {}
    select = recipe.data.select
    scored = {"scores": made_digest(run.scores)} if select and select.scored else {}
    return settings, {"base": base_digest, "data": made_digest(run.data)} | scored | begun


def model_needs(recipe: Recipe, run: Run, base_digest: str) -> Needs:
    """merge: the adapter, the base, and what goes into the chat template."""
    settings = {"system": recipe.chat.system, "date": recipe.data.date}
    return settings, {"base": base_digest, "adapter": made_digest(run.adapter)}


def gguf_needs(recipe: Recipe, run: Run, base_digest: str) -> Needs:
    """export: the merged model, the types wanted, and the held-out rows of the proof."""
    chat = _plain(recipe.chat, include={"system", "temperature", "top_p"})
    settings = {
        "name": recipe.name,
        "export": _plain(recipe.export),
        "chat": chat,
        "date": recipe.data.date,
        "seed": recipe.seed,
    }
    return settings, {"model": made_digest(run.model), "data": made_digest(run.data)}


def evaluation_needs(recipe: Recipe, run: Run, base_digest: str) -> Needs:
    """evaluate: the GGUF files, the prompts, the held-out rows, and the base they are compared with.

    Prompts whose file is no longer on this machine are as they were where the run's own recipe names the same file.
    """
    settings = {"evaluate": _plain(recipe.evaluate, exclude={"prompts"}), "system": recipe.chat.system}
    inputs = {"base": base_digest, "gguf": made_digest(run.gguf), "data": made_digest(run.data)}
    standing = read_record(run.evaluation)
    if standing and "prompts" in standing.inputs and _prompts_gone(recipe, run):
        as_they_were = inputs | {"prompts": standing.inputs["prompts"]}
        if made_from(standing, settings, as_they_were):  # to answer anew they are needed
            return settings, as_they_were
    return settings, inputs | {"prompts": fingerprint(read_prompts(recipe))}


def _prompts_gone(recipe: Recipe, run: Run) -> bool:
    """Whether the prompts are of a file that the run was made with and that is no longer on this machine."""
    path = recipe.evaluate.prompts
    return (
        path != "default"
        and not os.path.lexists(path)
        and run.recipe.exists()
        and kept_recipe(run).evaluate.prompts == path
    )


def prompts_kept(recipe: Recipe, run: Run) -> bool:
    """Whether answers stand that need no prompts any more: their file is gone, and the run was made with it."""
    return read_record(run.evaluation) is not None and _prompts_gone(recipe, run)


def stands(stage: Stage, recipe: Recipe, run: Run, base_digest: str) -> bool:
    """True if the stage's folder was made from the same settings and inputs."""
    needs = stage.load_decides()(recipe, run, base_digest)  # first: a missing earlier stage is named before any work
    return made_from(read_record(run.path / stage.folder), *needs)


def kept_recipe(run: Run) -> Recipe:
    """The run's own recipe.yaml, with what was done before there was a field. Raises ResumeError if it is damaged."""
    try:
        recipe = read_recipe(run.recipe)
    except RecipeError as error:
        fix = "delete it and run with your own recipe file; the stages that stand are known by their records"
        raise ResumeError(f"the run's own recipe is damaged: {error.what}", fix=fix, where=str(run.recipe)) from error
    for section, fields in BEFORE.items():
        unsaid = fields.keys() - getattr(recipe, section).model_fields_set
        recipe = _with(recipe, section, {name: fields[name] for name in unsaid})
    return recipe


def as_begun(recipe: Recipe, run: Run) -> Recipe:
    """The recipe as this run began: its decided `auto`s and commits, defaults and meanings of words that changed."""
    if not run.recipe.exists():
        return recipe
    begun = kept_recipe(run)
    recipe = with_sources(recipe, _sources_as_begun(_where_they_were(recipe, begun), sources_of(begun)))
    for section, names in DEFAULT_CHANGED.items():
        unsaid = set(names) - getattr(recipe, section).model_fields_set
        recipe = _with(recipe, section, {name: getattr(getattr(begun, section), name) for name in unsaid})
    made = read_record(run.data)
    if made and begun_by(made.versions) == "0.1" and recipe.data.dedup in WORDS_OF_0_1:
        recipe = _with(recipe, "data", {"dedup": WORDS_OF_0_1[recipe.data.dedup]})
    autos = {name: getattr(begun.train, name) for name in AUTOS if getattr(recipe.train, name) == "auto"}
    return _with(recipe, "train", autos).model_copy(update={"base": _base_as_begun(recipe.base, begun.base)})


def at_commits(recipe: Recipe, resolve: Callable[[Source], str]) -> Recipe:
    """The recipe with every Hub data set at a commit: as it names it, else as `resolve` finds it on the Hub."""

    def at_commit(source: Source) -> Source:
        on_hub = "/" not in source.path or _may_be_on_hub(source.path)  # some old data sets have no owner
        if not on_hub or source_files(source) or FILE.search(source.path) or COMMIT.fullmatch(source.revision or ""):
            return source
        return source.model_copy(update={"revision": resolve(source)})

    return with_sources(recipe, [at_commit(source) for source in sources_of(recipe)])


def with_sources(recipe: Recipe, sources: list[Source]) -> Recipe:
    """The recipe with other sources, in the order of `sources_of`."""
    count = len(recipe.data.sources)
    held_out = {"held_out": sources[count]} if sources[count:] else {}
    return _with(recipe, "data", {"sources": tuple(sources[:count]), **held_out})


def _with(recipe: Recipe, section: str, values: dict[str, Any]) -> Recipe:
    """The recipe with other values of some fields of a section."""
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def gone_base_digest(recipe: Recipe, run: Run) -> str:
    """The digest of the base that the run was made from, where nothing else can have its name; empty otherwise.

    That is a folder or file that is no longer there, a commit on the Hub, or a built-in base.
    """
    standing = read_record(run.data)
    if standing is None or not run.recipe.exists() or kept_recipe(run).base != recipe.base:
        return ""
    gone = os.path.isabs(recipe.base) and not os.path.lexists(recipe.base)
    fixed = recipe.base.startswith("builtin:") or COMMIT.fullmatch(recipe.base.partition("@")[2])
    return standing.inputs.get("base", "") if gone or fixed else ""


def _base_as_begun(asked: str, begun: str) -> str:
    """The Hub base at the commit that the run began with, unless another commit is asked for; a folder that is gone by
    the path that it had, where its name can be no id.
    """
    may_be_id = _may_be_on_hub(asked) and not asked.startswith(".")
    if not may_be_id and not os.path.exists(asked) and begun.endswith(f"/{asked.removeprefix('./')}"):
        return begun
    repo, _, revision = asked.partition("@")
    begun_repo, _, commit = begun.partition("@")
    same = repo == begun_repo and COMMIT.fullmatch(commit) and not os.path.exists(os.path.expanduser(asked))
    return begun if same and _may_be(revision, commit) else asked


def _where_they_were(recipe: Recipe, begun: Recipe) -> list[Source]:
    """The sources, a file that is gone by the path that it had: nothing is found beside the recipe any more."""

    def was(source: Source, then: Source) -> bool:
        return not source_files(source) and then.path.endswith(f"/{source.path.removeprefix('./')}")

    pairs = zip_longest(sources_of(recipe), sources_of(begun)[: len(sources_of(recipe))])
    return [s.model_copy(update={"path": then.path}) if then and was(s, then) else s for s, then in pairs]


def _sources_as_begun(asked: list[Source], begun: list[Source]) -> list[Source]:
    """Hub data sets at the commits that the run began with, unless others are asked for."""
    left, found = list(begun), list(asked)
    for place, source in enumerate(asked):
        wanted = (source.path, source.split, source.config)
        same = next((s for s in left if (s.path, s.split, s.config) == wanted), None)
        if same:
            left.remove(same)  # the same data set again is the next one
            commit = same.revision or ""
            if COMMIT.fullmatch(commit) and _may_be(source.revision or "", commit):
                found[place] = source.model_copy(update={"revision": commit})
    return found


def _may_be(revision: str, commit: str) -> bool:
    """Whether a revision, empty or a branch or a tag or the start of a commit, may mean this commit."""
    return commit.startswith(revision) or not re.fullmatch("[0-9a-f]{7,40}", revision)


def read_prompts(recipe: Recipe) -> list[str]:
    """The evaluation prompts. Raises RecipeError if the file is not a YAML list of texts."""
    return prompts_of(recipe.evaluate)


def prompts_of(config: EvaluateConfig) -> list[str]:
    """The same of `evaluate` alone."""
    path = DEFAULT_PROMPTS if config.prompts == "default" else Path(config.prompts)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        what = f"evaluate.prompts: {path} cannot be read: {why_unread(error)}"
        fix = "name a YAML file with a list of prompts, in the recipe or with --set evaluate.prompts=PATH"
        raise RecipeError(what, fix=fix) from error
    prompts, lines = read_yaml(text, "evaluate.prompts", str(path))
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise RecipeError(f"evaluate.prompts: {path} is not a list of prompts", fix="write one `- prompt` a line")
    for number, prompt in enumerate(prompts):
        if found := NO_TEXT.search(prompt):
            what = (
                f"evaluate.prompts: prompt {number + 1} holds {json.dumps(found[0])}, which is no character of a text"
            )
            raise RecipeError(what, fix="take it out", where=f"{path}, line {lines[(number,)]}")
    return prompts


def sources_of(recipe: Recipe) -> list[Source]:
    """Every source of the recipe: the training ones, then the held-out one if it has its own."""
    held_out = recipe.data.held_out
    return [*recipe.data.sources, *([held_out] if isinstance(held_out, Source) else [])]


def source_files(source: Source) -> list[Path]:
    """The files that a source's path names, sorted; none for the id of a data set on the Hub.

    Raises DataError for a folder in which there is nothing to read.
    """
    if os.path.isfile(source.path):  # also one with brackets in its name
        return [Path(source.path)]
    if os.path.isdir(source.path):
        return folder_files(Path(source.path), source.split, source.config).files
    return [Path(name) for name in sorted(glob.glob(source.path, recursive=True)) if Path(name).is_file()]


def source_digest(source: Source) -> str:
    """Digest of a source: of its files' bytes, or of a Hub data set's id and revision.

    Raises DataError for files that are not there: what they were cannot be compared with what they are.
    """
    files = source_files(source)
    if not files:
        refuse_missing(source.path)
        return fingerprint(["hub", source.path, source.revision])
    return fingerprint([digest_file(path) for path in files])


def refuse_missing(path: str, named: bool = False) -> None:
    """Raise DataError for a path without files that is meant as one; the id of a data set on the Hub passes.

    `named`: by the user, for `init`, and by no recipe yet.
    """
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", path) or (not named and "/" not in path)  # some old ones have no owner
    if on_hub and not FILE.search(path) and not path.startswith((".", "/", "~")):
        return
    like = names_like(os.path.expanduser(path))
    meant = f"; did you mean {' or '.join(like)}?" if like else ""
    if named:
        fix = "check the name; init takes a file, a pattern, or the id of a data set on the Hub, which is owner/name"
        raise DataError(f"there is no file {path}{meant}", fix=fix)
    beside = "" if os.path.isabs(path) else f": it is neither beside the recipe nor in {os.getcwd()}"
    raise DataError(
        f"there is no file {path} on this machine{beside}{meant}",
        fix="put it back, or correct data.sources[].path, which is taken from the recipe's folder; "
        "a run whose rows are made already goes on without: name its folder",
    )


def missing_files(recipe: Recipe) -> list[str]:
    """What a recipe names that is not on this machine, in words; a Hub id is taken on trust."""
    missing = [s.path for s in sources_of(recipe) if not source_files(s) and not _may_be_on_hub(s.path)]
    others = [recipe.base] if recipe.base.startswith((".", "/")) else []
    others += [] if recipe.evaluate.prompts == "default" else [recipe.evaluate.prompts]
    missing += [path for path in others if not os.path.exists(path)]
    select = recipe.data.select
    if select and select.like and not source_files(Source(path=select.like)):
        missing.append(select.like)
    return [f"{path} does not exist" for path in missing]


def _may_be_on_hub(path: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and not FILE.search(path)


def made_digest(folder: Path) -> str:
    """Digest of an earlier stage's outputs."""
    record = read_record(folder)
    if record is None:
        verb = stage_at(folder.name).verb
        raise ResumeError(
            f"there is no {folder.name}/ yet, which `tunesmith {verb}` makes",
            fix="type the same with `run` in place of its verb: that does what is missing first",
            where=str(folder.parent),
        )
    return output_digest(record)


def _plain(section: Any, **choice: Any) -> dict[str, Any]:
    """A part of the recipe as JSON can hold it."""
    return section.model_dump(mode="json", **choice)
