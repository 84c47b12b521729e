"""What an importance matrix is worth: mean KL to F16 of each type of GGUF file with and without one.

At every token of the held-out rows of a finished run (prompts too: more positions than the supervised ones). Intervals
are 95 %, by bootstrap over rows, since positions of one row hang together; those of the difference are of pairs.
usage: python benchmarks/importance.py RUN [TOKENS ...]     rows for benchmarks/RESULTS.md; TOKENS: sizes of the sample
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.gguf.quantise import UNWEIGHTED
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.logits import sequence_logits
from tunesmith.model import importance
from tunesmith.proof.divergence import Apart
from tunesmith.recipe import ChatConfig, GgufType
from tunesmith.tokens.rows import TokenRows, load_rows

TYPES: tuple[GgufType, ...] = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M")
DRAWS, LONGEST, THREADS = 10_000, 512, 2
Sequences = list[tuple[list[int], list[int]]]


def held_out(rows: TokenRows) -> Sequences:
    """Token ids of rows, and the places after which a token follows."""
    spans = zip(rows.offsets_N1[:-1].tolist(), rows.offsets_N1[1:].tolist(), strict=True)
    ids = [rows.tokens_T[start : min(stop, start + LONGEST)].tolist() for start, stop in spans]
    return [(row[:-1], list(range(len(row) - 1))) for row in ids]


def kl_to(reference: np.memmap, file: Path, sequences: Sequences, scratch: Path) -> NDArray[np.float64]:
    """KL(F16 || file) in nats at each position, the log-probabilities of F16 being in `reference` [S, V]."""
    apart, done = Apart(), 0
    for logits in sequence_logits(file, sequences, threads=THREADS, window=scratch / "window"):
        ours = torch.from_numpy(logits).log_softmax(dim=1)
        apart.add(torch.from_numpy(np.array(reference[done : done + len(logits)])), ours)
        done += len(logits)
    return torch.cat(apart._kl).numpy()


def interval(values: NDArray[np.float64], rows: Sequence[int]) -> str:
    """Mean over positions, and its 95 % interval by draws of whole rows."""
    sums = np.array([part.sum() for part in np.split(values, np.cumsum(rows)[:-1])])
    picked = np.random.default_rng(0).integers(len(rows), size=(DRAWS, len(rows)))
    means = sums[picked].sum(axis=1) / np.array(rows)[picked].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():.3g} ({low:.3g} to {high:.3g})"


def main(run: str, *sizes: str) -> None:
    """Print a row for each type and size of the sample."""
    model, (train, kept) = Path(run, "model"), load_rows(Path(run, "data"))
    sequences, about = held_out(kept), About("benchmark", run, None, ChatConfig())
    rows = [len(places) for _, places in sequences]
    print(f"{sum(rows):,} positions of {len(rows)} held-out rows; {len(train)} training rows\n")
    print("| type | MB | importance from | mean KL to F16, nats | less than without | lower by |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        write_gguf(model, scratch / "F16.gguf", "F16", about)
        reference, done = None, 0
        for logits in sequence_logits(scratch / "F16.gguf", sequences, threads=THREADS, window=scratch / "window"):
            if reference is None:
                reference = np.memmap(scratch / "F16", np.float32, "w+", shape=(sum(rows), logits.shape[1]))
            reference[done : done + len(logits)] = torch.from_numpy(logits).log_softmax(dim=1)
            done += len(logits)
        weights = {}
        for size in map(int, sizes or [str(importance.TOKENS)]):
            importance.TOKENS = size
            weights[size] = importance.gather_importance(model, train)
        for kind in TYPES:
            facts = write_gguf(model, scratch / "file.gguf", kind, about)
            without = kl_to(reference, scratch / "file.gguf", sequences, scratch)
            print(f"| {kind} | {facts['bytes'] / 1e6:.0f} | none | {interval(without, rows)} | | |", flush=True)
            for matrix, tokens in weights.values() if kind not in UNWEIGHTED else ():
                write_gguf(model, scratch / "file.gguf", kind, about, matrix)
                having = kl_to(reference, scratch / "file.gguf", sequences, scratch)
                share = 1 - having.mean() / without.mean()
                less = interval(without - having, rows)
                print(f"| | | {tokens:,} tokens | {interval(having, rows)} | {less} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
