"""ChatGPT's export, conversations.json: each conversation is a tree of messages, of which one branch is current.

The form is OpenAI's and undocumented; what is read here is what exports of 2023 to 2025 hold: `mapping` (id -> node
with `message`, `parent`, `children`) and `current_node`. Answers that were made anew, and questions that were edited,
are other branches and not read.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tunesmith.data.calls import NO_CALL, decoded
from tunesmith.data.conversation import Turn
from tunesmith.data.meaning import MEDIA, NoTurns
from tunesmith.data.speakers import ROLES

NO_BRANCH = "its tree of messages has no way from the current one to the first"
OTHER_FORM = "messages of another form than ChatGPT's exports had so far"
HIDDEN = "hidden messages of ChatGPT left out"
MARKS = "ChatGPT's marks of sources taken out of answers"
MARK = re.compile("\ue200[^\ue200\ue201]*\ue201|\u3010[^\u3010\u3011]*\u2020[^\u3010\u3011]*\u3011")
"""A citation: between letters of the private use area, or 【12†source】; the page shows a link in its place."""
OF_SETTINGS = ("user_editable_context", "model_editable_context", "reasoning_recap")
"""Contents that nobody said in the conversation."""


def is_chatgpt(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of ChatGPT's conversations."""
    nodes = row.get("mapping")
    return isinstance(nodes, dict) and all(isinstance(node, dict) and "parent" in node for node in nodes.values())


def chatgpt_turns(row: Mapping[str, Any], changed: Counter[str]) -> list[Turn]:
    """The turns of the current branch. Raises NoTurns; what is left out is counted in `changed`."""
    try:
        return _turns(row, changed)
    except (AttributeError, KeyError, TypeError):  # undocumented, it may be anything
        raise NoTurns(OTHER_FORM) from None


def _turns(row: Mapping[str, Any], changed: Counter[str]) -> list[Turn]:
    turns, thought = list[Turn](), ""
    for message in _branch(row):
        author, content = message.get("author") or {}, message.get("content") or {}
        kind, role = content.get("content_type"), ROLES.get(str(author.get("role")))
        if role is None:
            raise NoTurns(f"unknown role {json.dumps(author.get('role'), default=str)[:40]}")
        if _is_hidden(message) or kind in OF_SETTINGS:
            changed[HIDDEN] += 1
        elif kind == "thoughts":
            thought += "\n\n".join(str(part.get("content") or "") for part in content.get("thoughts") or ())
        elif role == "system" and not _words(content).strip():
            pass  # every tree begins with an empty one
        else:
            turn = _turn(message, Turn(role, _words(content)))
            if role == "assistant" and MARK.search(turn.text):
                turn = replace(turn, text=MARK.sub("", turn.text))
                changed[MARKS] += 1
            turns.append(replace(turn, reasoning=thought) if role == "assistant" else turn)
            thought = "" if role == "assistant" else thought
    return turns


def _branch(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The messages on the way from the root to the current node."""
    nodes, here, way = row["mapping"], row.get("current_node"), list[Any]()
    while here is not None:
        if here not in nodes or len(way) > len(nodes):
            raise NoTurns(NO_BRANCH)
        way.append(nodes[here].get("message"))
        here = nodes[here]["parent"]
    if not way:
        raise NoTurns(NO_BRANCH)
    return (message for message in reversed(way) if message is not None)  # the root has none


def _is_hidden(message: Mapping[str, Any]) -> bool:
    """Whether the page does not show it; weight 0 is the older sign of it."""
    beside = message.get("metadata") or {}
    return bool(beside.get("is_visually_hidden_from_conversation")) or message.get("weight") == 0


def _words(content: Mapping[str, Any]) -> str:
    """The text of a message: its parts, or of code, what it printed, and pages that were read."""
    parts = content.get("parts")
    if parts is None:
        return str(content.get("text") or content.get("result") or "")
    return "\n".join(_part(part) for part in parts)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("content_type") == "audio_transcription":  # what was said aloud
        return str(part.get("text") or "")
    raise NoTurns(MEDIA)


def _turn(message: Mapping[str, Any], turn: Turn) -> Turn:
    """The turn; one that is addressed to a tool is a call of it."""
    tool = message.get("recipient")
    if turn.role != "assistant" or tool in (None, "all"):
        return turn
    try:
        arguments = decoded(turn.text, NO_CALL)
    except NoTurns:
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"input": turn.text}  # a program, or a search
    return Turn("assistant", "", calls=json.dumps([{"name": tool, "arguments": arguments}], ensure_ascii=False))
