"""One greedy answer to a fixed held-out question at each evaluation: what people look at while a model learns.

It computes with the layers as they are, not the compiled ones, on a key-value cache, and changes nothing of the
training: no random number is drawn, no gradient kept. It takes at most 2 % of the time.
"""

import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.console import say
from tunesmith.data.split import HELD_OUT
from tunesmith.model.base import backbone, decoder_layers, head
from tunesmith.tokens.rows import TokenRows
from tunesmith.tokens.texts import texts_of
from tunesmith.training.metrics import Samples
from tunesmith.training.state import Progress

MOST_TOKENS, LEAST_TOKENS = 60, 8
FIRST_TOKENS = 16
"""Of the base's answer, before there is any time to take a share of."""
SHARE = 0.02
"""Of the time spent training, that all samples together may take."""
NEAR_ROWS, LONGEST_PROMPT = 100, 256
SHOWN = 70  # letters of a question in the terminal


@dataclass(frozen=True)
class Question:
    """The first question of a held-out row."""

    row: int
    text: str
    ids: tuple[int, ...]
    """The prompt as the model is trained to see it, up to where it starts to write."""
    stop: int
    """The token that ends an answer."""


def pick_question(data: Path, rows: TokenRows) -> Question | None:
    """The first of the held-out `rows` that asks and answers shortly, else the shortest of the first hundred.

    None where the folder has no texts of its rows.
    """
    texts = [row.turns for row in islice(texts_of(data, HELD_OUT), NEAR_ROWS)]
    if not texts:
        return None
    found = [_question(rows, row) for row in range(min(len(rows), NEAR_ROWS))]
    short = (one for one, answer in found if len(one.ids) <= LONGEST_PROMPT and answer <= MOST_TOKENS)
    best = next(short, min(found, key=lambda one: len(one[0].ids))[0])
    turns = texts[best.row]
    answer = next((number for number, turn in enumerate(turns) if turn.role == "assistant" and turn.trained), 0)
    asked = [turn.text for turn in turns[:answer] if turn.role == "user"]
    return Question(best.row, asked[-1] if asked else "", best.ids, best.stop)


def _question(rows: TokenRows, row: int) -> tuple[Question, int]:
    """The first question of a row, without its text, and how many tokens its answer has."""
    span = slice(int(rows.offsets_N1[row]), int(rows.offsets_N1[row + 1]))
    supervised_T = np.append(np.asarray(rows.supervised_T[span]), False)
    first = int(np.argmax(supervised_T))
    stop = first + int(np.argmin(supervised_T[first:])) - 1
    ids_T = rows.tokens_T[span]
    return Question(row, "", tuple(ids_T[:first].tolist()), int(ids_T[stop])), stop + 1 - first


class Sampler:
    """Samples of one run."""

    def __init__(self, path: Path, question: Question, tokenizer: PreTrainedTokenizerBase) -> None:
        """`path`: of samples.jsonl, which may have lines of the time before an interruption."""
        self.question, self._tokenizer, self.lines = question, tokenizer, Samples(path)
        before, _ = self.lines.read()
        self.seconds = float(sum(line["seconds"] for line in before))
        """Time that all samples of the run took."""
        last = before[-1] if before else {"seconds": 0.0, "tokens": 1}
        self._token_s = last["seconds"] / max(last["tokens"], 1)

    def sample(self, model: PreTrainedModel, at: Progress) -> None:
        """Ask, show the answer and keep it; nothing where the time so far is too short for a few tokens."""
        left_s = SHARE * at.seconds - self.seconds
        if at.step and left_s < LEAST_TOKENS * self._token_s:
            return
        started = time.monotonic()
        most, until = (MOST_TOKENS, started + left_s) if at.step else (FIRST_TOKENS, started + 60)
        ids, ended = answer(model, self.question, most, until)
        took = time.monotonic() - started
        self.seconds, self._token_s = self.seconds + took, took / max(len(ids), 1)
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        self.lines.append(
            {
                "step": at.step, "row": self.question.row, "question": self.question.text, "answer": text,
                "tokens": len(ids), "ended": ended, "seconds": round(took, 3),
            }
        )  # fmt: skip
        shown = f"{' '.join(text.split())}{'' if ended else ' ...'}"
        say(f'  asked "{textwrap.shorten(self.question.text, SHOWN, placeholder=" ...")}", it answers: "{shown}"')


@torch.no_grad()
def answer(model: PreTrainedModel, question: Question, most: int, until: float) -> tuple[list[int], bool]:
    """At most `most` tokens, greedily, until the time.monotonic() `until`; and whether the answer ended by itself."""
    output = head(model)
    ids: list[int] = []
    with _plain(model):
        known, new = {_cache_name(model): DynamicCache(config=model.config)}, list(question.ids)
        while len(ids) < most and (not ids or time.monotonic() < until):
            ids_1T = torch.tensor([new], device=output.weight_VD.device)
            hidden_1TD = backbone(model)(input_ids=ids_1T, use_cache=True, **known).last_hidden_state
            token = int(output.logits(hidden_1TD[0, -1:].to(output.weight_VD.dtype)).argmax())
            if token == question.stop:
                return ids, True
            ids.append(token)
            new = [token]
    return ids, False


def _cache_name(model: PreTrainedModel) -> str:
    """What the model calls its key-value cache: transformers 5.23 gave it another name."""
    return "cache" if "cache" in signature(backbone(model).forward).parameters else "past_key_values"


@contextmanager
def _plain(model: PreTrainedModel) -> Iterator[None]:
    """The model with transformers' own attention, which knows a cache, and layers neither compiled nor recomputed."""
    configs = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
    attention = [config._attn_implementation for config in configs]
    layers: list[nn.Module] = decoder_layers(model)
    kept = [(layer._compiled_call_impl, layer.training) for layer in layers]
    try:
        for config in configs:
            config._attn_implementation = "sdpa"
        for layer in layers:
            layer._compiled_call_impl, layer.training = None, False
        yield
    finally:
        for config, name in zip(configs, attention, strict=True):
            config._attn_implementation = name
        for layer, (compiled, training) in zip(layers, kept, strict=True):
            layer._compiled_call_impl, layer.training = compiled, training
