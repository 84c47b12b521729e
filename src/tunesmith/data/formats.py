"""ShareGPT, messages, Alpaca and prompt-completion rows become turns; what does not fit gives the reason."""

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.data.conversation import Role, Turn
from tunesmith.data.keys import DECODER, key_twice
from tunesmith.data.meaning import why_not_row, why_not_turn
from tunesmith.errors import DataError
from tunesmith.recipe import Source

FORMATS = {
    "sharegpt": ("conversations",),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
}
"""Format -> the columns it needs, in the order in which `auto` tries them."""
ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("function_call", "observation", "tool", "function"), "tool"),
}
"""Who speaks, in any case -> the role."""
PAIR: tuple[Role, Role] = ("user", "assistant")

Row = Mapping[str, Any]
Names = dict[str, str]


class _NoTurns(Exception):  # noqa: N818 (a reason on its way up, not a failure)
    """Why a row is no conversation."""


def column_names(source: Source) -> Names:
    """Column of the format -> column of the source."""
    columns = source.columns
    return {name: getattr(columns, name) or name for name in type(columns).model_fields}


def format_of(row: Row, source: Source, where: str) -> str:
    """The format of a source, decided by the columns of a row. Raises DataError if none fits."""
    names = column_names(source)
    wanted = FORMATS if source.format == "auto" else {source.format: FORMATS[source.format]}
    if found := _form(row, wanted, names):
        return found
    known = "; ".join(f"{form}: {' and '.join(names[need] for need in needs)}" for form, needs in wanted.items())
    fix = "name its columns in the recipe, such as data.sources[].columns: {output: answer}"
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and _form(value[0], wanted, names):
            fix = f'the rows are in the list "{key}": write that list alone to a file, and name it in the recipe'
    raise DataError(
        f"{source.path} has the columns {', '.join(map(str, row)) or '(none)'}. A conversation needs {known}",
        fix=fix,
        where=where,
    )


def _form(row: Row, wanted: Mapping[Any, tuple[str, ...]], names: Names) -> str | None:
    """The first format whose columns a row has; better one with something in them, as tables pad columns with null."""
    for is_there in (lambda column: row.get(column) is not None, row.__contains__):
        for form, needs in wanted.items():
            if all(is_there(names[need]) for need in needs):
                return form
    return None


def to_turns(row: Row, form: str, names: Names) -> tuple[Turn, ...] | str:
    """The turns of a row, or the reason why it has none."""
    missing = [names[need] for need in FORMATS[form] if row.get(names[need]) is None]
    if missing:
        return f"nothing in column {missing[0]}"
    if reason := why_not_row(row, names.values()):
        return reason
    first, last = (row[names[need]] for need in (FORMATS[form][0], FORMATS[form][-1]))
    try:
        if form == "alpaca":
            task, context = _text(first), _text(row.get(names["input"]) or "")
            asked = "\n\n".join(part for part in (task, context) if part.strip())
            turns = [*_earlier(row.get("history")), Turn("user", asked), Turn("assistant", _text(last))]
        elif form == "prompt-completion":
            turns = _part(first, "user") + _part(last, "assistant")
        else:
            turns = _listed(first)
        system = _text(row.get(names["system"]) or "")
    except _NoTurns as reason:
        return str(reason)
    if system.strip() and not (turns and turns[0].role == "system"):
        turns.insert(0, Turn("system", system))
    return tuple(turns)


def _earlier(history: Any) -> list[Turn]:
    """Questions and answers before an Alpaca row's own: LLaMA-Factory's list of pairs; CSV holds it as JSON text."""
    if not history:
        return []
    pairs = _decoded(history)
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == len(PAIR) for pair in pairs):
        raise _NoTurns("its history is not a list of questions with their answers")
    return [Turn(role, _text(text)) for pair in pairs for role, text in zip(PAIR, pair, strict=True)]


def _part(value: Any, role: Role) -> list[Turn]:
    """A prompt or completion: a text, or TRL's list of messages."""
    return [Turn(role, value)] if isinstance(value, str) else _listed(value)


def _listed(turns: Any) -> list[Turn]:
    """A list of {from, value} or {role, content}; CSV holds it as JSON text."""
    turns = _decoded(turns)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _NoTurns("turns are not a list of messages")
    return [_turn(turn) for turn in turns]


def _decoded(value: Any) -> Any:
    """What a cell holds as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        found = DECODER.decode(value)
    except (ValueError, RecursionError):
        raise _NoTurns("turns are not valid JSON") from None
    if twice := key_twice(found):
        raise _NoTurns(twice)
    return found


def _turn(turn: Row) -> Turn:
    speaker = _either(turn, "from", "role")  # tables and mixed files pad the other one's keys with null
    role = ROLES.get(speaker.strip().casefold()) if isinstance(speaker, str) else None
    if role is None:
        raise _NoTurns(f"unknown role {json.dumps(speaker, default=str)[:40]}")
    if reason := why_not_turn(turn, role):
        raise _NoTurns(reason)
    return Turn(role, _text(_either(turn, "value", "content")))


def _either(turn: Row, key: str, other: str) -> Any:
    return turn.get(other) if turn.get(key) is None else turn[key]


def _text(value: Any) -> str:
    """A text, or a list of text parts put together."""
    if isinstance(value, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in value):
            raise _NoTurns("a turn holds something other than text")
        value = "".join(_text(part.get("text") or part.get("value")) for part in value)
    if not isinstance(value, str):
        raise _NoTurns("a turn holds something other than text")
    return value
