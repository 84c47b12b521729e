"""SentencePiece's BPE as tokenizer.json keeps it, and as llama.cpp does under the name "llama".

Both join the pair of pieces that makes the best piece, again and again; tokenizer.json lists the pairs in their order,
llama.cpp knows the pieces alone, by score (src/llama-vocab.cpp, llm_tokenizer_spm). So the list must have every pair.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from gguf import TokenType
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tunesmith.errors import BaseError

SPACE = "\u2581"  # how a space is written in a piece
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SWAP = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
FIRST = {"type": "Prepend", "prepend": SPACE}
LAYOUTS: tuple[tuple[Any, Any, bool], ...] = (
    (SWAP, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}, False),
    (SWAP, None, False),
    ({"type": "Sequence", "normalizers": [FIRST, SWAP]}, None, True),
    # a space before the first piece of a text alone: a conversation begins with a special token instead
    (None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": False}, False),
    (None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}, False),
)
"""Normalizer, pre-tokenizer -> whether a space stands before each text: tokenizer.ggml.add_space_prefix."""
STRIPS_NOT = ("<unk>", "<s>", "<|endoftext|>")
BY_NAME = re.compile(r"phi-?3", re.IGNORECASE)
"""In a model's name: llama.cpp lets its special tokens but STRIPS_NOT take the spaces to their right, as Phi-3's do."""


class Pieces(NamedTuple):
    """Scores of the ids that two pieces make, types of those that are no plain pieces, and whether a space stands
    before each text.
    """

    scores: dict[int, float]
    kinds: dict[int, TokenType]
    prefix: bool


def is_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json falls back to bytes, as SentencePiece's do and byte-level ones do not."""
    model = tokenizer["model"]
    return model["type"] == "BPE" and bool(model.get("byte_fallback"))


def pieces_of(tokenizer: dict[str, Any]) -> Pieces:
    """What llama.cpp needs to know. Raises BaseError for a tokenizer that would cut texts in another way there."""
    model = tokenizer["model"]
    vocabulary, unknown = model["vocab"], model.get("unk_token")
    layout = [tokenizer["normalizer"], tokenizer["pre_tokenizer"]]
    prefix = next((prefix for *known, prefix in LAYOUTS if known == layout), None)
    if prefix is None:
        raise _refused("normalizer {}, pre_tokenizer {}".format(*map(json.dumps, layout)))
    if lacking := [name for name in BYTES if name not in vocabulary]:
        raise _refused(f"no token {lacking[0]}")
    if unknown not in vocabulary:
        raise _refused(f"unk_token {unknown}")
    order: dict[str, int] = {}
    pairs = [_pair(merge) for merge in model["merges"]]
    for left, right in pairs:
        order.setdefault(left + right, len(order))
    added = {token["content"] for token in tokenizer["added_tokens"]}
    _refuse_missing([piece for piece in vocabulary if piece not in added or SPACE in piece], vocabulary, set(pairs))
    scores = {vocabulary[piece]: -float(place) for piece, place in order.items()}
    kinds = {vocabulary[name]: TokenType.BYTE for name in BYTES} | {vocabulary[unknown]: TokenType.UNKNOWN}
    return Pieces(scores, kinds, prefix)


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
    return left, right


def _refuse_missing(pieces: list[str], vocabulary: dict[str, int], pairs: set[tuple[str, str]]) -> None:
    """Raise BaseError for a piece that llama.cpp would join of two that tokenizer.json does not."""
    for piece in pieces:
        for cut in range(1, len(piece)):
            pair = piece[:cut], piece[cut:]
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in pairs:
                raise _refused(f"a piece {piece!r} that is not joined of {pair[0]!r} and {pair[1]!r}")


def _refused(what: str) -> BaseError:
    return BaseError(
        f"llama.cpp has no tokenizer known here for BPE with bytes for unknown characters, and {what}",
        fix="use a base with an unchanged tokenizer of SentencePiece",
    )


def strips_spaces(tokenizer: dict[str, Any]) -> bool:
    """Whether special tokens take the spaces to their right, which llama.cpp does by the model's name, Phi-3, alone.

    Raises BaseError where some take spaces that llama.cpp leaves.
    """
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    right = {name for name, token in added.items() if token.get("rstrip")}
    odd = [name for name, token in added.items() if token.get("lstrip") or token.get("single_word")]
    if not right and not odd:
        return False
    if not odd and {"</s>", *STRIPS_NOT} <= set(added) and right == set(added) - set(STRIPS_NOT):
        return True
    raise BaseError(
        f"the tokenizer's special token {sorted({*odd, *right})[0]} takes the spaces beside it, which llama.cpp leaves",
        fix="use another base",
    )


def named_for(tokenizer: dict[str, Any], name: str) -> str:
    """The model's name, with the word by which llama.cpp knows Phi-3's tokenizer, and without it for all others."""
    if strips_spaces(tokenizer):
        return name if BY_NAME.search(name) else f"{name} Phi-3"
    return BY_NAME.sub("Phi 3", name)


def tokenizer_of(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float], *, prefix: bool) -> Tokenizer:
    """Hugging Face's tokenizer of a GGUF's pieces, without its added tokens."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    plain = [number for number, kind in enumerate(kinds) if kind == TokenType.NORMAL and len(tokens[number]) > 1]
    merges = []
    for number in sorted(plain, key=lambda number: (-scores[number], number)):
        cuts = ((tokens[number][:cut], tokens[number][cut:]) for cut in range(1, len(tokens[number])))
        known = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    unknown = next((tokens[number] for number, kind in enumerate(kinds) if kind == TokenType.UNKNOWN), "<unk>")
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    swap = normalizers.Replace(" ", SPACE)
    ending = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        raw.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), swap])
        raw.decoder = decoders.Sequence([*ending, decoders.Strip(" ", 1, 0)])
    else:
        raw.normalizer, raw.pre_tokenizer = swap, pre_tokenizers.Split(" ", "merged_with_previous")
        raw.decoder = decoders.Sequence(ending)
    return raw
