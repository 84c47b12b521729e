"""Greedy answers of a GGUF file are those of the merged model, or part from them at a near tie.

The file answers first, by llama.cpp. The merged model then reads prompt and answer in one pass of transformers: where
each token of the answer is its first choice, its own greedy answer is the same, token by token, so that a model which
is read from disk layer by layer need not be read once for every token.

Letters in names: C positions of a piece, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from tunesmith.decides import read_prompts
from tunesmith.errors import RecipeError
from tunesmith.inference.engine import Engine
from tunesmith.proof.reference import model_logprobs
from tunesmith.proof.sample import Row, Sample
from tunesmith.proof.texts import same_text
from tunesmith.recipe import Recipe
from tunesmith.tokens.template import render

PROMPTS = 10
TOKENS = 32  # of each answer


@dataclass(frozen=True)
class Parting:
    """The first token of an answer that is not the merged model's."""

    prompt: int
    """Number of the prompt, from 0."""
    token: int
    """Number of the token in the answer, from 0."""
    model: int
    model_logprob: float
    file: int
    file_logprob: float
    """Both of the merged model."""

    @property
    def gap(self) -> float:
        """How much more likely the merged model's token is than the file's, in nats."""
        return self.model_logprob - self.file_logprob


@dataclass(frozen=True)
class Greedy:
    """How the answers of a file and of the merged model compare."""

    prompts: int
    tokens: int
    """Up to the first other one in each answer."""
    ended: int
    """Answers that the file ended by itself, within so many tokens."""
    near_ties: int
    """Answers that part where two tokens are nearly as likely as each other."""
    widest_tie: float
    """In nats; 0 without one."""


def prompt_ids(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[list[int]] | str:
    """The evaluation prompts as the model gets them, PROMPTS at most; or why there are none."""
    try:
        prompts = read_prompts(recipe)[:PROMPTS]
    except RecipeError as error:
        return error.what
    return [tokenizer(_drawn(recipe, tokenizer, prompt), add_special_tokens=False)["input_ids"] for prompt in prompts]


def answer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, engine: Engine, asked: Sequence[list[int]]) -> Sample:
    """Prompts and the greedy answers of the file that is open in `engine`, as rows with a place at each answer token.

    Raises ProofError where llama.cpp renders a prompt otherwise.
    """
    rows, bos = [], tokenizer.bos_token or ""
    for number, (prompt, ids) in enumerate(zip(read_prompts(recipe), asked, strict=False)):
        ours, theirs = (
            text.removeprefix(bos)
            for text in (_drawn(recipe, tokenizer, prompt), engine.render([{"role": "user", "content": prompt}]))
        )
        same_text(ours, theirs, f"evaluation prompt {number + 1}")
        room = min(TOKENS, engine.context - len(ids))
        if room < 1:
            continue
        tokens = engine.go_on(ids, room)
        places = tuple(range(len(ids) - 1, len(ids) + len(tokens) - 1))
        ends = (False,) * (len(tokens) - 1) + (len(tokens) < room,)
        rows.append(Row(number, (*ids, *tokens[:-1]), places, tuple(tokens), ends, answer_bytes=None))
    return Sample(tuple(rows))


@torch.no_grad()
def compare_answers(model: Path, answered: Sample) -> tuple[Greedy, list[Parting]] | str:
    """Where the answers part from the merged model's; or why that cannot be computed here."""
    pieces = model_logprobs(model, answered)
    if isinstance(pieces, str):
        return pieces
    targets, start, first, of_file = torch.from_numpy(answered.targets_S), 0, [], []
    for logprobs_CV in pieces:
        first.append(torch.stack([part.double() for part in logprobs_CV.max(dim=1)], dim=1))
        of_file.append(logprobs_CV.gather(1, targets[start : start + len(logprobs_CV), None])[:, 0])
        start += len(logprobs_CV)
    best, theirs = torch.cat(first).tolist(), torch.cat(of_file).tolist()
    partings, tokens = list[Parting](), 0
    for row, begin in zip(answered.rows, answered.starts, strict=False):
        other = (n for n, target in enumerate(row.targets) if int(best[begin + n][1]) != target)
        if (n := next(other, None)) is not None:
            logprob, token = best[begin + n]
            partings.append(Parting(row.number, n, int(token), logprob, row.targets[n], theirs[begin + n]))
        tokens += len(row.targets) if n is None else n + 1
    widest = max((parting.gap for parting in partings), default=0.0)
    ended = sum(row.ends[-1] for row in answered.rows)
    return Greedy(len(answered.rows), tokens, ended, len(partings), widest), partings


def _drawn(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    return render(tokenizer, messages, system=recipe.chat.system, date=recipe.data.date, add_generation_prompt=True)
