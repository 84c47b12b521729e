"""llama.cpp's names for the ways to cut a text before byte-pair encoding, and the same in Hugging Face's tokenizers."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from tunesmith.errors import BaseError

LLAMA3_SPLIT = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
PRE_TOKENIZERS: dict[str, list[Any]] = {  # by tokenizer.ggml.pre: what llama.cpp does under that name
    "smollm": [pre_tokenizers.Digits(individual_digits=True), WORDS],
    "gpt-2": [WORDS],
    "llama-bpe": [pre_tokenizers.Split(LLAMA3_SPLIT, "isolated"), BYTES],
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
    """llama.cpp's name of a tokenizer.json's pre-tokenizer. Raises BaseError for one it does not have."""
    model, found = tokenizer["model"], _parts(tokenizer["pre_tokenizer"] or {})
    for name, parts in PRE_TOKENIZERS.items():
        known = Tokenizer(models.BPE())
        known.pre_tokenizer = pre_tokenizers.Sequence(parts)
        merges_fit = bool(model.get("ignore_merges")) == (name == "llama-bpe")  # llama.cpp ties it to the name
        same = found == _parts(json.loads(known.to_str())["pre_tokenizer"])
        if same and merges_fit and model["type"] == "BPE" and tokenizer["normalizer"] is None:
            return name
    raise BaseError(
        f"llama.cpp has no tokenizer known here for {model['type']} with normalizer {tokenizer['normalizer']}, "
        f"pre_tokenizer {json.dumps(found)}, ignore_merges {model.get('ignore_merges')}",
        fix=f"use a base with one of these: {', '.join(PRE_TOKENIZERS)}",
    )


def _parts(found: dict[str, Any]) -> list[dict[str, Any]]:
    parts = found.get("pretokenizers", [found])
    return [{key: part[key] for key in part if key != "trim_offsets"} for part in parts]  # moves offsets, not tokens
