"""Lists of messages become turns: who speaks, the words, and what is beside them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.data.calls import calls_of, decoded
from tunesmith.data.conversation import Turn
from tunesmith.data.meaning import MEDIA, OF_REASONING, OF_TRAINING, NoTurns, is_trained, says_something
from tunesmith.data.speakers import CALLING, Roles, role_of

SPEAKER, WORDS = ("from", "role", "speaker"), ("value", "content", "text")
"""Keys of a turn; tables and mixed files pad the other ones with null."""
USED = {*SPEAKER, *WORDS, *OF_REASONING, *OF_TRAINING, "train_detail", "tool_calls", "function_call"}
PARTS_OF_TEXT = ("text", "input_text", "output_text")
PARTS_OF_REASONING = ("thinking", "reasoning")
PARTS_OF_MEDIA = ("image", "audio", "video", "file", "media")
NO_TEXT = "a turn holds something other than text"
NO_LIST = "turns are not a list of messages"


def listed(turns: Any, roles: Roles) -> list[Turn]:
    """A list of {from, value} or {role, content}; CSV holds it as JSON text. Raises NoTurns."""
    found: list[Turn] = []
    for turn in messages_in(turns):
        made = _turn(turn, roles)
        if made.calls and is_calling(turn) and found and found[-1].role == "assistant":  # it goes on with what was said
            before = json.loads(found[-1].calls or "[]")
            found[-1] = replace(found[-1], calls=json.dumps(before + json.loads(made.calls), ensure_ascii=False))
        else:
            found.append(made)
    return found


def messages_in(turns: Any) -> list[Mapping[str, Any]]:
    """The messages of a list, which may be written as JSON. Raises NoTurns if it is none."""
    turns = decoded(turns, "turns are not valid JSON")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise NoTurns(NO_LIST)
    return turns


def unused_keys(turns: Any) -> set[str]:
    """The keys of messages that say something and are not read."""
    odd = (turn for turn in turns if not USED.issuperset(turn))
    return {key for turn in odd for key, value in turn.items() if key not in USED and says_something(value)}


def is_calling(turn: Mapping[str, Any]) -> bool:
    """Whether the words of a message are a tool call."""
    speaker = _first(turn, SPEAKER)
    return isinstance(speaker, str) and speaker.strip().casefold() in CALLING


def _turn(turn: Mapping[str, Any], roles: Roles) -> Turn:
    role, words = role_of(_first(turn, SPEAKER), roles), _first(turn, WORDS)
    if role != "assistant":
        if role == "tool" and isinstance(words, dict):
            words = json.dumps(words, ensure_ascii=False)
        return Turn(role, text_of(words))
    if len(turn) == 2 and isinstance(words, str) and not is_calling(turn):  # nothing beside: most turns there are
        return Turn(role, words)
    trained = is_trained(turn)
    if is_calling(turn):
        return Turn(role, "", trained, calls=calls_of(words))
    called = [turn[key] for key in ("tool_calls", "function_call") if says_something(turn.get(key))]
    calls = calls_of(called[0]) if called else ""
    thought = text_of(_first(turn, OF_REASONING) or "") or _text(words, PARTS_OF_REASONING)
    return Turn(role, "" if calls and words is None else text_of(words), trained, thought, calls)


def _first(turn: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    for key in keys:
        if (value := turn.get(key)) is not None:
            return value
    return None


def text_of(value: Any) -> str:
    """A text, or a list of text parts put together; parts with thoughts are left out. Raises NoTurns."""
    if not isinstance(value, str | list):
        raise NoTurns(NO_TEXT)
    return value if isinstance(value, str) else _text(value, PARTS_OF_TEXT)


def _text(value: Any, kinds: tuple[str, ...]) -> str:
    """The parts of these kinds in a list of parts."""
    if not isinstance(value, list):
        return ""
    return "".join(_words(part) for part in value if _kind(part) in kinds)


def _kind(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and any(media in kind for media in PARTS_OF_MEDIA):
        raise NoTurns(MEDIA)
    if kind not in PARTS_OF_TEXT + PARTS_OF_REASONING:
        raise NoTurns(NO_TEXT)
    return str(kind)


def _words(part: Mapping[str, Any]) -> str:
    """A part's text; Mistral's thoughts are a list of parts themselves, and some write a text's under `value`."""
    return text_of(_first(part, ("text", "value", part["type"])))
