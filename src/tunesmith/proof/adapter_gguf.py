"""The adapter's GGUF on the base's = the adapter on the base: llama.cpp against transformers, on held-out rows.

Both are computed anew, the base's file too; so rows of B in another order, a scale left out or a tensor on another
layer are far off. The limits are those of the F16 file.

Letters in names: C positions of a piece, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.console import progress
from tunesmith.errors import ProofError
from tunesmith.inference.engine import Engine
from tunesmith.inference.logits import Unavailable, sequence_logits
from tunesmith.proof.damage import find_adapter_damage
from tunesmith.proof.divergence import Apart
from tunesmith.proof.reference import Reference, store_model
from tunesmith.proof.sample import Sample, pick_sample
from tunesmith.recipe import Recipe
from tunesmith.record import Proof
from tunesmith.runs import Run
from tunesmith.tokens.rows import load_rows

KL, CHOICE = "adapter GGUF = adapter, mean KL in nats", "adapter GGUF = adapter, other first choice"
POSITIONS = 500  # enough to see a fault: each one there is moves the mean by a thousand times its limit
FEW = 32  # where llama.cpp's server is asked for each alone
FIX = "delete gguf/ and run again; if it fails again, report the base model, and set export.adapter to false"


def prove_adapter_gguf(
    recipe: Recipe, run: Run, base: Path, file: Path, make_base: Callable[[Path], object], scratch: Path
) -> list[Proof]:
    """Compare the adapter's GGUF file, on the base's in F16, with run.adapter on the Hugging Face folder `base`.

    `make_base` writes the base's file; `scratch`: a folder of nothing else. Raises ProofError above a limit. Skipped,
    with the reason, where the base does not fit in memory in fp32, not even a layer at a time.
    """
    threads = recipe.evaluate.threads
    limits = {KL: recipe.export.limits.kl, CHOICE: 1 - recipe.export.limits.top1}
    sample = pick_sample(load_rows(run.data)[1], min(recipe.export.positions, POSITIONS))
    with contextlib.closing(Reference(scratch / "adapter-reference")) as reference:
        reason = store_model(base, sample, reference, run.adapter)
        if reason:
            return [Proof(name, None, limit, 0, reason) for name, limit in limits.items()]
        files = (scratch / "base-F16.gguf", file)
        make_base(files[0])
        try:
            pieces = _whole(*files, sample, threads, scratch)
            first = next(pieces)
        except Unavailable:
            sample = sample.spread(FEW)
            store_model(base, sample, reference, run.adapter)
            pieces = _one_by_one(*files, sample, threads)
            first = next(pieces)
        apart, done = Apart(recipe.export.limits.near_tie), 0
        with progress(f"proof of {file.name}", len(sample), unit="positions") as advance:
            for logprobs_CV in chain([first], pieces):
                apart.add(reference.read(done, done + len(logprobs_CV)), logprobs_CV)
                done += len(logprobs_CV)
                advance(len(logprobs_CV), "")
    assert done == len(sample)
    found = apart.found(sample.place)
    values = {KL: found.mean_kl, CHOICE: 1 - found.top1}
    damage = find_adapter_damage(base, run.adapter, file)
    if broken := [name for name, value in values.items() if not value <= limits[name]]:  # a NaN is not equal
        what = f"{file.name} on the base is not the adapter: {broken[0]} is {values[broken[0]]:.2g}"
        why = f"; {damage}" if damage else ""
        raise ProofError(f"{what}, limit {limits[broken[0]]:g}{why}", fix=FIX, where=found.worst)
    if damage:
        raise ProofError(f"{file.name} is not the adapter: {damage}", fix=FIX, where=str(file))
    return [Proof(name, value, limits[name], found.positions) for name, value in values.items()]


def _whole(base: Path, adapter: Path, sample: Sample, threads: int, scratch: Path) -> Iterator[Tensor]:
    """Log-probabilities [C, V] of the base's file with the adapter's, a piece at a time."""
    sequences = [(row.ids, row.places) for row in sample.rows]
    window = scratch / "window"
    for logits_CV in sequence_logits(base, sequences, threads=threads, window=window, adapter=adapter):
        yield torch.from_numpy(logits_CV).log_softmax(dim=1)


def _one_by_one(base: Path, adapter: Path, sample: Sample, threads: int) -> Iterator[Tensor]:
    """The same by llama.cpp's server, which is asked for each position alone."""
    longest = max(len(row.ids) for row in sample.rows)
    with Engine(base, threads=threads, context=longest + 8, adapter=adapter) as engine:
        for prefix in sample.prefixes():
            yield torch.from_numpy(engine.next_token_logprobs(prefix))[None]
