"""VERB train: conversations in, the best adapter out. Read `_fit` top to bottom; what it calls is one screen away.

Shapes: T tokens of a micro-batch, S supervised positions, D hidden width.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.console import progress, say, warn
from tunesmith.errors import ProofError, ResourceError, ResumeError
from tunesmith.model.adapter import save_adapter
from tunesmith.model.attention import has_varlen_kernel
from tunesmith.model.base import head, hidden_states, load_base, recompute_layers
from tunesmith.model.lora import attach, mix
from tunesmith.recipe import Recipe, cadence
from tunesmith.recipe_file import dump_recipe
from tunesmith.runs import Record, Run, commit_stage, write_file
from tunesmith.stages import adapter_needs, keep_autos, stands
from tunesmith.tokens.order import rows_of_epoch
from tunesmith.tokens.rows import TokenRows, load_rows
from tunesmith.training.batch import Batching, MicroBatch, supervised_in
from tunesmith.training.checkpoint import ADAPTER, is_whole, resume, save_checkpoint
from tunesmith.training.device import machine, peak_memory_bytes, pick_device, resolve, set_determinism
from tunesmith.training.evaluate import bits_per_byte, held_out_loss
from tunesmith.training.loss import loss_sum
from tunesmith.training.metrics import Metrics, plot_losses
from tunesmith.training.schedule import lr_at
from tunesmith.training.selftest import prove_compiling, prove_packing
from tunesmith.training.state import INFINITY, TrainState, new_state
from tunesmith.training.stop import Paused, StopRequested, StopWatch
from tunesmith.weights.locate import LocatedBase

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
    machine: dict[str, Any]


def train(recipe: Recipe, run: Run, base: LocatedBase) -> tuple[Record, bool]:
    """Train the adapter, from the newest good checkpoint if there is one, and commit the best as run.adapter.

    Raises Paused when told to stop, after a checkpoint; ResumeError for checkpoints of other settings.
    """
    device = pick_device()
    recipe = resolve(keep_autos(recipe, run), base.folder, device)
    settings, inputs = adapter_needs(recipe, run, base.digest)
    if not stands("train", recipe, run, base.digest):
        write_file(run.recipe, dump_recipe(recipe))

    def work(draft: Path) -> dict[str, Any]:
        job = _prepare_job(recipe, run, device, decides={"settings": settings, "inputs": inputs})
        with StopWatch(recipe.train.stop_after) as watch:
            state = _start(job, base)
            try:
                _fit(job, state, watch)
            except StopRequested:
                saved = save_checkpoint(run.checkpoints, state, job.decides, job.machine, recipe.checkpoint.keep)
                plot_losses(Metrics(run.metrics), run.loss_plot)
                say(f"train: stopped at step {state.progress.step}, {saved.name} is saved; the same command goes on")
                raise Paused(watch.exit_code) from None
            except torch.OutOfMemoryError as error:
                raise ResourceError(
                    f"the GPU's memory is full at step {state.progress.step + 1}: {str(error).splitlines()[0]}",
                    fix="--set train.recompute=on, or a smaller train.micro_batch_tokens; the state is saved as it was",
                ) from error
        plot_losses(Metrics(run.metrics), run.loss_plot)
        return _take_best(job, state, base, draft)

    return commit_stage(run.adapter, settings, inputs, work)


def _prepare_job(recipe: Recipe, run: Run, device: torch.device, decides: dict[str, Any]) -> Job:
    """Rows, their order, and how they are batched here."""
    set_determinism(recipe.train)
    rows, held_out = load_rows(run.data)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.train.precision, torch.float32)
    kernel = has_varlen_kernel(device, dtype) and not recipe.train.deterministic
    micro = recipe.train.micro_batch_tokens
    assert isinstance(micro, int)
    batching = Batching(max(micro, int(rows.lengths_N.max())), recipe.train.max_length, device, kernel, static=kernel)
    return Job(
        recipe, run, rows, held_out, _plan(rows, recipe), batching,
        replace(batching, capacity=max(batching.capacity, int(held_out.lengths_N.max()))),
        decides, machine(recipe.train, device),
    )  # fmt: skip


def _plan(rows: TokenRows, recipe: Recipe) -> list[Sequence[int]]:
    """The rows of every optimizer step of the run: a function of the data, the seed and tokens_per_step."""
    steps: list[Sequence[int]] = []
    for epoch in range(math.ceil(recipe.train.epochs)):
        of_epoch = rows_of_epoch(rows.lengths_N.tolist(), recipe.train.tokens_per_step, recipe.seed, epoch)
        share = min(1.0, recipe.train.epochs - epoch)
        steps += of_epoch[: max(1, round(share * len(of_epoch)))]
    return [step for step in steps if supervised_in(rows, step)]


def _start(job: Job, base: LocatedBase) -> TrainState:
    """The model with its adapter, proved to pack, at the newest checkpoint."""
    recipe, device = job.recipe, job.batching.device
    say(f"train: loading {base.name} in {recipe.train.precision} on {job.machine['device']}")
    model = load_base(
        base.folder, precision=recipe.train.precision, device=device, trust_remote_code=recipe.trust_remote_code
    )
    difference = prove_packing(model, job.rows, job.batching)
    say(f"train: packing changes nothing (logits differ by {difference:.1e}, relative)")
    keys = attach(model, recipe.lora, seed=recipe.seed)
    if recipe.train.recompute == "on":
        recompute_layers(model)
    if job.batching.static:
        say("train: compiling the layers, which takes half a minute")
        difference = prove_compiling(model, job.rows, job.batching)
        say(f"train: compiled layers have the gradient they had before (differs by {difference:.1e}, relative)")
    state = new_state(model, keys, recipe.train, device)
    resume(job.run.checkpoints, state, job.decides, job.machine)
    Metrics(job.run.metrics).cut_back(state.progress)
    return state


def _fit(job: Job, state: TrainState, watch: StopWatch) -> None:
    """The training loop: evaluate, save, update, until the last step or the early stop."""
    train, rule, at = job.recipe.train, job.recipe.train.early_stopping, state.progress
    metrics, every = Metrics(job.run.metrics), cadence(job.recipe.checkpoint.every)
    steps, saved_s, saved_step = len(job.steps), time.monotonic(), at.step
    with progress("train", steps, done=at.step, unit="steps") as advance:
        while True:
            last = at.step == steps
            if at.evaluated_step != at.step and (at.step % train.evaluate_every_steps == 0 or last):
                loss = held_out_loss(state.model, job.held_out, job.held_out_batching, watch.check)
                bits = bits_per_byte(loss, job.held_out)
                say(f"train: step {at.step} of {steps}, held-out loss {loss:.4f} ({bits:.3f} bits per byte)")
                if at.note_held_out(loss, rule):
                    saved_step = -1  # the best one must be on disk
                metrics.append({"step": at.step, "held_out_loss": loss, "bits_per_byte": bits})
            last = last or at.stopped_early(rule)
            due = at.step - saved_step >= (every.steps or INFINITY)
            due = due or time.monotonic() - saved_s >= (every.seconds or INFINITY)
            if saved_step < 0 or (due and saved_step != at.step) or last:
                save_checkpoint(job.run.checkpoints, state, job.decides, job.machine, job.recipe.checkpoint.keep)
                saved_s, saved_step = time.monotonic(), at.step
            if last:
                return
            line = update(job, state, watch)
            metrics.append(line)
            advance(1, f"loss {line['loss']:.3f}, {line['tokens_per_s']:.0f} tokens/s, {line['memory_gb']:.1f} GB")
            watch.step_done()


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
        state.keys.keys_T = _dropout_keys(job, at.step, batch)
        hidden_TD = hidden_states(state.model, batch.ids_T, batch.positions_T, batch.packing)
        loss = loss_sum(hidden_TD[batch.at_S], *head(state.model), batch.targets_S) / supervised
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


def _dropout_keys(job: Job, step: int, batch: MicroBatch) -> Tensor | None:
    """One integer a token from (seed, step, row, position), or None without dropout."""
    if not job.recipe.lora.dropout:
        return None
    rows_T = torch.from_numpy(batch.row_of_T).to(batch.positions_T)
    return mix(mix(mix(rows_T + job.recipe.seed * 0x9E37) + step) + batch.positions_T)


def _take_best(job: Job, state: TrainState, base: LocatedBase, draft: Path) -> dict[str, Any]:
    """Write the best checkpoint's adapter into `draft` in PEFT's format. Returns the counts for the record."""
    at, recipe = state.progress, job.recipe
    if at.best_loss >= at.base_loss:
        warn(f"the held-out loss never fell below the base's {at.base_loss:.4f}; try a lower train.lr or other data")
    best = job.run.checkpoints / f"step-{at.best_step:06d}"
    if not is_whole(best):
        raise ResumeError(
            f"the best checkpoint, {best.name}, is missing or damaged",
            fix="delete the checkpoints after it and type the same again: training repeats those steps",
            where=str(job.run.checkpoints),
        )
    save_adapter(draft, best / ADAPTER, recipe.lora, base.name)
    return {
        "steps": at.step,
        "planned_steps": len(job.steps),
        "stopped_early": at.step < len(job.steps),
        "best_step": at.best_step,
        "held_out_loss": at.best_loss,
        "base_held_out_loss": at.base_loss,
        "bits_per_byte": bits_per_byte(at.best_loss, job.held_out),
        "base_bits_per_byte": bits_per_byte(at.base_loss, job.held_out),
        "tokens": at.tokens,
        "supervised_tokens": at.supervised_tokens,
        "train_seconds": round(at.seconds, 1),
        "tokens_per_s": round(at.tokens / max(at.seconds, 1e-9), 1),
        "interruptions": at.interruptions,
        "skipped_steps": at.skipped_in_all,
        "notes": at.notes,
        "base_revision": base.revision,
        "peak_memory_bytes": peak_memory_bytes(job.batching.device),
        "device": job.machine["device"],
        "precision": recipe.train.precision,
    }
