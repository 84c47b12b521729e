"""Telegram's export, result.json: one chat, or a whole account with its chats in a list.

The form is Telegram Desktop's ("Export chat history" and "Export Telegram data", machine-readable JSON).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import chain
from typing import Any

from tunesmith.data.chats import FORWARDED, NO_MESSAGE, NO_WORDS, SERVICE, Message, parted


def is_telegram(row: Mapping[str, Any]) -> bool:
    """Whether a row is a chat of Telegram, or an account's export."""
    if _lists(row):
        return True
    messages = row.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, dict) and {"id", "type", "date"} <= first.keys()


def telegram_chats(row: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The chats of an export: what to call each, and its messages."""
    lists = _lists(row)
    for number, chat in enumerate(chain(*lists) if lists else [row], 1):
        messages = chat.get("messages") if isinstance(chat, dict) else None
        name = f"chat {number}, " if lists else ""
        yield name, messages if isinstance(messages, list) else []


def _lists(row: Mapping[str, Any]) -> list[list[Any]]:
    """The lists of chats of an account: those that its owner is in, and those that he left."""
    held = (row.get(key) for key in ("chats", "left_chats"))
    return [found["list"] for found in held if isinstance(found, dict) and isinstance(found.get("list"), list)]


def telegram_conversations(messages: list[Any], changed: Counter[str]) -> Iterator[list[Message]]:
    """The conversations of a chat; messages that are left out are counted by their reason in `changed`."""
    found = [_message(message) for message in messages]
    changed.update(reason for reason in found if isinstance(reason, str))
    return parted(message for message in found if isinstance(message, Message))


def _message(message: Any) -> Message | str:
    """What was said, or why a message is left out."""
    kind = message.get("type") if isinstance(message, dict) else None
    if kind != "message":
        return SERVICE if kind else NO_MESSAGE
    if message.get("forwarded_from"):  # another's words
        return FORWARDED
    text, time_s = _text(message.get("text", "")), _time(message)
    speaker = message.get("from") or message.get("from_id")  # a deleted account has no name
    if text is None or time_s is None or not isinstance(speaker, str):
        return NO_MESSAGE
    return Message(speaker, text, time_s, f"message {message.get('id')}") if text.strip() else NO_WORDS


def _time(message: Mapping[str, Any]) -> float | None:
    """When a message was sent, in seconds; None if it does not say so. Older exports have the local time only."""
    try:
        if since_1970 := message.get("date_unixtime"):
            return float(since_1970)
        return (datetime.fromisoformat(message["date"]) - datetime(2000, 1, 1)).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def _text(text: Any) -> str | None:
    """A text, or a list of texts and entities (links, bold words), each with its own; None for anything else."""
    parts = text if isinstance(text, list) else [text]
    words: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return "".join(words) if all(isinstance(word, str) for word in words) else None
