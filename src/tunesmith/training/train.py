"""VERB train: token rows in, the best adapter out: what `auto` means, start, pause, the best checkpoint."""

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tunesmith.console import say, warn
from tunesmith.decides import adapter_needs
from tunesmith.errors import ResourceError, ResumeError
from tunesmith.model.adapter import save_adapter, set_adapter, without_adapter
from tunesmith.model.base import load_base, recompute_layers, refuse_odd_numbers
from tunesmith.model.batch import batching_for, supervised_in
from tunesmith.model.lora import attach, refuse_unmergeable
from tunesmith.proof.compiling import prove_compiling
from tunesmith.proof.packing import prove_packing
from tunesmith.recipe import Recipe, TrainConfig
from tunesmith.record import Proof, Record, damaged_file, read_record
from tunesmith.runs import Run, checkpoint_folders, checkpoint_name, commit_stage, write_manifest
from tunesmith.tokens.order import FEW_STEPS, more_steps, rows_of_epoch
from tunesmith.tokens.rows import Array, TokenRows, load_rows
from tunesmith.tokens.selected import selected_rows, selection_counts, selection_in_words
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.training.checkpoint import is_as_trained, resume
from tunesmith.training.device import conditions, peak_memory_bytes, pick_device, set_determinism
from tunesmith.training.loop import Job, fit
from tunesmith.training.memory import decide_autos, full_memory
from tunesmith.training.metrics import Metrics, Samples, kept_digests, kept_steps, plot_losses
from tunesmith.training.mirror import Mirror
from tunesmith.training.mirrored import mirrored, offer
from tunesmith.training.outcome import outcome, so_far
from tunesmith.training.sample import Sampler, pick_question
from tunesmith.training.saved import ADAPTER, is_whole, what_is_left
from tunesmith.training.saver import Saver
from tunesmith.training.score import bits_per_byte, measure_held_out
from tunesmith.training.state import Progress, TrainState, new_state
from tunesmith.training.stop import Paused, StopRequested, StopWatch, goes_on
from tunesmith.weights.locate import LocatedBase


def train(recipe: Recipe, run: Run, base: LocatedBase) -> tuple[Record, bool]:
    """Train the adapter, from the newest good checkpoint if there is one, and commit the best as run.adapter.

    Raises Paused when told to stop, after a checkpoint; ResumeError for checkpoints of other settings.
    """
    device = pick_device()
    recipe = decide_autos(recipe, base.folder, device)
    settings, inputs = adapter_needs(recipe, run, base.digest)
    proofs: list[Proof] = []

    def work(draft: Path) -> dict[str, Any]:
        _refuse_other_base(run, base)
        job = prepare_job(recipe, run, device, decides={"settings": settings, "inputs": inputs})
        if job.selected is not None:
            say(f"train: {selection_in_words(selection_counts(recipe, job.rows, job.selected))}")
        _warn_of_few_steps(job)
        with StopWatch(recipe.train.stop_after) as watch:
            with _full_memory_named(job):
                state = begin(job, base, proofs)
                _measure_base_of_fork(job, state)
            run.keep_recipe(recipe)  # it was not refused: from here on the run has these settings, each auto decided
            write_manifest(run)
            sampler = _sampler(job, base)
            with mirrored(job, watch) as mirror, _saver(job, state, sampler, mirror) as saver:
                watch.rescue = partial(_rescued, state, saver, mirror, watch)
                _fit_or_save(job, state, watch, saver, sampler)
            if watch.signal:  # it came while the mirror was waited for: what comes next would not see it
                raise Paused(state.progress.step, watch.exit_code)
        plot_losses(Metrics(run.metrics), run.loss_plot)
        asked_s = sampler.seconds if sampler else 0.0
        counts = _take_best(job, state, base, draft) | {"sample_seconds": round(asked_s, 1)}
        share = f", and {asked_s / max(state.progress.seconds, 1e-9):.1%} of that time for samples" if sampler else ""
        say(f"train: {_speed(state):.0f} tokens per second of training steps{share}")
        say(f"train: {outcome(counts)}")
        return counts

    return commit_stage(run.adapter, settings, inputs, work, lambda _: proofs)


def _sampler(job: Job, base: LocatedBase) -> Sampler | None:
    """What asks a held-out question at each evaluation; None where the recipe wants none, or there is none to ask."""
    if not job.recipe.train.sample:
        return None
    question = pick_question(job.run.data, job.held_out)
    return Sampler(job.run.samples, question, load_tokenizer(base.folder)) if question else None


@contextmanager
def _saver(job: Job, state: TrainState, sampler: Sampler | None, mirror: Mirror | None) -> Iterator[Saver]:
    """What writes this run's checkpoints, until the block is left."""
    about = {"decides": job.decides, "machine": job.conditions, "planned_steps": len(job.steps)}
    lines = [Metrics(job.run.metrics), *([sampler.lines] if sampler else [])]
    saver = Saver(job.run.checkpoints, job.recipe.checkpoint, about, state.progress, lines)
    if mirror:
        saver.told = partial(offer, mirror, job)
        best = job.run.checkpoints / checkpoint_name(state.progress.best_step)
        for needed in (best, *checkpoint_folders(job.run.checkpoints)[-1:]):  # they may not be there yet
            if needed.is_dir():
                offer(mirror, job, needed, state.progress.best_step)
    try:
        yield saver
    finally:
        saver.close()


def _rescued(state: TrainState, saver: Saver, mirror: Mirror | None, watch: StopWatch) -> str:
    """Save the state from beside the thread that trains; the checkpoint's name, once the mirror had the time left."""
    saved = saver.rescue(state).name
    if mirror:
        mirror.close(watch.left_s)
    return saved


def _fit_or_save(job: Job, state: TrainState, watch: StopWatch, saver: Saver, sampler: Sampler | None) -> None:
    """Train to the end. Once the state is saved, raises Paused where told to stop, ResourceError for full memory."""
    full = ""
    try:
        fit(job, state, watch, saver, sampler)
        watch.check_signal()
    except StopRequested:
        saved = saver.finish(state).name
        if by := watch.taken_over():
            what = f"another machine goes on with this run ({by}); {saved} is saved here"
            raise ResumeError(what, fix="let it; or end it, and type the same again to go on here") from None
        plot_losses(Metrics(job.run.metrics), job.run.loss_plot)
        say(f"train: stopped at step {state.progress.step}, {saved} is saved; {goes_on()}")
        at = state.progress
        if best := so_far(at.best_step, at.best_loss, at.start_loss, at.began_with):
            say(f"train: {best}")
        raise Paused(state.progress.step, watch.exit_code) from None
    except (RuntimeError, MemoryError) as error:
        full = full_memory(error)
        if not full:
            raise
    if full:  # only here the error's traceback, and the activations that it held, are gone
        raise _memory_error(job, state, saver, full)


def _memory_error(job: Job, state: TrainState, saver: Saver, reason: str) -> ResourceError:
    """Save the state, which is that of the step before, and say what is true of it."""
    step = state.progress.step
    state.optimizer.zero_grad()
    state.keys.keys_T = None
    gc.collect()
    torch.cuda.empty_cache()  # nothing where there is no GPU
    try:
        saved = f"the state is saved as {saver.finish(state).name}"
    except ResourceError as error:
        saved = error.what
    except (OSError, RuntimeError, MemoryError) as error:
        why = next(iter(str(error).splitlines()), "out of memory")
        saved = f"the state could not be saved ({why}); {what_is_left(job.run.checkpoints)}"
    return ResourceError(f"memory is full at step {step + 1}: {reason}; {saved}", fix=_less_memory(job))


@contextmanager
def _full_memory_named(job: Job) -> Iterator[None]:
    """For what comes before the first step: there is no state yet that could be lost."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if reason := full_memory(error):
            what = f"memory is full before the first step: {reason}; the run on disk is as it was"
            raise ResourceError(what, fix=f"{_less_memory(job)}; `nvidia-smi` shows who else uses a GPU") from error
        raise


def _less_memory(job: Job) -> str:
    """What helps where memory is full, of what the run may still change."""
    helps = [] if job.recipe.train.recompute == "on" else ["--set train.recompute=on"]
    micro, longest = job.batching.capacity, int(job.rows.lengths_N.max())
    if 0.9 * micro >= longest:  # a batch holds the longest row whatever the recipe says; a little less is no help
        helps.append(f"--set train.micro_batch_tokens={max(longest, micro // 2)}")
    if helps:
        return f"type the same with {' and '.join(helps)}: the run goes on with it"
    return "use a machine with more memory, or another run with a smaller train.max_length or base"


def _refuse_other_base(run: Run, base: LocatedBase) -> None:
    """Raise ResumeError if the adapter that this run begins with was trained on other weights."""
    ancestor = read_record(run.ancestor)
    if ancestor and (file := damaged_file(run.ancestor)):
        fix = f"put it back from a copy, or fork {ancestor.counts['run']} again, into another --run-dir"
        raise ResumeError(f"{file} is not as it was written, so nothing is trained from it", fix=fix)
    if ancestor and ancestor.inputs["base"] != base.digest:
        what = f"the run begins with an adapter of {ancestor.counts['run']}, which was trained on another base"
        raise ResumeError(what, fix="use the base of that run, or begin without --fork", where=str(run.ancestor))


def _speed(state: TrainState) -> float:
    """Tokens per second of all steps so far, evaluations and checkpoints not counted."""
    return state.progress.tokens / max(state.progress.seconds, 1e-9)


def prepare_job(recipe: Recipe, run: Run, device: torch.device, decides: dict[str, Any]) -> Job:
    """Rows, their order, and how they are batched here."""
    set_determinism(recipe.train)
    rows, held_out = load_rows(run.data)
    selected = selected_rows(recipe, run, rows)
    steps = _plan(rows, recipe.train, recipe.seed, selected)
    batching = batching_for(recipe.train, int(rows.lengths_N.max()), device)
    return Job(
        recipe, run, rows, held_out, steps, batching,
        replace(batching, capacity=max(batching.capacity, int(held_out.lengths_N.max()))),
        decides, conditions(recipe.train, device), selected,
    )  # fmt: skip


def _warn_of_few_steps(job: Job) -> None:
    if len(job.steps) < FEW_STEPS:
        recipe, rows = job.recipe, job.rows
        longest = max(int(rows.lengths_N.max()), int(job.held_out.lengths_N.max()))  # a longer one would be cut
        fix = more_steps(recipe.train, longest, lambda other: len(_plan(rows, other, recipe.seed, job.selected)))
        warn(f"{len(job.steps)} steps teach next to nothing, {FEW_STEPS} to 60 are a start; {fix}")


def _plan(rows: TokenRows, train: TrainConfig, seed: int, selected: Array | None = None) -> list[Sequence[int]]:
    """The rows of every optimizer step of the run: a function of the data, the seed, tokens_per_step and
    packing_lookahead.

    `selected`: the row numbers of an epoch, one as often as it is trained on; None: every row once.
    """
    steps: list[Sequence[int]] = []
    lengths_N = rows.lengths_N if selected is None else rows.lengths_N[selected]
    for epoch in range(math.ceil(train.epochs)):
        of_epoch = rows_of_epoch(lengths_N.tolist(), train, seed, epoch)
        if selected is not None:
            of_epoch = [selected[step].tolist() for step in of_epoch]
        share = min(1.0, train.epochs - epoch)
        steps += of_epoch[: max(1, round(share * len(of_epoch)))]
    return [step for step in steps if supervised_in(rows, step)]


def begin(job: Job, base: LocatedBase, proofs: list[Proof]) -> TrainState:
    """The state at the newest checkpoint, of a model that is proved (into `proofs`) to pack and to compile."""
    state = new_start(job, base, proofs)
    resume(job.run.checkpoints, state, job.decides, job.conditions)
    if not state.progress.step and (steps := kept_steps(job.run)):
        say(f"train: there is no checkpoint, so training begins anew; {job.run.metrics.name} has {steps} steps of it")
    Metrics(job.run.metrics).cut_back(state.progress)
    if job.run.samples.exists():
        Samples(job.run.samples).cut_back(state.progress)
    return state


def new_start(job: Job, base: LocatedBase, proofs: list[Proof]) -> TrainState:
    """The state before the first step, of a model that is proved (into `proofs`) to pack and to compile."""
    recipe, device = job.recipe, job.batching.device
    say(f"train: loading {base.name} in {recipe.train.precision} on {job.conditions['device']}")
    model = load_base(base.folder, precision=recipe.train.precision, device=device)
    refuse_odd_numbers(model, base.folder, recipe.train.precision, in_f16=bool(recipe.export.gguf))
    proofs.append(prove_packing(model, (job.rows, job.batching), (job.held_out, job.held_out_batching)))
    say(f"train: {proofs[-1].in_words('packed rows compute the same as single ones')}")
    keys = attach(model, recipe.lora, seed=recipe.seed)
    refuse_unmergeable(model, base.folder)
    if recipe.train.recompute == "on":
        recompute_layers(model)
    if job.batching.static:
        say("train: compiling the layers, which takes half a minute")
        proofs.append(prove_compiling(model, keys, job.rows, job.batching))
        say(f"train: {proofs[-1].in_words('compiled layers compute the same as plain ones')}")
    state = new_state(model, keys, recipe.train, device)
    if (job.run.ancestor / ADAPTER).is_file():
        set_adapter(model, load_file(job.run.ancestor / ADAPTER))
    return state


def _measure_base_of_fork(job: Job, state: TrainState) -> None:
    """A fork is at step 0 no base any more: what its base's held-out loss is, is measured before."""
    if job.run.ancestor.is_dir() and math.isinf(state.progress.base_loss):
        with without_adapter(state.model):
            found = measure_held_out(state.model, job.held_out, job.held_out_batching)
        state.progress.note_base(found)
        say(f"train: held-out loss {found.loss:.4f} of the base; step 0 is the adapter that this run begins with")


def _ancestry(run: Run, at: Progress) -> dict[str, Any] | None:
    """Of a fork: which run's adapter it began with, after which step, with which held-out loss, there and here."""
    ancestor = read_record(run.ancestor)
    return ancestor.counts | {"held_out_loss_here": at.start_loss} if ancestor else None


def _take_best(job: Job, state: TrainState, base: LocatedBase, draft: Path) -> dict[str, Any]:
    """Write the best checkpoint's adapter into `draft` in PEFT's format. Returns the counts for the record."""
    at, recipe = state.progress, job.recipe
    if at.best_loss >= at.start_loss:
        began = f"{at.began_with}'s {at.start_loss:.4f}"
        warn(f"the held-out loss never fell below {began}; try a lower train.lr or other data")
    best = job.run.checkpoints / checkpoint_name(at.best_step)
    if not is_whole(best):
        raise ResumeError(
            f"the best checkpoint, {best.name}, is missing or damaged",
            fix="delete the checkpoints after it and type the same again: training repeats those steps",
            where=str(job.run.checkpoints),
        )
    if not is_as_trained(best, kept_digests(job.run)):
        raise ResumeError(
            f"the best checkpoint, {best.name}, is not the adapter that was measured at that step ({job.run.metrics})",
            fix="delete it and the checkpoints after it and type the same again: training repeats those steps",
            where=str(job.run.checkpoints),
        )
    save_adapter(draft, best / ADAPTER, recipe.lora, base)
    return {
        "steps": at.step,
        "planned_steps": len(job.steps),
        "stopped_early": at.step < len(job.steps),
        "best_step": at.best_step,
        "held_out_loss": at.best_loss,
        "base_held_out_loss": at.base_loss,
        "bits_per_byte": bits_per_byte(at.best, job.held_out, at.bits_per_byte_definition),
        "base_bits_per_byte": bits_per_byte(at.base, job.held_out, at.bits_per_byte_definition),
        "bits_per_byte_definition": at.bits_per_byte_definition,
        "tokens": at.tokens,
        "supervised_tokens": at.supervised_tokens,
        "train_seconds": round(at.seconds, 1),
        "tokens_per_s": round(_speed(state), 1),
        "interruptions": at.interruptions,
        "skipped_steps": at.skipped_in_all,
        "steps_not_finite": at.not_finite,
        "notes": at.notes,
        "ancestor": _ancestry(job.run, at),
        "selected": selection_counts(recipe, job.rows, job.selected),
        "base_revision": base.revision,
        "peak_memory_bytes": peak_memory_bytes(job.batching.device),
        "device": job.conditions["device"],
        "precision": recipe.train.precision,
    }
