"""The tokenizer of a GGUF file as Hugging Face's files: tokenizer.json, tokenizer_config.json, chat_template.jinja."""

import json
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tunesmith.errors import BaseError
from tunesmith.gguf.pretokenizers import PRE_TOKENIZERS
from tunesmith.gguf.sentencepiece import BY_NAME, STRIPS_NOT, tokenizer_of
from tunesmith.gguf.source import Source

SENTENCEPIECE, BYTE_LEVEL = "llama", "gpt2"  # tokenizer.ggml.model
SAME = {
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "dbrx": "smaug-bpe", "refact": "smollm", "starcoder": "smollm",
    "deepseek-r1-qwen": "qwen2",
}  # fmt: skip
"""Other names of tokenizer.ggml.pre that llama.cpp cuts in the same way."""


def write_tokenizer(source: Source, folder: Path, ids: dict[str, Any], vocab_size: int) -> None:
    """`ids`: the special tokens by name, None for one that is not there. Raises BaseError for another tokenizer."""
    model = source.get("tokenizer.ggml.model", str)
    pre = source.get("tokenizer.ggml.pre", str, model)
    pre = SAME.get(pre, pre)
    if model != SENTENCEPIECE and (model != BYTE_LEVEL or pre not in PRE_TOKENIZERS):
        known = ", ".join(PRE_TOKENIZERS)
        raise source.refused(f"its tokenizer is {model} {pre}, known are {known}, and SentencePiece's")
    tokens, types = source.get("tokenizer.ggml.tokens", list), source.get("tokenizer.ggml.token_type", list)
    if len(tokens) != len(types) or len(tokens) > vocab_size:
        raise source.refused(
            f"it has {len(tokens)} tokens, {len(types)} types of tokens, and an embedding of other size"
        )
    if not (template := source.get("tokenizer.chat_template", str, "")):
        names = ", ".join(map(str, source.get("tokenizer.chat_templates", list, [])))
        others = f": of {names} none is the default" if names else "; use an instruct model"
        raise source.refused(f"it has no chat template{others}")
    default = model == SENTENCEPIECE or PRE_TOKENIZERS[pre].adds_bos  # llama.cpp's
    add_bos = source.get("tokenizer.ggml.add_bos_token", bool, default)
    if add_bos and ids["bos"] is None:
        raise source.refused("its metadata lacks tokenizer.ggml.bos_token_id")
    try:
        raw = _pieces(source, tokens, types) if model == SENTENCEPIECE else _bytes(source, tokens, pre)
        _add_tokens(raw, source, tokens, types)
        named = {f"{name}_token": tokens[token] for name, token in ids.items() if token is not None}
        if add_bos:
            bos = named["bos_token"]
            raw.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, ids["bos"])])
        raw.save(str(folder / "tokenizer.json"))
    except BaseError:
        raise
    except Exception as error:  # tokenizers raises plain Exceptions, for a merge of tokens that are not there
        raise source.refused(f"its tokenizer cannot be read: {error}") from error
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    dump(folder / "tokenizer_config.json", settings | named | {"add_bos_token": add_bos})
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def dump(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _bytes(source: Source, tokens: list[str], pre: str) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = source.get("tokenizer.ggml.merges", list)
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    known = PRE_TOKENIZERS[pre]
    raw = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=known.ignore_merges))
    if known.normalizer:
        raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(list(known.parts))
    raw.decoder = decoders.ByteLevel()
    return raw


def _pieces(source: Source, tokens: list[str], types: list[int]) -> Tokenizer:
    scores = source.get("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise source.refused(f"it has {len(tokens)} tokens and {len(scores)} scores")
    prefix = source.get("tokenizer.ggml.add_space_prefix", bool, True)
    return tokenizer_of(tokens, types, scores, prefix=prefix)


def _add_tokens(raw: Tokenizer, source: Source, tokens: list[str], types: list[int]) -> None:
    """Those that are looked for before a text is cut."""
    pieces = source.get("tokenizer.ggml.model", str) == SENTENCEPIECE
    special = (TokenType.CONTROL, TokenType.UNKNOWN) if pieces else (TokenType.CONTROL,)
    strips = pieces and bool(BY_NAME.search(source.get("general.name", str, "")))
    raw.add_tokens(
        [
            AddedToken(token, special=kind in special, normalized=False, rstrip=strips and token not in STRIPS_NOT)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (*special, TokenType.USER_DEFINED)
        ]
    )
