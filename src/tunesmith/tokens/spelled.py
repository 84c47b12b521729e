"""The text of tokens, looked up token by token where that is what the tokenizer's decoder does."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders

LOST = "\ufffd"
"""What a part of a letter decodes to."""
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = dict(zip(map(chr, PRINTED), PRINTED, strict=True)) | {
    chr(0x100 + number): byte for number, byte in enumerate(sorted({*range(0x100)} - {*PRINTED}))
}
"""The letters that byte-level vocabularies are written in: a byte that prints as itself, the others from U+0100 on
(Radford et al. 2019, encoder.py)."""


class _Bytes(dict[int, bytes]):
    """Token -> the bytes that it stands for, filled as tokens come by."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> bytes:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        letters = self._tokenizer.id_to_token(token) or ""
        is_part = LOST in text and all(letter in BYTES for letter in letters)
        self[token] = found = bytes(BYTES[letter] for letter in letters) if is_part else text.encode()
        return found


def spells(tokenizer: Tokenizer) -> Callable[[Sequence[int], bytes], bool]:
    """Whether tokens decode to a text, in UTF-8; no where that takes the decoder itself to tell.

    A byte-level decoder writes each token's bytes one after another whatever stands beside it, and is 10 times slower
    than to look them up. Others put in spaces and take some away.
    """
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return lambda tokens, text: False
    known = _Bytes(tokenizer)
    return lambda tokens, text: b"".join(map(known.__getitem__, tokens)) == text
