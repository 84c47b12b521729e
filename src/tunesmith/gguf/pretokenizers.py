"""llama.cpp's names for the ways to cut a text before byte-pair encoding, and the same in Hugging Face's tokenizers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from tunesmith.errors import BaseError

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
LLAMA3_SPLIT = Regex(rf"{WORDS}|\p{{N}}{{1,3}}|{SIGNS}|{REST}")
QWEN2_SPLIT = Regex(rf"{WORDS}|\p{{N}}|{SIGNS}|{REST}")
TEKKEN_SPLIT = Regex(rf"{CASED}|{UPPER}|\p{{N}}|{PATHS}|{REST}")
GPT4O_SPLIT = Regex(rf"{CASED}{SHORT}|{UPPER}{SHORT}|\p{{N}}{{1,3}}|{PATHS}|{REST}")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
BYTE_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
NFC = {"type": "NFC"}


@dataclass(frozen=True)
class PreTokenizer:
    """What llama.cpp does under a name of tokenizer.ggml.pre."""

    parts: tuple[Any, ...]
    ignore_merges: bool = False
    """Whether a word that is a token is taken whole."""
    adds_bos: bool = False
    """Whether it begins a text with the first special token where a file does not say."""
    normalizer: dict[str, str] | None = None
    """Of the tokenizers that go by this name. llama.cpp has none: a text that it changes gets other tokens there."""


PRE_TOKENIZERS = {
    "smollm": PreTokenizer((pre_tokenizers.Digits(individual_digits=True), BYTE_WORDS)),
    "gpt-2": PreTokenizer((BYTE_WORDS,)),
    "llama-bpe": PreTokenizer(
        (pre_tokenizers.Split(LLAMA3_SPLIT, "isolated"), BYTES), ignore_merges=True, adds_bos=True
    ),
    "smaug-bpe": PreTokenizer((pre_tokenizers.Split(LLAMA3_SPLIT, "isolated"), BYTES)),
    "qwen2": PreTokenizer((pre_tokenizers.Split(QWEN2_SPLIT, "isolated"), BYTES), normalizer=NFC),
    "tekken": PreTokenizer((pre_tokenizers.Split(TEKKEN_SPLIT, "isolated"), BYTES), ignore_merges=True, adds_bos=True),
    "gpt-4o": PreTokenizer((pre_tokenizers.Split(GPT4O_SPLIT, "isolated"), BYTES)),
}


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """tokenizer.json, in the form that tokenizers writes. Raises BaseError if it is not there or none."""
    path = folder / "tokenizer.json"
    try:
        return dict(json.loads(Tokenizer.from_file(str(path)).to_str()))
    except Exception as error:  # tokenizers raises plain Exceptions
        what = f"tokenizer.json cannot be read: {next(iter(str(error).splitlines()), type(error).__name__)}"
        raise BaseError(what, fix="fetch the model again, or save its tokenizer again", where=str(path)) from error


def need_room(tokenizer: dict[str, Any], vocab_size: int, folder: Path, *, special: bool = True) -> None:
    """Raise BaseError if a token, without `special` one that is no special token, has no row in the embedding."""
    vocab = tokenizer["model"]["vocab"]
    added = {token["id"]: token["special"] for token in tokenizer["added_tokens"]}
    ids = {*(vocab.values() if isinstance(vocab, dict) else range(len(vocab))), *added}  # a list in Unigram
    highest = max((id_ for id_ in ids if special or not added.get(id_)), default=0)
    if highest >= vocab_size:
        raise BaseError(
            f"the tokenizer has more tokens than vocab_size {vocab_size}: ids up to {highest}",
            fix="use an unchanged tokenizer",
            where=str(folder),
        )


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name of a byte-level tokenizer.json's pre-tokenizer. Raises BaseError for one it does not have."""
    model, found = tokenizer["model"], _parts(tokenizer["pre_tokenizer"] or {})
    for name, known in PRE_TOKENIZERS.items():
        whole = Tokenizer(models.BPE())
        whole.pre_tokenizer = pre_tokenizers.Sequence(list(known.parts))
        same = found == _parts(json.loads(whole.to_str())["pre_tokenizer"])
        merges_fit = bool(model.get("ignore_merges")) == known.ignore_merges
        if same and merges_fit and model["type"] == "BPE" and tokenizer["normalizer"] in (None, known.normalizer):
            return name
    raise BaseError(
        f"llama.cpp has no tokenizer known here for {model['type']} with normalizer {tokenizer['normalizer']}, "
        f"pre_tokenizer {json.dumps(found)}, ignore_merges {model.get('ignore_merges')}",
        fix=f"use a base with one of these: {', '.join(PRE_TOKENIZERS)}, or SentencePiece's",
    )


def _parts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps, without what moves offsets and not tokens. What a pattern keeps is what it cuts: these cover all."""
    parts = [{key: part[key] for key in part if key != "trim_offsets"} for part in found.get("pretokenizers", [found])]
    kept = {"behavior": "Removed", "invert": True}
    cut = {"behavior": "Isolated", "invert": False}
    return [part | cut if kept.items() <= part.items() else part for part in parts]
