"""The resume proof: some steps are trained again from a checkpoint, and end in the adapter that the trainer had then.

All of it is in a scratch folder: a run folder of links to the rows and the checkpoint, so that nothing of the run is
written. Bit for bit where device, threads and versions are those of the checkpoint; elsewhere losses and gradients are
compared, and the verdict says so.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.checks.verdict import FAILED, NOT_YET, OK, SKIPPED, Verdict, proved
from tunesmith.console import progress
from tunesmith.decides import adapter_needs
from tunesmith.errors import ProofError
from tunesmith.json_file import json_lines
from tunesmith.machine import usable_cores
from tunesmith.model.adapter import adapter_digest
from tunesmith.recipe import Recipe
from tunesmith.record import Proof
from tunesmith.runs import Run, checkpoint_name
from tunesmith.training.loop import Job, update
from tunesmith.training.memory import decide_autos
from tunesmith.training.metrics import DIGEST, Metrics, kept_digests
from tunesmith.training.saved import changes, read_state, why_unfit
from tunesmith.training.stop import StopWatch
from tunesmith.training.train import begin, prepare_job
from tunesmith.weights.locate import LocatedBase

RESUME, PACKED, COMPILED = "resume", "packed = alone", "compiled = eager"
FP32, WIDER = {"loss": 1e-5, "grad_norm": 1e-3}, {"loss": 3e-3, "grad_norm": 5e-2}
# relative. In ten steps with sums of another order: 5e-7 of the loss and 5e-7 of the norm in fp32 (SmolLM2 135M), 7e-5
# and 1e-3 in bf16 (a random Llama of 12 layers); not measured between kinds of GPU
SMALLEST = 1e-12
AS_IT_WAS = ("micro_batch_tokens", "recompute", "deterministic")
"""Fields of `train` that a run may change between two calls, and that decide its bits: a checkpoint keeps them."""


@dataclass(frozen=True)
class Stretch:
    """Steps that are trained again."""

    start: int
    """Step of the checkpoint; 0: the fresh adapter."""
    stop: int
    """The step after which the trainer kept the adapter's digest."""
    digest: str


@dataclass(frozen=True)
class Trained:
    """What training again gave."""

    lines: list[dict[str, Any]]
    """As metrics.jsonl has them, the last with the adapter's digest."""
    proofs: list[Proof]
    machine: dict[str, Any]
    """The conditions here, as a checkpoint has them."""
    precision: str


def pick_stretch(run: Run, whole: list[int], most: int) -> Stretch | str:
    """The longest stretch of at most `most` steps from one of the steps in `whole`, or, where there is none, from the
    start; or why there is none.
    """
    kept = kept_digests(run)
    if not kept:
        return f"{run.metrics.name} has no digest of the adapter yet, or an older version trained it"
    pairs = [(stop - start, start, stop) for start in (0, *whole) for stop in kept if stop > start]
    if near := [pair for pair in pairs if pair[0] <= most]:
        _, _, start, stop = max((start > 0, length, start, stop) for length, start, stop in near)  # it is resumed
        return Stretch(start, stop, kept[stop])
    least = min(pairs)[0] if pairs else 0
    return f"the trainer kept no digest within {most} steps of a checkpoint; --steps {least} reaches one"


def check_resume(
    recipe: Recipe, run: Run, base: LocatedBase, whole: list[int], most: int
) -> list[Verdict]:  # fmt: skip
    """Train a stretch again; verdicts on it, and on the proofs that come before the first step.

    `whole`: steps of the checkpoints that are whole.
    """
    stretch = pick_stretch(run, whole, most)
    start = stretch.start if isinstance(stretch, Stretch) else max(whole, default=0)
    machine = _machine_at(run, start, whole)
    device = _device(machine)
    if device is None and machine:
        why = f"it was trained on {machine['device']}, and here is no GPU: another kind of device is no proof"
        return [Verdict(name, SKIPPED, why) for name in (PACKED, RESUME)]
    again = _trained_again(recipe, run, base, stretch if isinstance(stretch, Stretch) else start, machine)
    found = [_of_proof(proof) for proof in again.proofs]
    if not isinstance(stretch, Stretch):
        state = SKIPPED if run.adapter.exists() else NOT_YET
        return [*found, Verdict(RESUME, state, stretch)]
    return [*found, _compared(run, stretch, again, _why_other_bits(run, stretch, whole, machine, again.machine))]


def _of_proof(proof: Proof) -> Verdict:
    name = COMPILED if proof.name.startswith(COMPILED) else PACKED
    return proved(name, [proof], "")


def _machine_at(run: Run, step: int, whole: list[int]) -> dict[str, Any]:
    """What the bits after a step depend on, as the checkpoint has it; of step 0, as the oldest has it where nothing had
    interrupted the training before that. Empty: not known.
    """
    if step:
        return dict(_state(run, step)["machine"])
    first = _state(run, min(whole)) if whole else {}
    return dict(first["machine"]) if first and not first["progress"].get("interruptions") else {}


def _state(run: Run, step: int) -> dict[str, Any]:
    return read_state(run.checkpoints / checkpoint_name(step))


def _device(machine: Mapping[str, Any]) -> torch.device | None:
    """The kind of device that trained, here; None where there is none."""
    if str(machine.get("device", "")).startswith("CPU"):
        return torch.device("cpu")
    return torch.device("cuda:0") if torch.cuda.is_available() else None


def _trained_again(
    recipe: Recipe, run: Run, base: LocatedBase, stretch: Stretch | int, machine: Mapping[str, Any]
) -> Trained:  # fmt: skip
    """Train the stretch; of a mere step, what comes before a step is done there. The one place that knows training."""
    start, stop = (stretch.start, stretch.stop) if isinstance(stretch, Stretch) else (stretch, stretch)
    as_it_was = {name: machine[name] for name in AS_IT_WAS if name in machine}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=as_it_was)})
    device = _device(machine) or torch.device("cpu")
    settings, inputs = adapter_needs(recipe, run, base.digest)
    with tempfile.TemporaryDirectory(prefix="tunesmith-verify-") as folder, _torch_as_it_was(machine):
        scratch = Run(Path(folder))
        scratch.data.symlink_to(run.data.resolve())
        if run.ancestor.is_dir():
            scratch.ancestor.symlink_to(run.ancestor.resolve())
        if start:
            name = checkpoint_name(start)
            if why := why_unfit(run.checkpoints / name):
                raise ProofError(f"{name}: {why}", fix="delete this checkpoint; an older one is gone on from")
            scratch.checkpoints.mkdir()
            (scratch.checkpoints / name).symlink_to((run.checkpoints / name).resolve())
        recipe = decide_autos(recipe, base.folder, device)
        job: Job = prepare_job(recipe, scratch, device, decides={"settings": settings, "inputs": inputs})
        proofs: list[Proof] = []
        state, lines, watch = begin(job, base, proofs), list[dict[str, Any]](), StopWatch(None)
        metrics = Metrics(scratch.metrics)
        with progress("verify: training again", stop - start, unit="steps") as advance:
            while state.progress.step < stop:
                lines.append(update(job, state, watch, metrics))
                advance(1, f"loss {lines[-1]['loss']}")
        if lines:
            lines[-1][DIGEST] = adapter_digest(state.model)
        return Trained(lines, proofs, json.loads(json.dumps(job.conditions)), recipe.train.precision)


@contextlib.contextmanager
def _torch_as_it_was(machine: Mapping[str, Any]) -> Iterator[None]:
    """In the block torch has the threads of the training, where this machine has as many cores; then its own again."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    wanted = machine.get("threads")
    try:
        if isinstance(wanted, int) and 0 < wanted <= usable_cores():
            torch.set_num_threads(wanted)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _why_other_bits(
    run: Run, stretch: Stretch, whole: list[int], then: Mapping[str, Any], now: Mapping[str, Any]
) -> str:
    """Why the bits may be others here than they were; empty where they must be the same."""
    if not then:
        return "the training was interrupted before its oldest checkpoint"
    if changed := changes(dict(then), dict(now)):
        return "; ".join(changed)
    if not str(then.get("device", "")).startswith("CPU") and not then.get("deterministic"):
        return "on a GPU, without train.deterministic"
    later = [step for step in whole if step >= stretch.stop]
    if not later:
        return "no later checkpoint says whether the training went on elsewhere"
    before = _state(run, stretch.start)["progress"].get("notes", []) if stretch.start else []
    notes = _state(run, min(later))["progress"].get("notes", [])
    return "; ".join(notes[len(before) :])


def _compared(run: Run, stretch: Stretch, again: Trained, why_other: str) -> Verdict:
    """The verdict of a stretch: the same bits; where they may be others, losses and gradients within a tolerance."""
    lines, _ = json_lines(run.metrics)
    was = {line["step"]: line for _, line in lines if "loss" in line and isinstance(line.get("step"), int)}
    where = checkpoint_name(stretch.start) if stretch.start else "the fresh adapter"
    steps = f"steps {stretch.start + 1} to {stretch.stop}, from {where}"
    limits = FP32 if again.precision == "fp32" else WIDER
    apart, worst = _first_apart(was, again.lines, limits)
    digest = again.lines[-1][DIGEST]
    same = f"adapter {digest[:16]}"
    if digest == stretch.digest and not apart:
        return Verdict(RESUME, OK, f"{steps}: bit for bit the same, {same}")
    if digest == stretch.digest:
        return Verdict(RESUME, FAILED, f"{steps}: the adapter is the same, and {run.metrics.name} is not: {apart}")
    if not why_other:
        first = apart or _first_apart(was, again.lines, {"loss": 0.0, "grad_norm": 0.0})[0]
        seen = f"; {first}" if first else ""
        return Verdict(RESUME, FAILED, f"{steps}: {same}, and the trainer had {stretch.digest[:16]}{seen}")
    if apart:
        return Verdict(RESUME, FAILED, f"{steps}: {apart}", (f"not the same bits: {why_other}",))
    found = ", ".join(f"{name} within {worst[name]:.1g} (limit {limit:g})" for name, limit in limits.items())
    return Verdict(RESUME, OK, f"{steps}: state-exact, not bit-exact: {found}", (f"not the same bits: {why_other}",))


def _first_apart(
    was: Mapping[int, Mapping[str, Any]], now: list[dict[str, Any]], limits: Mapping[str, float]
) -> tuple[str, dict[str, float]]:
    """The first number that is further off than its limit, in words, empty if none is; and the largest relative
    difference of each.
    """
    first, worst = "", dict.fromkeys(limits, 0.0)
    for line in now:
        for name, limit in limits.items():
            then, here = was.get(line["step"], {}).get(name), line[name]
            if then is None and here is None:  # of fp16, where the scale was too large
                continue
            off = float("inf")  # it is there once and no number the other time
            if isinstance(then, int | float) and isinstance(here, int | float):
                off = abs(here - then) / max(abs(then), SMALLEST)
            worst[name] = max(worst[name], off)
            if not off <= limit and not first:
                first = f"{name} of step {line['step']} is {here}, and was {then}"
    return first, worst
