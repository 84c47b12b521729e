"""How full steps and forward passes are, at the lengths of conversations, and what making the order takes.

    python benchmarks/packing.py [--rows N ...] [--lookahead N ...] [--seeds N]

Lengths are lognormal: 450 tokens in the mean, sigma 0.8, the longest cut at 2,048 (FineTome's, as benchmarks/data.py
has them). Prints Markdown: of one epoch, the mean over the seeds of what share of the steps is tokens, and the same of
forward passes of 4,096 tokens. Full steps end where the rows do, so beside it: the most that rows so many can fill.
"""

import argparse
import statistics
import time

import numpy as np

from tunesmith.recipe import TrainConfig
from tunesmith.tokens.order import rows_of_epoch
from tunesmith.tokens.pack import pack

MEAN_TOKENS, SIGMA, MAX_LENGTH = 450, 0.8, 2048
STEPS, PASS = (16384, 4096), 4096


def lengths_of(rows: int, seed: int) -> list[int]:
    """Tokens of so many conversations."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA, rows)
    return np.clip(np.round(drawn), 1, MAX_LENGTH).astype(int).tolist()


def share_full(tokens: int, bins: int, capacity: int) -> float:
    """In percent."""
    return 100 * tokens / (bins * capacity)


def measured(rows: int, train: TrainConfig, seed: int) -> tuple[float, float, float, float]:
    """Of one epoch: percent of the steps, the most there could be, percent of the forward passes; seconds an order."""
    lengths = lengths_of(rows, seed)
    started = time.perf_counter()
    steps = rows_of_epoch(lengths, train, seed, 0)
    seconds = time.perf_counter() - started
    passes = sum(len(pack([lengths[row] for row in step], PASS)) for step in steps)
    tokens, size = sum(lengths), train.tokens_per_step
    return (
        share_full(tokens, len(steps), size), share_full(tokens, -(-tokens // size), size),
        share_full(tokens, passes, PASS), seconds,
    )  # fmt: skip


def main() -> None:
    """A row for each number of rows, size of a step and lookahead."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--lookahead", type=int, nargs="+", default=[0, 16, 64, 256])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    print("| rows | tokens a step | lookahead | steps % full | the most | passes of 4,096 % full | seconds an order |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for rows in given.rows:
        for size in STEPS:
            for lookahead in given.lookahead:
                train = TrainConfig(tokens_per_step=size, packing_lookahead=lookahead)
                found = [measured(rows, train, seed) for seed in range(given.seeds)]
                full, most, passes, seconds = map(statistics.mean, zip(*found, strict=True))
                print(
                    f"| {rows:,} | {size:,} | {lookahead} | {full:.2f} | {most:.2f} | {passes:.2f} | {seconds:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
