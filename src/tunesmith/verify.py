"""VERB verify: what a sceptic runs. Everything in a run is looked at again, and what can be computed is computed anew.

Nothing is written in the run folder; what needs room has a folder of its own, which is deleted at the end.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tunesmith.boundary import sigterm_as_ctrl_c
from tunesmith.checks.rerun import PACKED, RESUME, check_resume
from tunesmith.checks.saved import BEST, check_best, check_checkpoints, damaged_checkpoints
from tunesmith.checks.shipped import GGUF, LORA, MASK, MERGED, check_gguf, check_lora, check_mask, check_merged
from tunesmith.checks.verdict import FAILED, NOT_YET, OK, SKIPPED, Verdict, tried
from tunesmith.checks.written import (
    Written,
    check_counts,
    check_files,
    check_inputs,
    check_records,
    damaged_files,
    read_written,
    refuse_nothing,
    why_not,
)
from tunesmith.console import say
from tunesmith.decides import kept_recipe
from tunesmith.errors import BaseError, ProofError, ResumeError
from tunesmith.gguf.read import convert
from tunesmith.lock import looked_at
from tunesmith.runs import Run, step_of
from tunesmith.stages import STAGES
from tunesmith.weights.locate import LocatedBase, locate_base

BASE = "base"
MOST_DETAILS = 10
NEEDS = {
    BASE: ("recipe.yaml", "data"),
    MASK: ("data",),
    BEST: ("adapter",),
    RESUME: ("recipe.yaml", "data", "metrics.jsonl"),
    MERGED: ("recipe.yaml", "data", "adapter", "model"),
    GGUF: ("recipe.yaml", "data", "adapter", "model", "gguf"),
    LORA: ("recipe.yaml", "data", "adapter", "gguf"),
}
"""Check -> the files and stages' folders that it reads."""
OF_BASE = (MASK, PACKED, RESUME, MERGED, GGUF, LORA)
"""Checks that compute with the base."""


@dataclass(frozen=True)
class Verified:
    """What was found in one run."""

    run: Path
    manifest_sha256: str | None
    verdicts: list[Verdict]

    def failed(self) -> list[Verdict]:
        """The lines that FAILED."""
        return [verdict for verdict in self.verdicts if verdict.state == FAILED]

    def text(self, as_json: bool = False) -> str:
        """A table, one line an invariant; or the same for scripts."""
        if as_json:
            return json.dumps(asdict(self) | {"run": str(self.run), "ok": not self.failed()}, indent=1)
        wide = max(len(verdict.name) for verdict in self.verdicts)
        lines = [f"{'manifest.json':<{wide}}  sha256 {self.manifest_sha256 or 'of nothing'}"]
        for verdict in self.verdicts:
            lines.append(f"{verdict.name:<{wide}}  {verdict.state:<7}  {verdict.says}")
            lines += [f"{'':<{wide}}           {detail}" for detail in verdict.details[:MOST_DETAILS]]
            if more := len(verdict.details) - MOST_DETAILS:
                lines += [f"{'':<{wide}}           and {more} more; --json names all"] if more > 0 else []
        return "\n".join(lines)

    def refuse_failed(self) -> None:
        """Raise ProofError where a line FAILED."""
        if failed := self.failed():
            names = ", ".join(verdict.name for verdict in failed)
            fix = "put the files back from a copy; or delete the folder that is named, and type `tunesmith run` again"
            raise ProofError(f"{self.run} does not hold: {names} FAILED", fix=fix, where=failed[0].says)


def verify(path: Path, steps: int, as_json: bool, show: Callable[[str], None]) -> None:
    """Show what is found in a run. Raises ProofError where a line FAILED, and as `look`."""
    found = look(path, steps)
    show(found.text(as_json))
    found.refuse_failed()


def look(path: Path, steps: int = 10) -> Verified:
    """Look at everything in a run, and measure anew what can be; at most `steps` steps are trained again.

    Raises ResumeError for a folder that is no run, and where another process works in it.
    """
    run = Run(path)
    refuse_nothing(run)
    with _nobody_in(run), sigterm_as_ctrl_c():
        say("verify: reading every file")
        written = read_written(run)
        wrong, checkpoints = damaged_files(written), damaged_checkpoints(run)
        verdicts = [
            check_files(written, wrong),
            check_records(written),
            check_inputs(written),
            check_counts(written),
            check_checkpoints(run, checkpoints),
            *_Anew(written, wrong, checkpoints, steps).verdicts(),
        ]
    return Verified(path, written.digest, verdicts)


@contextlib.contextmanager
def _nobody_in(run: Run) -> Iterator[None]:
    """In the block no other process works in the run."""
    with looked_at(run) as process:
        if process:
            what = f"process {process} works in {run.path}, so it is not what it will be"
            raise ResumeError(what, fix="wait for it or stop it, and type the same again")
        yield


@dataclass(frozen=True)
class _Anew:
    """What is computed anew; a check that cannot be done says why."""

    written: Written
    wrong: Mapping[str, str]
    """File -> what is wrong with it."""
    checkpoints: Mapping[str, str]
    """Checkpoint -> what is wrong with it, empty where nothing is."""
    steps: int

    def verdicts(self) -> Iterator[Verdict]:
        """The lines of the table, as they are found."""
        run = self.written.run
        yield from self._tried(BEST, lambda: [check_best(self.written, self.checkpoints)])
        located: list[LocatedBase] = []
        (found,) = self._tried(BASE, lambda: [self._located(located)])
        yield found
        if found.state != OK:
            state = NOT_YET if found.state == NOT_YET else SKIPPED
            yield from (Verdict(name, state, f"{BASE}: {found.says}") for name in OF_BASE)
            return
        recipe, base = kept_recipe(run), located[0]
        whole = [step_of(name) for name, reason in self.checkpoints.items() if not reason]
        yield from self._tried(MASK, lambda: [check_mask(self.written, base)])
        resumed = self._tried(RESUME, lambda: check_resume(recipe, run, base, whole, self.steps))
        if PACKED not in [verdict.name for verdict in resumed]:  # it ended before that was known
            state = NOT_YET if resumed[0].state == NOT_YET else SKIPPED
            yield Verdict(PACKED, state, f"{RESUME}: {resumed[0].says}")
        yield from resumed
        yield from self._tried(MERGED, lambda: [check_merged(run, base)])
        yield from self._tried(GGUF, lambda: [check_gguf(recipe, run, base)])
        yield from self._tried(LORA, lambda: [check_lora(recipe, run, base)])

    def _tried(self, name: str, work: Callable[[], list[Verdict]]) -> list[Verdict]:
        if reason := why_not(self.written, self.wrong, *NEEDS[name]):
            return [replace(reason, name=name)]
        say(f"verify: {name}")
        return tried(name, work)

    def _located(self, found: list[LocatedBase]) -> Verdict:
        """Whether the base is here, and the one that the run was made from; it is put into `found`."""
        recipe = kept_recipe(self.written.run)
        try:
            base = locate_base(recipe.base, convert)
        except BaseError as error:
            return Verdict(BASE, SKIPPED, error.what)
        if base.digest != self.written.records[STAGES[0].folder].inputs.get("base"):
            return Verdict(BASE, FAILED, f"{recipe.base} is not what the run was made from: its files are others now")
        found.append(base)
        return Verdict(BASE, OK, f"{recipe.base} is what the run was made from")
