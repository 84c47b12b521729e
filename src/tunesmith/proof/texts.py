"""The texts of a GGUF file: token ids, chat template and stop tokens are those of the merged model's tokenizer."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.console import warn
from tunesmith.data.conversation import Conversation
from tunesmith.data.split import HELD_OUT
from tunesmith.errors import BaseError, ProofError
from tunesmith.gguf.metadata import Head, read_head, read_item
from tunesmith.gguf.pretokenizers import NFC, pre_tokenizer, read_tokenizer
from tunesmith.gguf.sentencepiece import is_sentencepiece
from tunesmith.inference.engine import Engine
from tunesmith.proof.sample import Sample
from tunesmith.recipe import Recipe
from tunesmith.runs import Run
from tunesmith.tokens.messages import messages_of, tools_of
from tunesmith.tokens.template import end_of_turn_id, render
from tunesmith.tokens.texts import texts_of
from tunesmith.weights.small_files import CONFIG, GENERATION_CONFIG, read_json

CONVERSATIONS = 200  # of the held-out ones that are compared, spread over all: two requests each
CHATS = 128  # tokens before an end of turn that are given to the server
FIX = "delete model/ and gguf/ and run again; if it fails again, report the base model"
Keys = gguf.Keys.Tokenizer
STOPS = (Keys.EOS_ID, Keys.EOT_ID, Keys.EOM_ID)
PROBES = (
    "In 2026: 12345 and 3.14159 of 1,000.", "I'm sure they'll say we've, DON'T they'D", "a    wide  gap ",
    "two\n\n\n  lines\r\n\tand a tab\n", "def f(x):\n    return x[0] != 'q'  # <tag>", "naïve café, 中文, 日本語 🙂",
)  # fmt: skip
"""Where ways to cut a text differ, whatever is in the held-out conversations."""


@dataclass(frozen=True)
class Texts:
    """What was compared."""

    tokens: int
    """Of held-out conversations; the ids are equal."""
    conversations: int
    stops: int
    """Times that the end of turn was put after a held-out answer, and ended it."""


def check_texts(
    recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase, engine: Engine, file: Path, sample: Sample
) -> Texts:
    """Compare the texts of a GGUF file that is open in `engine` with those of run.model's tokenizer.

    Raises ProofError with the first difference, and what in the file's metadata explains it.
    """
    head, own = read_head(file), read_tokenizer(run.model)
    stop = end_of_turn_id(tokenizer)
    _check_stop_tokens(run.model, tokenizer, file, head, stop)
    try:
        tokens, conversations = _check_conversations(recipe, run, tokenizer, engine, composes=is_composing(own))
    except ProofError as error:
        hint = "".join(f"; {reason}" for reason in _odd_tokenizer(own, tokenizer, file, head))
        raise ProofError(f"{error.what}{hint}", fix=error.fix, where=error.where) from None
    if odd := _odd_tokenizer(own, tokenizer, file, head):  # held-out texts may have nothing that shows it
        what = f"{file.name} reads texts otherwise than the merged model: {'; '.join(odd)}"
        raise ProofError(what, fix=FIX, where=str(file))
    ended = sample.end_of_an_answer()
    if ended and not engine.stops_at(ended[0][-CHATS:], stop):
        what = f"{file.name} does not stop: llama.cpp goes on after {_token(tokenizer, stop)}, which ends an answer"
        raise ProofError(what, fix=FIX, where=str(file))
    return Texts(tokens, conversations, int(ended is not None))


def _check_stop_tokens(model: Path, tokenizer: PreTrainedTokenizerBase, file: Path, head: Head, stop: int) -> None:
    """The file ends an answer at the template's end of turn, which is typed and written as such, and at nothing that
    the model does not end at.
    """
    stated = [int(head.singles[key]) for key in STOPS if key in head.singles]
    if stop not in stated:
        raise _no_stop(file, f"it names {_tokens(tokenizer, stated) or 'none'} as its stop token", tokenizer, stop)
    if other := set(stated) - {stop, tokenizer.eos_token_id, *_stops(model)}:
        what = f"{file.name} ends an answer at {_tokens(tokenizer, sorted(other))} too, and the model does not"
        raise ProofError(what, fix=FIX, where=str(file))
    kind, text = (
        read_item(file, head.arrays[key], stop) if key in head.arrays else None for key in (Keys.TOKEN_TYPE, Keys.LIST)
    )
    if kind != gguf.TokenType.CONTROL:
        known = [one.name for one in gguf.TokenType if one == kind]
        raise _no_stop(file, f"that is typed {''.join(known) or kind} where it must be CONTROL", tokenizer, stop)
    if text != (wanted := tokenizer.convert_ids_to_tokens(stop)):
        raise _no_stop(file, f"token {stop} is {text!r} there, not {wanted!r}", tokenizer, stop)


def _no_stop(file: Path, why: str, tokenizer: PreTrainedTokenizerBase, stop: int) -> ProofError:
    what = f"{file.name} would not stop: the chat template ends an answer with {_token(tokenizer, stop)}, and {why}"
    return ProofError(what, fix=FIX, where=str(file))


def _stops(model: Path) -> set[int]:
    """Every token that transformers' generate() ends at."""
    found = [read_json(model / name).get("eos_token_id") for name in (CONFIG, GENERATION_CONFIG)]
    return {id_ for one in found for id_ in (one if isinstance(one, list) else [one]) if isinstance(id_, int)}


def _check_conversations(
    recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase, engine: Engine, *, composes: bool
) -> tuple[int, int]:
    """Compare token ids and rendered texts. Returns how many tokens, of how many conversations, were compared."""
    encode = partial(tokenizer, add_special_tokens=False)
    bare, started = encode("A text")["input_ids"], tokenizer("A text")["input_ids"]
    ids = partial(_same_ids, tokenizer)
    ids(started, engine.tokenize("A text"), "'A text', with the start token that add_bos_token says")
    bos = tokenizer.bos_token if started[1:] == bare else ""  # llama.cpp adds it, so it must not be in the text too
    for text in PROBES:
        ids(tokenizer(text)["input_ids"], engine.tokenize(text), repr(text))
    draw, tokens, decomposed = partial(render, tokenizer, system=recipe.chat.system, date=recipe.data.date), 0, 0
    rows = held_out_rows(run)
    for row in rows:
        where, messages = row.where, messages_of(row.turns)
        text = draw(messages, tools=tools_of(row))
        found = encode(text)["input_ids"]
        seen = unicodedata.normalize("NFC", text) if composes else text
        decomposed += seen != text
        ids(found, engine.tokenize(seen.removeprefix(bos)), where)
        tokens += len(found)
        if not row.is_plain:  # the chat sends no other
            continue
        asked = [*messages, {"role": "user", "content": "Go on."}]  # so that the end of the last answer is seen
        ours = draw(asked, add_generation_prompt=True)
        same_text(ours.removeprefix(bos), engine.render(asked).removeprefix(bos), where)
    if decomposed:
        warn(
            f"{decomposed} of {len(rows)} held-out conversations have letters in parts, as e and an accent: this "
            "tokenizer composes them and llama.cpp does not, so it is to be given composed ones (NFC)"
        )
    return tokens, len(rows)


def is_composing(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json joins letters that come in parts, as Qwen's does; others replace spaces alone."""
    return bool(tokenizer["normalizer"] == NFC)


def held_out_rows(run: Run) -> list[Conversation]:
    """The held-out conversations; CONVERSATIONS at most, spread evenly."""
    rows = list(texts_of(run.data, HELD_OUT))
    chosen = np.linspace(0, len(rows) - 1, min(CONVERSATIONS, len(rows))).round().astype(int)
    return [rows[number] for number in chosen]


def same_text(ours: str, theirs: str, where: str) -> None:
    """Raise ProofError at the first letter where two rendered conversations differ."""
    if (place := _first_difference(ours, theirs)) is not None:
        here = slice(place, place + 40)
        what = f"llama.cpp has {theirs[here]!r} where transformers has {ours[here]!r}"
        raise ProofError(what, fix=FIX, where=f"{where}, as the chat template renders it, at {place}")


def _same_ids(tokenizer: PreTrainedTokenizerBase, ours: Sequence[int], theirs: Sequence[int], where: str) -> None:
    """Raise ProofError at the first token that is not the same on both sides."""
    if (place := _first_difference(ours, theirs)) is not None:
        a, b = (f"{list(ids[place : place + 4])} {_texts(tokenizer, ids[place : place + 4])}" for ids in (ours, theirs))
        raise ProofError(f"llama.cpp has {b} where transformers has {a}", fix=FIX, where=f"{where}, at {place}")


def _first_difference(ours: Sequence[Any], theirs: Sequence[Any]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b), None)


def _odd_tokenizer(own: dict[str, Any], tokenizer: PreTrainedTokenizerBase, file: Path, head: Head) -> list[str]:
    """What in a file's metadata is not as the model's tokenizer has it; `own`: its tokenizer.json."""
    reasons, stated = [], head.singles.get(Keys.PRE)
    try:
        pre = "default" if is_sentencepiece(own) else pre_tokenizer(own)
        if stated != pre:
            reasons.append(f"its {Keys.PRE} is {stated}, and the model's is {pre}")
    except BaseError:  # a tokenizer without such a name
        pass
    added: Mapping[int, Any] = tokenizer.added_tokens_decoder
    if Keys.TOKEN_TYPE in head.arrays:
        plain = [i for i in added if added[i].special and read_item(file, head.arrays[Keys.TOKEN_TYPE], i) == 1]
        reasons += [f"{_token(tokenizer, number)} is typed NORMAL there, and is a special token" for number in plain]
    started = tokenizer("A text")["input_ids"][:1] == [tokenizer.bos_token_id]
    if (stated := head.singles.get(Keys.ADD_BOS)) != started:
        reasons.append(f"its {Keys.ADD_BOS} is {stated}, and the model's is {started}")
    return reasons


def _texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return repr([tokenizer.decode([id_]) for id_ in ids])


def _token(tokenizer: PreTrainedTokenizerBase, id_: int) -> str:
    return f"{tokenizer.decode([id_])!r} (token {id_})"


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return ", ".join(_token(tokenizer, id_) for id_ in ids)
