"""What the stages to come take of the disk: said before hours are spent, not when the merge is reached."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.console import warn
from tunesmith.decides import stands
from tunesmith.errors import BaseError, ResourceError, ResumeError
from tunesmith.files import DRAFT, beside, bytes_of
from tunesmith.gguf.write import expected_bytes
from tunesmith.machine import disk_of, need_disk
from tunesmith.recipe import GgufType, Recipe
from tunesmith.record import read_record
from tunesmith.runs import Run, checkpoint_folders, refuse_foreign, refuse_to_replace
from tunesmith.stages import STAGES, Stage
from tunesmith.weights.cache import cache_folder
from tunesmith.weights.locate import LocatedBase
from tunesmith.weights.small_files import CONFIG, read_json
from tunesmith.weights.tensorfile import read_index, weight_files

DELETED = "what a new start deletes"


@dataclass(frozen=True)
class Need:
    """Disk that something takes."""

    what: str
    place: Path
    takes: int
    """Bytes at its fullest, beside what is there now."""
    leaves: int
    """Bytes more than before when it is done: what it replaced is gone then."""


def make_sure(stages: Sequence[Stage], recipe: Recipe, run: Run, base: LocatedBase, frees: int = 0) -> None:
    """What would end one of these stages is said before the first of them: a folder in the way, a disk too small.

    The first is known to have work to do. `frees`: bytes that a new start deletes before training, and with them all
    that was trained. Raises ResumeError or ResourceError; for stages that were not asked for, and come after training,
    it is a warning.
    """
    stages = stages if frees else _to_come(stages, recipe, run, base.digest)
    refuse_to_replace(run.path / stages[0].folder)
    for stage in stages[1:]:
        refuse_foreign(run.path / stage.folder)
    deleted = [Need(DELETED, run.path, 0, -frees)] if frees else []
    needs = deleted + [need for stage in stages for need in disk_needs(stage, recipe, run, base, anew=frees > 0)]
    need_room(needs)
    if stages[0].verb == "train" and len(stages) == 1:
        with contextlib.suppress(BaseError):
            later = STAGES[STAGES.index(stages[0]) + 1 :]
            try:
                need_room([*needs, *(need for stage in later for need in disk_needs(stage, recipe, run, base))])
            except ResourceError as error:
                warn(f"there is room to train, but not for what comes after it: {error.what}")


def _to_come(stages: Sequence[Stage], recipe: Recipe, run: Run, base_digest: str) -> list[Stage]:
    """The stages that will be done, the first of which is known to be: prepare may make the same rows again."""
    first, *later = stages
    if first is STAGES[0]:
        with contextlib.suppress(ResumeError):  # a stage before it is not there yet
            while later and stands(later[0], recipe, run, base_digest):
                del later[0]
    return [first, *later]


def need_room(needs: Sequence[Need]) -> None:
    """Raise ResourceError, with the sum and the parts, if the disks do not hold all of this, one after another."""
    disks = {disk_of(need.place).stat().st_dev: disk_of(need.place) for need in needs}
    for disk, place in disks.items():
        here = [need for need in needs if disk_of(need.place).stat().st_dev == disk]
        fullest = _fullest(here)
        parts = ", ".join(f"{need.what} {need.takes / 1e9:.2f} GB" for need in here if need.what != DELETED)
        fix = "free some space, ask for fewer types in export.gguf, or put the run elsewhere with --run-dir"
        need_disk(place, fullest, f"what is still to be made ({parts})", f"{fix}, the cache with TUNESMITH_CACHE")


def fullest_bytes(recipe: Recipe, run: Run, base: LocatedBase) -> int:
    """Bytes that all stages of a recipe take of the disks at their fullest, beside what is there now."""
    stages = [stage for stage in STAGES if stage.is_wanted(recipe)]
    return _fullest([need for stage in stages for need in disk_needs(stage, recipe, run, base)])


def _fullest(needs: Sequence[Need]) -> int:
    used = fullest = 0
    for need in needs:
        fullest, used = max(fullest, used + need.takes), used + need.leaves
    return fullest


def disk_needs(stage: Stage, recipe: Recipe, run: Run, base: LocatedBase, anew: bool = False) -> list[Need]:
    """What a stage will write, from the sizes of the base; prepare's rows are small beside it.

    `anew`: what was trained is not there any more by then.
    """
    before = None if anew else read_record(run.path / stage.folder)
    replaced = sum(output["bytes"] for output in before.outputs.values()) if before else 0
    if stage.verb == "train":
        adapter = 4 * _adapter_numbers(recipe, base.folder)
        checkpoint = 3 * adapter  # with both moments of AdamW
        keep = recipe.checkpoint.keep
        there = 0 if anew else sum(map(bytes_of, checkpoint_folders(run.checkpoints)))
        most = max(0, (keep.last + keep.best + 1) * checkpoint - there)  # one is written before one is deleted
        return [
            Need("checkpoints", run.path, most, max(0, most - checkpoint)),
            Need("adapter", run.path, adapter, adapter - replaced),
        ]
    if stage.verb == "merge":
        model = sum(file.stat().st_size for file in weight_files(base.folder))
        return [Need("merged model", run.path, model, model - replaced)]
    if stage.verb == "export":
        types: list[GgufType] = ["F16", *recipe.export.gguf]
        sizes = {kind: expected_bytes(base.folder, kind) for kind in types}
        begun = bytes_of(beside(run.gguf, DRAFT))  # goes on, or is deleted first
        stays = sum(sizes[kind] for kind in recipe.export.gguf)
        words = read_json(base.folder / CONFIG).get("vocab_size", 0)
        proof = 4 * recipe.export.positions * words if isinstance(words, int) else 0  # what files are compared with
        adapter = 0
        if recipe.export.adapter:
            adapter = 2 * _adapter_numbers(recipe, base.folder)
            proof += proof + sizes["F16"]  # of the base, which the adapter's file is proved on
        takes = max(0, sum(sizes.values()) + adapter + proof - begun)
        return [Need("GGUF files", run.path, takes, stays + adapter - begun - replaced)]
    if stage.verb == "evaluate":
        name = f"{base.name.replace(':', '/').split('/')[-1]}-{recipe.evaluate.gguf}.gguf"
        if not any((cache_folder() / "base-gguf").glob(f"*/{name}")):
            size = expected_bytes(base.folder, recipe.evaluate.gguf)
            return [Need("GGUF file of the base", cache_folder(), size, size)]
    return []


def _adapter_numbers(recipe: Recipe, base: Path) -> int:
    """About how many numbers the adapter has: rank rows and columns for each matrix that gets one."""
    targets, adapted = recipe.lora.targets, 0
    for name, info in read_index(base).items():
        layer = name.removesuffix(".weight").rpartition(".")[2]
        wanted = layer in targets if targets != "all-linear" else not re.search("embed|lm_head", name)
        adapted += recipe.lora.rank * sum(info.shape) if wanted and len(info.shape) == 2 else 0
    return adapted
