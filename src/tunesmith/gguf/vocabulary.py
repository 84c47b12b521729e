"""The tokenizer of a Hugging Face folder in a GGUF file's metadata: tokens, types, merges or scores, special tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

from tunesmith.gguf.pretokenizers import need_room, pre_tokenizer
from tunesmith.gguf.sentencepiece import SPACE, Pieces, is_sentencepiece, pieces_of, strips_spaces
from tunesmith.weights.small_files import chat_template

SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
UNUSED_SCORE = -10000.0  # of ids that no two pieces make


def checked_tokenizer(tokenizer: dict[str, Any], vocab_size: int, folder: Path) -> Pieces | str:
    """What llama.cpp needs to know of it: SentencePiece's pieces, or the name of a pre-tokenizer.

    Raises BaseError for a tokenizer whose tokens llama.cpp would not find, or that has no room in the embedding. A
    special token beyond it, as Gemma 3's for images, is left out.
    """
    strips_spaces(tokenizer)
    need_room(tokenizer, vocab_size, folder, special=False)
    return pieces_of(tokenizer) if is_sentencepiece(tokenizer) else pre_tokenizer(tokenizer)


def add_tokenizer(
    writer: gguf.GGUFWriter, folder: Path, tokenizer: dict[str, Any], config: dict[str, Any], template: str | None,
    end_of_turn: int | None,
) -> None:  # fmt: skip
    """Write it. `template` None takes the folder's own; `end_of_turn` is the token that ends an answer."""
    vocab_size = config["vocab_size"]
    found = checked_tokenizer(tokenizer, vocab_size, folder)
    pieces = None if isinstance(found, str) else found
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre(found if isinstance(found, str) else "default")
    tokens, kinds = zip(*_tokens(tokenizer, vocab_size, pieces), strict=True)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if pieces:
        writer.add_token_scores([pieces.scores.get(id_, UNUSED_SCORE) for id_ in range(vocab_size)])
        writer.add_add_space_prefix(pieces.prefix)
    ids = {name: config.get(f"{name}_token_id") for name in SPECIAL}
    there = [name for name, id_ in ids.items() if not isinstance(id_, int) or id_ >= 0]  # -1: some mean none by it
    special = gguf.SpecialVocab(folder, load_merges=not pieces, special_token_types=there, n_vocab=vocab_size)
    special.add_special_token.setdefault("bos", False)  # llama.cpp's own default depends on the pre-tokenizer
    special.chat_template = template or chat_template(folder)
    if end_of_turn is not None:
        eos = special.special_token_ids.setdefault("eos", end_of_turn)  # else llama.cpp takes token 11
        if eos != end_of_turn:
            writer.add_eot_token_id(end_of_turn)  # llama.cpp stops at this one too
    special.add_to_gguf(writer)


def _tokens(tokenizer: dict[str, Any], vocab_size: int, pieces: Pieces | None) -> Iterator[tuple[str, int]]:
    """Text and type of every id. Special ones are control tokens, and those that look it, as the converter decides."""
    ids = {id_: token for token, id_ in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    known = pieces.kinds if pieces else {}
    for id_ in range(vocab_size):
        if id_ in known:
            yield ids[id_], known[id_]
        elif id_ in added and not (pieces and SPACE in added[id_]["content"]):
            text = added[id_]["content"]
            control = added[id_]["special"] or (text.startswith("<|") and text.endswith("|>"))
            yield text, gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
        elif id_ in ids:  # a piece of spaces, too: llama.cpp would show one that is added as it is written
            yield ids[id_], gguf.TokenType.NORMAL
        else:
            yield f"[PAD{id_}]", gguf.TokenType.UNUSED
