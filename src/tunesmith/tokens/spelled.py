"""The text of tokens, looked up token by token where that is what the tokenizer's decoder does."""

from collections.abc import Callable, Sequence
from operator import itemgetter

from tokenizers import Tokenizer, decoders

LOST = "\ufffd"
"""What a part of a letter decodes to."""
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = dict(zip(map(chr, PRINTED), PRINTED, strict=True)) | {
    chr(0x100 + number): byte for number, byte in enumerate(sorted({*range(0x100)} - {*PRINTED}))
}
"""The letters that byte-level vocabularies are written in: a byte that prints as itself, the others from U+0100 on
(Radford et al. 2019, encoder.py)."""


class _Pieces:
    """Token -> the bytes that it stands for, filled as tokens come by. A list: as a dict it takes three times as long
    to look up, as little of it is in a processor's cache.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        highest = max(tokenizer.get_vocab().values())  # numbers may be left out
        self._bytes: list[bytes | None] = [None] * (highest + 1)

    def spell(self, tokens: Sequence[int], text: bytes) -> bool:
        """Whether the tokens are the text, byte by byte."""
        pieces = itemgetter(0, 0, *tokens)(self._bytes)[2:]  # of one place alone it would give no tuple
        if None in pieces:
            for token in {token for token in tokens if self._bytes[token] is None}:
                self._bytes[token] = self._bytes_of(token)
            pieces = itemgetter(0, 0, *tokens)(self._bytes)[2:]
        return b"".join(pieces) == text

    def _bytes_of(self, token: int) -> bytes:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        letters = self._tokenizer.id_to_token(token) or ""
        is_part = LOST in text and all(letter in BYTES for letter in letters)
        return bytes(BYTES[letter] for letter in letters) if is_part else text.encode()


def spells(tokenizer: Tokenizer) -> Callable[[Sequence[int], bytes], bool]:
    """Whether tokens decode to a text, in UTF-8; no where that takes the decoder itself to tell.

    A byte-level decoder writes each token's bytes one after another whatever stands beside it, and takes ten times as
    long as to look them up. Others put in spaces and take some away.
    """
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return lambda tokens, text: False
    return _Pieces(tokenizer).spell
