"""Settings that fit the data: enough steps to learn in, whatever the size of the file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.errors import DataError
from tunesmith.planning.look import Look
from tunesmith.planning.steps import all_lengths, steps_of, tokens_in
from tunesmith.recipe import ChatConfig, LoraConfig, TrainConfig
from tunesmith.tokens.order import FEW_STEPS, MOST_EPOCHS

GOOD_STEPS, ENOUGH_STEPS = 60, 45
"""Steps are halved until there are so many, and epochs added: on 60 conversations 48 steps taught what 30 did not, and
early stopping ends what is too long."""
LARGEST_STEP, USUAL_LEAST = 16384, 512
"""Tokens of a step: more is no better for LoRA on data of this size; below 512 a step is noise, and taken only where
there would be too few otherwise."""
ROOM, LONGEST = 256, 2048
"""Least and most of train.max_length: rows to come may be longer than those that are there; memory has an end."""
EPOCHS = ((100_000, 4), (1_000_000, 3), (10_000_000, 2))
"""Tokens of an epoch below which so many passes are made."""
SMALL_WIDTH, SMALL_LR, LR = 1024, 1e-3, 2e-4
"""A narrow base needs a higher rate, and few steps a higher one than many: of a narrow base three times, and a wider
adapter, of others twice. On 60 conversations, in 48 steps of 512 tokens, 3e-3 with rank 32 taught the 135 million more
than 2e-3 with 16 (docs/log.md)."""
RANK, SHORT_RANK = 16, 32
SHORT = 200
SMALL_TEMPERATURE = 0.2
"""A small base that has learned facts: of the demo's ten, 0.7 gave 3 to 8, 0.2 gave 7 to 9."""


@dataclass(frozen=True)
class Fitted:
    """Some settings, and why each is what it is."""

    epochs: int
    tokens_per_step: int
    max_length: int
    rank: int
    lr: float
    evaluate_every: int
    held_out: float
    temperature: float
    steps: int
    why: Mapping[str, str]

    @property
    def every(self) -> str:
        """`evaluate_every` as a recipe says it."""
        return f"{self.evaluate_every} step{'' if self.evaluate_every == 1 else 's'}"


def fit(looks: Sequence[Look], config: Mapping[str, object]) -> Fitted:
    """Settings for data that was looked at. `config`: the base's config.json; empty where it is not at hand."""
    lengths = all_lengths(looks)
    rows = sum(look.rows * look.kept for look in looks)
    if rows < 2:  # one to train on and one to hold out
        raise DataError("there is one row that can be used, and none to hold out", fix="add conversations")
    one_row = math.ceil(100 / max(rows, 2)) / 100  # which a share of them must hold
    held_out = max(one_row, min(0.1, max(0.01, math.ceil(6 / max(rows, 1) * 100) / 100)))
    context = config.get("max_position_embeddings")
    most = min(LONGEST, context) if isinstance(context, int) else LONGEST
    whole = all(look.read == look.rows for look in looks)
    needed = min(most, 1 << math.ceil(math.log2(max(*lengths, 8))))
    max_length = min(most, max(ROOM, needed if whole else 2 * needed))
    tokens = (1 - held_out) * sum(tokens_in(look, max_length) for look in looks)
    epochs = next((many for most_tokens, many in EPOCHS if tokens < most_tokens), 1)

    def steps(epochs: int, tokens_per_step: int) -> int:
        train = TrainConfig(epochs=epochs, tokens_per_step=tokens_per_step, max_length=max_length)
        return steps_of(train, tokens, [min(n, max_length) for n in lengths], 0)

    size, least = LARGEST_STEP, max(USUAL_LEAST, max_length)
    while size > least and steps(epochs, size) < GOOD_STEPS:
        size //= 2
    while epochs < MOST_EPOCHS and steps(epochs, size) < ENOUGH_STEPS:
        epochs += 1
    while size > needed and steps(epochs, size) < FEW_STEPS:
        size, max_length = size // 2, min(max_length, size // 2)
    count = steps(epochs, size)
    narrow = isinstance(width := config.get("hidden_size"), int) and width < SMALL_WIDTH
    short = count < SHORT
    rank = SHORT_RANK if narrow and short else RANK
    lr = (SMALL_LR if narrow else LR) * (1 if not short else 3 if narrow else 2)
    why = {
        "epochs": f"passes over {tokens:,.0f} tokens" + (": a small file is read several times" if epochs > 1 else ""),
        "tokens_per_step": f"makes {count:,} steps; fewer than {FEW_STEPS} teach next to nothing",
        "max_length": f"the longest conversation seen has {max(lengths):,} tokens",
        "rank": "width of the adapter" + (": a small base, few steps" if rank == SHORT_RANK else ""),
        "lr": ("a small base" if narrow else "the usual rate for LoRA") + (", few steps" if short else ""),
        "evaluate_every": "measures the held-out loss",
        "temperature": "how freely it answers; a small base errs less near 0" if narrow else "how freely it answers",
        "held_out": f"about {max(1, round(rows * held_out)):,} rows kept out of training to measure the loss",
    }
    temperature = SMALL_TEMPERATURE if narrow else ChatConfig().temperature
    every = max(1, min(200, count // 8))
    return Fitted(epochs, size, max_length, rank, lr, every, held_out, temperature, count, why)


def unfitted(reason: str) -> Fitted:
    """The defaults, for data that was not looked at; `reason`: why not."""
    plain, why = TrainConfig(), f"the default: {reason}"
    names = ("epochs", "tokens_per_step", "max_length", "rank", "lr", "evaluate_every", "held_out", "temperature")
    return Fitted(
        1, plain.tokens_per_step, plain.max_length, LoraConfig().rank, plain.lr, plain.evaluate_every_steps, 0.05,
        ChatConfig().temperature, 0,
        dict.fromkeys(names, why),
    )  # fmt: skip
