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

from tunesmith.console import progress, say
from tunesmith.errors import ProofError
from tunesmith.model.adapter import adapter_digest
from tunesmith.model.base import head, hidden_states
from tunesmith.model.batch import Batching, supervised_in
from tunesmith.model.loss import loss_sum
from tunesmith.recipe import Recipe
from tunesmith.runs import Run
from tunesmith.tokens.rows import TokenRows
from tunesmith.training.checkpoint import save_checkpoint
from tunesmith.training.device import peak_memory_bytes
from tunesmith.training.metrics import Metrics
from tunesmith.training.sample import Sampler
from tunesmith.training.schedule import lr_at
from tunesmith.training.score import bits_per_byte, measure_held_out
from tunesmith.training.state import INFINITY, TrainState
from tunesmith.training.stop import StopWatch
from tunesmith.values import cadence

PROVED_AFTER = 10  # steps after a checkpoint at which the adapter's digest is kept: what `verify` trains again
MOST_SKIPPED = 20  # the scale starts at 65,536 and halves each time: after 20 it is not the scale


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


def fit(job: Job, state: TrainState, watch: StopWatch, sampler: Sampler | None = None) -> None:
    """Evaluate, save, update, until the last step or the early stop. `sampler` asks at each evaluation."""
    train, rule, at = job.recipe.train, job.recipe.train.early_stopping, state.progress
    metrics, every = Metrics(job.run.metrics), cadence(job.recipe.checkpoint.every)
    steps, saved_s, saved_step = len(job.steps), time.monotonic(), at.step
    with progress("train", steps, done=at.step, unit="steps") as advance:
        while True:
            last = at.step == steps
            if at.evaluated_step != at.step and (at.step % train.evaluate_every_steps == 0 or last):
                found = measure_held_out(state.model, job.held_out, job.held_out_batching, watch.check)
                bits = bits_per_byte(found, job.held_out, at.bits_per_byte_definition)
                say(f"train: step {at.step} of {steps}, held-out loss {found.loss:.4f} ({bits:.3f} bits per byte)")
                if at.note_held_out(found, rule):
                    saved_step = -1  # the best one must be on disk
                metrics.append({"step": at.step, "held_out_loss": found.loss, "bits_per_byte": bits})
                if sampler:
                    sampler.sample(state.model, at)
            last = last or at.stopped_early(rule)
            due = at.step - saved_step >= (every.steps or INFINITY)
            due = due or time.monotonic() - saved_s >= (every.seconds or INFINITY)
            if saved_step < 0 or (due and saved_step != at.step) or last:
                metrics.flush()
                if sampler:
                    sampler.flush()
                keep = job.recipe.checkpoint.keep
                save_checkpoint(job.run.checkpoints, state, job.decides, job.conditions, keep, steps)
                saved_s, saved_step = time.monotonic(), at.step
            if last:
                return
            line = update(job, state, watch)
            if at.step == steps or _is_proved(job, at.step - PROVED_AFTER):
                line["adapter_sha256"] = adapter_digest(state.model)
            metrics.append(line)
            advance(1, f"loss {line['loss']:.3f}, {line['tokens_per_s']:.0f} tokens/s, {line['memory_gb']:.1f} GB")
            watch.step_done()


def _is_proved(job: Job, step: int) -> bool:
    """Whether training can go on from this step: the first, or one with a checkpoint."""
    return step == 0 or (job.run.checkpoints / f"step-{step:06d}").is_dir()


def update(job: Job, state: TrainState, watch: StopWatch) -> dict[str, Any]:
    """One optimizer step. Its loss is the sum over its supervised tokens divided by their number.

    Raises StopRequested between micro-batches; the state is then still that of the step before.
    """
    started_s, config, at = time.monotonic(), job.recipe.train, state.progress
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
    _check_gradient(norm, state, total.item())
    lr = lr_at(at.step, len(job.steps), config)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.scaler.step(state.optimizer)
    state.scaler.update()
    elapsed_s = time.monotonic() - started_s
    at.step, at.tokens, at.seconds = at.step + 1, at.tokens + tokens, at.seconds + elapsed_s
    at.supervised_tokens += supervised
    return {
        "step": at.step, "loss": total.item(), "lr": lr, "grad_norm": norm if math.isfinite(norm) else None,
        "tokens": tokens, "supervised_tokens": supervised, "seconds": round(elapsed_s, 3),
        "tokens_per_s": round(tokens / elapsed_s, 1),
        "memory_gb": round(peak_memory_bytes(job.batching.device) / 1e9, 2),
    }  # fmt: skip


def _check_gradient(norm: float, state: TrainState, loss: float) -> None:
    """Raise ProofError for a gradient that is zero or, unless the loss scaler may still find a scale, not finite."""
    finite, at = math.isfinite(norm), state.progress
    at.skipped = 0 if finite else at.skipped + 1
    at.skipped_in_all += not finite
    if norm == 0 or at.skipped > (MOST_SKIPPED if state.scaler.is_enabled() else 0):
        raise ProofError(
            f"step {at.step + 1}: the gradient's norm is {norm}, loss {loss:.4g}",
            fix="lower train.lr, or set train.precision to fp32 or bf16; checkpoints made before are whole",
        )
