"""What is wrong with a conversation. A rule returns the reason to drop it, or None."""

import re
from collections.abc import Callable
from dataclasses import replace

from tunesmith.data.conversation import Conversation, Dropped, Turn

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")  # all but tab, line ends
NO_TEXT = re.compile("[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")  # half a character, and what Unicode gives no meaning
CUT, STRIPPED, NO_SYSTEM = (
    "last question without an answer cut off",
    "white space around an answer removed",
    "empty system turn removed",
)


def clean(conversation: Conversation) -> tuple[Conversation | Dropped, list[str]]:
    """The conversation, tidied, or why it is dropped; and what was tidied. Letters are kept as they are (no NFC)."""
    conversation, changes = _tidied(conversation)
    reason = next((why for rule in RULES if (why := rule(conversation))), None)
    return (Dropped(conversation.where, reason), []) if reason else (conversation, changes)


def _tidied(conversation: Conversation) -> tuple[Conversation, list[str]]:
    turns, changes = list(conversation.turns), []
    if turns and turns[0].role == "system" and not turns[0].text.strip():
        del turns[0]
        changes.append(NO_SYSTEM)
    if len(turns) > 1 and turns[-1].role == "user":
        del turns[-1]
        changes.append(CUT)
    stripped = [replace(turn, text=turn.text.strip()) if turn.role == "assistant" else turn for turn in turns]
    if (
        stripped != turns
    ):  # as Llama's and Gemma's templates do by themselves; else it would join the prompt's last token
        changes.append(STRIPPED)
    return Conversation(tuple(stripped), conversation.where), changes


def _texts(conversation: Conversation) -> str:
    return "\n".join(turn.text for turn in conversation.turns)


def no_answer(conversation: Conversation) -> str | None:
    """There is nothing to learn."""
    return None if any(turn.role == "assistant" for turn in conversation.turns) else "no assistant turn"


def empty_turn(conversation: Conversation) -> str | None:
    """A turn of white space teaches silence."""
    return None if all(turn.text.strip() for turn in conversation.turns) else "an empty turn"


def wrong_order(conversation: Conversation) -> str | None:
    """After an optional system turn, user and assistant take turns, the user first; templates rely on it."""
    turns: tuple[Turn, ...] = conversation.turns[conversation.turns[0].role == "system" :]
    if turns[0].role != "user":
        return "does not start with the user"
    fitting = all(turn.role == ("user", "assistant")[index % 2] for index, turn in enumerate(turns))
    return None if fitting else "roles do not alternate"


def broken_text(conversation: Conversation) -> str | None:
    """Text that was decoded wrongly before it came here, or is no text."""
    text = _texts(conversation)
    if "\ufffd" in text:
        return "text with replacement characters (U+FFFD)"
    if NO_TEXT.search(text):
        return "text that is not valid Unicode"
    return "control characters" if CONTROL.search(text) else None


RULES: tuple[Callable[[Conversation], str | None], ...] = (no_answer, empty_turn, wrong_order, broken_text)
