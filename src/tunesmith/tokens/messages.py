"""Turns as chat templates take them, plain and with marks around what has to be in the rendered text.

A mark is a noncharacter (Unicode 23.7), which no text of ours has; it says whose the words are and what they are.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from tunesmith.data.conversation import Conversation, Turn

Message = dict[str, Any]
Kind = Literal["words", "reasoning", "call", "result"]
KINDS: tuple[Kind, ...] = ("words", "reasoning", "call", "result")
MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
ANY_MARK = re.compile(f"[{MARKS[0]}-{MARKS[-1]}]")
THINK_TAG = re.compile(r"(</?think>)")  # templates split answers here, so each side gets marks of its own


def messages_of(turns: Sequence[Turn]) -> list[Message]:
    """Turns as chat templates take them: OpenAI's keys, arguments of tool calls as objects where they are JSON."""
    messages: list[Message] = [{"role": turn.role, "content": turn.text} for turn in turns]
    for turn, message in zip(turns, messages, strict=True):
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        if turn.calls:
            message["tool_calls"] = tool_calls(turn.calls)
    return messages


def tool_calls(calls: str) -> list[Message]:
    """The tool calls of a turn as templates take them."""
    return [{"type": "function", "function": call} for call in json.loads(calls)]


def tools_of(conversation: Conversation) -> list[Any] | None:
    """The tools of a conversation as templates take them."""
    return json.loads(conversation.tools) if conversation.tools else None


def everything_in(conversation: Conversation) -> str:
    """All texts of a conversation; those in JSON without its escapes, as a template may write them."""
    said = "\0".join([turn.text for turn in conversation.turns])
    if conversation.is_plain:
        return said
    parts = [json.loads(part) for part in (conversation.tools, *(turn.calls for turn in conversation.turns)) if part]
    plain = [text for part in parts for text in (json.dumps(part, ensure_ascii=False), *texts_in(part))]
    return "\0".join([said, *(turn.reasoning for turn in conversation.turns), *plain])


def texts_in(value: Any) -> list[str]:
    """Every text in a JSON value, names of keys too."""
    found, left = list[str](), [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, dict):
            left += [*part, *part.values()]
        elif isinstance(part, list):
            left += part
    return found


def marked_messages(turns: Sequence[Turn]) -> list[Message]:
    """The same messages, with marks around the words of each answer, its reasoning, the name of each tool that it
    calls, and what a tool gave.
    """
    messages, answers = messages_of(turns), 0
    for turn, message in zip(turns, messages, strict=True):
        if turn.role == "tool":
            message["content"] = _around(turn.text, mark_of(0, "result"))
        if turn.role != "assistant":
            continue
        message["content"] = _marked(turn.text, mark_of(answers, "words"))
        if turn.reasoning:
            message["reasoning_content"] = _around(turn.reasoning, mark_of(answers, "reasoning"))
        for call in message.get("tool_calls", ()):
            call["function"] |= {"name": _around(call["function"]["name"], mark_of(answers, "call"))}
        answers += 1
    return messages


def mark_of(answer: int, kind: Kind) -> str:
    """The mark of an answer; those of answers side by side differ."""
    return MARKS[answer % (len(MARKS) // len(KINDS)) * len(KINDS) + KINDS.index(kind)]


def whose_mark(mark: str) -> tuple[int, Kind]:
    """The answer, counted on past the last mark from 0 again, and what is marked."""
    return WHOSE[mark]


WHOSE = {mark: (place // len(KINDS), KINDS[place % len(KINDS)]) for place, mark in enumerate(MARKS)}


def _marked(answer: str, mark: str) -> str:
    if "think>" not in answer:
        return _around(answer, mark)
    parts = THINK_TAG.split(answer)
    if not THINK_TAG.sub("", answer).strip():
        parts = [answer]  # tags alone: around them
    for index in range(0, len(parts), 2):  # every other part is a tag
        parts[index] = _around(parts[index], mark)
    return "".join(parts)


def _around(text: str, mark: str) -> str:
    """The text with a mark before and after its words, inside its outer white space, so that trimming is seen."""
    words = text.strip()
    if not words:
        return text
    start = text.index(words)
    return f"{text[:start]}{mark}{words}{mark}{text[start + len(words) :]}"
