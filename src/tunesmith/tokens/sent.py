"""A loaded tokenizer as conversations need it, which can be sent to another process.

To load one there takes 9 s of a processor, imports of transformers and torch among them, and to unpack this one 3.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import AddedToken, Tokenizer


class ChatTokenizer(Hashable, Protocol):
    """What conversations need of a tokenizer to become tokens; transformers' have it."""

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The one that makes the tokens."""

    @property
    def chat_template(self) -> Any:
        """One template, or several by name; None without any."""

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """What templates call them, and their text."""

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Those that a text is cut at."""

    def get_chat_template(self) -> str:
        """The template for chats."""


@dataclass(frozen=True, eq=False)
class SentTokenizer:
    """A ChatTokenizer that holds no more than that."""

    backend_tokenizer: Tokenizer
    chat_template: str
    special_tokens_map: dict[str, Any]
    added_tokens_decoder: dict[int, AddedToken]

    def get_chat_template(self) -> str:
        """The template for chats."""
        return self.chat_template


def to_send(tokenizer: ChatTokenizer) -> SentTokenizer:
    """What is sent of a tokenizer with a chat template."""
    return SentTokenizer(
        tokenizer.backend_tokenizer, tokenizer.get_chat_template(), tokenizer.special_tokens_map,
        dict(tokenizer.added_tokens_decoder),
    )  # fmt: skip
