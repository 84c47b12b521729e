"""What is tidied in a conversation, and what is wrong with it."""

import re
from dataclasses import replace

from tunesmith.data.conversation import Conversation, Dropped, Turn

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")  # all but tab and line ends
NO_TEXT = re.compile("[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")  # half a character, and what Unicode gives no meaning


def clean(conversation: Conversation) -> tuple[Conversation | Dropped, list[str]]:
    """The conversation, tidied, or why it is dropped; and what was tidied. Letters are kept as they are (no NFC)."""
    turns, changes = list(conversation.turns), []
    if turns and turns[0].role == "system" and not turns[0].text.strip():
        del turns[0]
        changes.append("empty system turn removed")
    if len(turns) > 1 and turns[-1].role == "user":
        del turns[-1]
        changes.append("last question without an answer cut off")
    stripped = [replace(turn, text=turn.text.strip()) if turn.role == "assistant" else turn for turn in turns]
    if stripped != turns:  # Llama's and Gemma's templates do it, too; elsewhere it can join the prompt's last token
        changes.append("white space around an answer removed")
    reason = _fault(stripped)
    tidied = Conversation(tuple(stripped), conversation.where)
    return (Dropped(conversation.where, reason), []) if reason else (tidied, changes)


def _fault(turns: list[Turn]) -> str | None:
    """The first reason to drop these turns, or None."""
    said = turns[1:] if turns and turns[0].role == "system" else turns
    text = "\n".join(turn.text for turn in turns)
    rules = {
        "no assistant turn": all(turn.role != "assistant" for turn in turns),
        "an empty turn": not all(turn.text.strip() for turn in turns),
        "does not start with the user": bool(said) and said[0].role != "user",
        "roles do not alternate": any(turn.role != ("user", "assistant")[i % 2] for i, turn in enumerate(said)),
        "text with replacement characters (U+FFFD)": "\ufffd" in text,  # it was decoded wrongly before it came here
        "text that is not valid Unicode": NO_TEXT.search(text),
        "control characters": CONTROL.search(text),
    }
    return next((reason for reason, is_wrong in rules.items() if is_wrong), None)
