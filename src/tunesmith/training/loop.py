"""The training loop: evaluate, save, update. Read `fit` top to bottom; what it calls is one screen away.

Shapes: T tokens of a micro-batch, S supervised positions, D hidden width.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.console import progress, say, warn
from tunesmith.errors import ProofError
from tunesmith.model.adapter import adapter_digest
from tunesmith.model.base import head, hidden_states
from tunesmith.model.batch import Batching, supervised_in
from tunesmith.model.loss import loss_sum
from tunesmith.recipe import Recipe
from tunesmith.runs import Run, checkpoint_name
from tunesmith.tokens.rows import Array, TokenRows
from tunesmith.training.device import peak_memory_bytes
from tunesmith.training.metrics import DIGEST, Metrics
from tunesmith.training.sample import Sampler
from tunesmith.training.saver import Saver
from tunesmith.training.schedule import lr_at
from tunesmith.training.score import bits_per_byte, measure_held_out
from tunesmith.training.state import TrainState
from tunesmith.training.stop import STEP_S, StopWatch

MOST_NOT_FINITE = 5
"""Steps in a row without a finite loss and gradient after which training ends."""
PROVED_AFTER = 10
"""So many steps after a checkpoint the digest of the adapter is kept: what `verify` trains again."""
ROWS_NAMED = 8


@dataclass(frozen=True)
class Job:
    """Everything a run trains with that does not change."""

    recipe: Recipe
    run: Run
    rows: TokenRows
    held_out: TokenRows
    steps: Sequence[Sequence[int]]
    """Row numbers of each optimizer step."""
    batching: Batching
    held_out_batching: Batching
    decides: dict[str, Any]
    """What must be the same on resume."""
    conditions: dict[str, Any]
    """What must be the same for the same bits, beside the recipe."""
    selected: Array | None = None
    """Numbers of the rows of an epoch, one as often as it is trained on; None: every row once."""


def fit(job: Job, state: TrainState, watch: StopWatch, saver: Saver, sampler: Sampler | None = None) -> None:
    """Evaluate, save, update, until the last step or the early stop. `sampler` asks at each evaluation."""
    train, at = job.recipe.train, state.progress
    steps, step_s, evaluation_s = len(job.steps), 0.0, 0.0
    with progress("train", steps, done=at.step, unit="steps") as advance:
        while True:
            last, best = at.step == steps, False
            if at.evaluated_step != at.step and (at.step % train.evaluate_every_steps == 0 or last):
                if saver.is_due(at.step, evaluation_s):
                    saver.save(state)  # whoever is killed while it is measured has lost no more than the cadence
                began_s = time.monotonic()
                best = evaluate(job, state, watch, saver.metrics)
                if sampler:
                    sampler.sample(state.model, at)
                evaluation_s = time.monotonic() - began_s
            last = last or at.stopped_early(train.early_stopping)
            if best or (saver.is_due(at.step, step_s) and not last):
                saver.save(state, best)  # the best one must be on disk
            if last:
                saver.finish(state)
                return
            watch.reserve_s = saver.took_s
            watch.check(step_s)
            line = update(job, state, watch, saver.metrics)
            step_s = line["seconds"]
            if step_s >= STEP_S:
                saver.keep_spare(state)
            loss = "no number" if line["loss"] is None else f"{line['loss']:.3f}"
            advance(1, f"loss {loss}, {line['tokens_per_s']:.0f} tokens/s, {line['memory_gb']:.1f} GB")
            watch.step_done()


def evaluate(job: Job, state: TrainState, watch: StopWatch, metrics: Metrics) -> bool:
    """Measure the held-out loss, and note it; True if it is the best of a trained adapter. Raises StopRequested."""
    at = state.progress
    found = measure_held_out(state.model, job.held_out, job.held_out_batching, watch.check)
    bits = bits_per_byte(found, job.held_out, at.bits_per_byte_definition)
    say(f"train: step {at.step} of {len(job.steps)}, held-out loss {found.loss:.4f} ({bits:.3f} bits per byte)")
    with state.lock:
        best = at.note_held_out(found, job.recipe.train.early_stopping)
        metrics.append({"step": at.step, "held_out_loss": found.loss, "bits_per_byte": bits})
    return best


def update(job: Job, state: TrainState, watch: StopWatch, metrics: Metrics) -> dict[str, Any]:
    """One optimizer step, and its line in the metrics, with the adapter's digest where somebody may prove it.

    Its loss is the sum over its supervised tokens divided by their number. Raises StopRequested between micro-batches;
    the state is then still that of the step before.
    """
    started_s, at = time.monotonic(), state.progress
    loss, norm, tokens, supervised = gradient(job, state, watch)
    lr = lr_at(at.step, len(job.steps), job.recipe.train)
    with state.lock:
        _apply(state, lr, _is_sound(job, state, norm, loss))
        elapsed_s = time.monotonic() - started_s
        at.step, at.tokens, at.seconds = at.step + 1, at.tokens + tokens, at.seconds + elapsed_s
        at.supervised_tokens += supervised
        line: dict[str, Any] = {
            "step": at.step, "loss": loss if math.isfinite(loss) else None, "lr": lr,
            "grad_norm": norm if math.isfinite(norm) else None, "tokens": tokens, "supervised_tokens": supervised,
            "seconds": round(elapsed_s, 3), "tokens_per_s": round(tokens / elapsed_s, 1),
            "memory_gb": round(peak_memory_bytes(job.batching.device) / 1e9, 2),
        }  # fmt: skip
        if _is_proved(job, at.step):
            line[DIGEST] = adapter_digest(state.model)
        metrics.append(line)
    return line


def _is_proved(job: Job, step: int) -> bool:
    """Whether the adapter's digest is kept: after measurements, at the end, and some steps after a checkpoint."""
    if step == len(job.steps) or step % job.recipe.train.evaluate_every_steps == 0:
        return True
    from_step = step - PROVED_AFTER
    return from_step == 0 or (job.run.checkpoints / checkpoint_name(from_step)).is_dir()


def gradient(job: Job, state: TrainState, watch: StopWatch) -> tuple[float, float, int, int]:
    """Put the next step's gradient, unscaled and clipped, in place: (loss, norm unclipped, tokens, supervised)."""
    config, at = job.recipe.train, state.progress
    rows = job.steps[at.step]
    supervised, tokens = supervised_in(job.rows, rows), 0
    total = torch.zeros((), device=job.batching.device)
    state.optimizer.zero_grad()
    for batch in job.batching.micro_batches(job.rows, rows):
        watch.check()
        state.keys.keys_T = batch.dropout_keys(job.recipe.seed, at.step) if job.recipe.lora.dropout else None
        hidden_TD = hidden_states(state.model, batch.ids_T, batch.positions_T, batch.packing)
        loss = loss_sum(hidden_TD[batch.at_S], head(state.model), batch.targets_S) / supervised
        state.scaler.scale(loss).backward()
        total += loss.detach()
        tokens += batch.tokens
    state.keys.keys_T = None
    watch.check()
    state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.clip).item()
    return total.item(), norm, tokens, supervised


def _apply(state: TrainState, lr: float, sound: bool) -> None:
    """Take the gradient's step, unless it is not `sound`; the loss scaler leaves out by itself what it must."""
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    if sound or state.scaler.is_enabled():
        state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.applied is None and next(iter(state.optimizer.param_groups[0]["params"])).is_cuda:
        state.applied = torch.cuda.Event()
    if state.applied is not None:
        state.applied.record()


def _is_sound(job: Job, state: TrainState, norm: float, loss: float) -> bool:
    """Whether the step may be applied: its loss and gradient are finite.

    One that is not is counted, and, where fp16's loss scaler may not still be finding a scale, noted by its position.
    Raises ProofError for a gradient of zero, and after MOST_NOT_FINITE in a row.
    """
    finite, at = math.isfinite(norm) and math.isfinite(loss), state.progress
    scaling = not finite and state.scaler.is_enabled() and state.scaler.get_scale() >= 1
    at.skipped = 0 if finite else at.skipped + (not scaling)
    at.skipped_in_all += not finite
    if not finite and not scaling:
        at.not_finite.append(at.step + 1)
        warn(f"step {at.step + 1} is not applied: its gradient's norm is {norm}, its loss {loss:.4g}")
    if norm == 0 or at.skipped >= MOST_NOT_FINITE:
        rows = [int(row) for row in job.steps[at.step]]
        more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
        in_a_row = f", as of {at.skipped} steps in a row" if at.skipped > 1 else ""
        raise ProofError(
            f"step {at.step + 1}: the gradient's norm is {norm}, loss {loss:.4g}{in_a_row}; its training rows are "
            f"{', '.join(map(str, rows[:ROWS_NAMED]))}{more} (data/rows.parquet, counted from 0)",
            fix="lower train.lr, or set train.precision to fp32 or bf16; checkpoints made before are whole",
        )
    return finite
