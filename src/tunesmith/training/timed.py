"""One forward and backward pass, timed: how fast this machine trains a base, without a run.

A process of its own (inference/child.py): takes {"base": folder, "lengths": [tokens of conversations]} and tells
{"tokens_per_s": n}.
"""

import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.inference.child import serve_parent, tell
from tunesmith.model.attention import has_varlen_kernel
from tunesmith.model.base import DTYPES, head, hidden_states, load_base
from tunesmith.model.batch import Batching
from tunesmith.model.lora import attach
from tunesmith.model.loss import loss_sum
from tunesmith.recipe import DataConfig, Recipe, Source
from tunesmith.tokens.rows import TokenRows
from tunesmith.training.device import pick_device
from tunesmith.training.memory import decide_autos

FIRST_TOKENS = 128
ABOUT_S = 8.0
"""The pass that counts has as many tokens as fit into this time by the first one, at most a micro-batch."""


def time_pass(job: dict[str, Any]) -> None:
    """Time two passes with a fresh adapter, and tell the speed of the second."""
    device, folder = pick_device(), Path(job["base"])
    plain = Recipe(name="timed", base=str(folder), data=DataConfig(sources=(Source(path="none"),)))
    recipe = decide_autos(plain, folder, device)
    model = load_base(folder, precision=recipe.train.precision, device=device)
    attach(model, recipe.lora, seed=0)
    kernel = has_varlen_kernel(device, DTYPES[recipe.train.precision])
    words, most = model.config.get_text_config().vocab_size, recipe.train.micro_batch_tokens
    assert isinstance(most, int)

    def seconds(tokens: int) -> tuple[float, int]:
        rows = _rows(job["lengths"], tokens, words)
        batching = Batching(tokens, tokens, device, kernel, static=kernel)
        started, done = time.monotonic(), 0
        for batch in batching.micro_batches(rows, range(len(rows))):
            hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
            loss_sum(hidden_TD[batch.at_S], head(model), batch.targets_S).backward()
            done += batch.tokens
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - started, done

    took, done = seconds(min(FIRST_TOKENS, most))
    took, done = seconds(max(FIRST_TOKENS, min(most, int(done / took * ABOUT_S))))
    tell({"tokens_per_s": done / took})


def _rows(lengths: list[int], tokens: int, words: int) -> TokenRows:
    """Random rows of these lengths, over and over, with `tokens` tokens together; half of each is supervised."""
    cut, left = list[int](), tokens
    while left:
        cut.append(min(max(lengths[len(cut) % len(lengths)], 2), left))
        left -= cut[-1]
    offsets_N1 = np.asarray([0, *accumulate(cut)], np.int64)
    supervised_T = np.concatenate([np.arange(length) >= length // 2 for length in cut])
    ids_T = np.random.default_rng(0).integers(0, words, tokens, dtype=np.int32)
    return TokenRows(ids_T, supervised_T, offsets_N1, np.ones(len(cut), np.int64))


if __name__ == "__main__":
    serve_parent(time_pass)
