"""Rows of every format become conversations; what does not fit gives the reason."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tunesmith.data.calls import decoded, tools_of
from tunesmith.data.chatgpt import chatgpt_turns
from tunesmith.data.chats import WHATSAPP, spoken
from tunesmith.data.columns import EXPORTS, FORMATS, Names, Row, cell, missing_column, unused_columns
from tunesmith.data.conversation import Conversation, Dropped, Role, Turn
from tunesmith.data.meaning import NoTurns, why_not_row
from tunesmith.data.noted import Noted
from tunesmith.data.speakers import Roles
from tunesmith.data.telegram import telegram_chats, telegram_conversations
from tunesmith.data.turns import listed, messages_in, text_of, unused_keys
from tunesmith.data.unread import words_of

PAIR: tuple[Role, Role] = ("user", "assistant")
NO_HISTORY = "its history is not a list of questions with their answers"
NO_INSTANCES = "its instances are not a list of inputs with their outputs"
NO_MESSAGES = "a chat without messages that have words"


def read_row(
    row: Row, form: str, names: Names, where: str, roles: Roles, noted: Noted
) -> Iterator[Conversation | Dropped]:
    """What a row of a format holds: one conversation, or several (instances, an export), or why there is none."""
    noted.formats[form] += 1
    noted.note_unused(unused_columns(row, form, names))
    reason = why_not_row(row, names.values())
    if reason is None and form in FORMATS and (missing := missing_column(row, form, names)):
        reason = f"nothing in column {missing}"
    if reason:
        yield Dropped(where, reason, words_of(row))
    elif form == "telegram":
        yield from _telegram(row, where, roles, noted)
    elif form == "self-instruct":
        yield from _instances(row, names, where)
    else:
        yield _one(row, form, names, where, roles, noted)


def _one(row: Row, form: str, names: Names, where: str, roles: Roles, noted: Noted) -> Conversation | Dropped:
    try:
        if form in EXPORTS:
            return Conversation(tuple(_exported(row, form, roles, noted)), where)
        turns = _turns(row, form, names, roles, noted)
        tools = tools_of(cell(row, names["tools"]))
        return Conversation(tuple(_with_system(turns, row, names)), where, tools)
    except NoTurns as reason:
        return Dropped(where, str(reason), words_of(row))


def _turns(row: Row, form: str, names: Names, roles: Roles, noted: Noted) -> list[Turn]:
    """The turns of a row with one conversation in its columns."""
    first, last = (cell(row, names[need]) for need in (FORMATS[form][0], FORMATS[form][-1]))
    if form == "prompt-completion":
        return _context(_part(first, "user", roles)) + _thought(_part(last, "assistant", roles), row, names)
    if form in ("alpaca", "question-answer"):
        asked = _asked(first, cell(row, names["input"]))
        answer = _thought([Turn("assistant", text_of(last))], row, names)
        return [*_earlier(cell(row, names["history"])), Turn("user", asked), *answer]
    messages = messages_in(first)
    noted.note_unused(f"{names[FORMATS[form][0]][0]}[].{key}" for key in unused_keys(messages))
    return listed(messages, roles)


def _context(prompt: list[Turn]) -> list[Turn]:
    """The turns of a prompt; its answers are not to be learned, as only the completion is (TRL)."""
    return [replace(turn, trained=False) if turn.role == "assistant" else turn for turn in prompt]


def _asked(task: Any, context: Any) -> str:
    """A task and what it is about; either may be empty."""
    return "\n\n".join(part for part in (text_of(task), text_of(context or "")) if part.strip())


def _thought(answer: list[Turn], row: Row, names: Names) -> list[Turn]:
    """The answer with what the row's own column says was thought before it."""
    reasoning = cell(row, names["reasoning"])
    if not reasoning or not answer or answer[-1].reasoning:
        return answer
    return [*answer[:-1], replace(answer[-1], reasoning=text_of(reasoning))]


def _with_system(turns: list[Turn], row: Row, names: Names) -> list[Turn]:
    """The turns, after the row's system prompt where they have none."""
    system = text_of(cell(row, names["system"]) or "")
    return [Turn("system", system), *turns] if system.strip() and not _has_system(turns) else turns


def _has_system(turns: list[Turn]) -> bool:
    return bool(turns) and turns[0].role == "system"


def _earlier(history: Any) -> list[Turn]:
    """Questions and answers before a row's own: LLaMA-Factory's list of pairs; CSV holds it as JSON text."""
    pairs = decoded(history, NO_HISTORY) if history else []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == len(PAIR) for pair in pairs):
        raise NoTurns(NO_HISTORY)
    return [Turn(role, text_of(text)) for pair in pairs for role, text in zip(PAIR, pair, strict=True)]


def _part(value: Any, role: Role, roles: Roles) -> list[Turn]:
    """A prompt or completion: a text, or TRL's list of messages."""
    return [Turn(role, value)] if isinstance(value, str) else listed(value, roles)


def _instances(row: Row, names: Names, where: str) -> Iterator[Conversation | Dropped]:
    """Self-instruct: one task, with several inputs and their outputs."""
    try:
        task, instances = (cell(row, names[need]) for need in FORMATS["self-instruct"])
        instances = decoded(instances, NO_INSTANCES)
        if not isinstance(instances, list) or not all(isinstance(one, dict) for one in instances) or not instances:
            raise NoTurns(NO_INSTANCES)
    except NoTurns as reason:
        yield Dropped(where, str(reason), words_of(row))
        return
    for number, one in enumerate(instances, 1):
        place = f"{where}, instance {number}" if len(instances) > 1 else where
        try:
            turns = [Turn("user", _asked(task, one.get("input"))), Turn("assistant", text_of(one.get("output")))]
            yield Conversation(tuple(_with_system(turns, row, names)), place)
        except NoTurns as reason:
            yield Dropped(place, str(reason), words_of(row))


def _exported(row: Row, form: str, roles: Roles, noted: Noted) -> list[Turn]:
    """A conversation of ChatGPT's or WhatsApp's export."""
    if form == "chatgpt":
        return chatgpt_turns(row, noted.changed)
    noted.changed.update(row["left_out"])
    return spoken(row[WHATSAPP], roles, noted.changed)


def _telegram(row: Row, where: str, roles: Roles, noted: Noted) -> Iterator[Conversation | Dropped]:
    """Every conversation of every chat of an export."""
    for chat, messages in telegram_chats(row):
        part = None
        for part in telegram_conversations(messages, noted.changed):
            place = f"{where}, {chat}{part[0].place}"
            try:
                turns = spoken(((said.speaker, said.text) for said in part), roles, noted.changed)
                yield Conversation(tuple(turns), place)
            except NoTurns as reason:
                yield Dropped(place, str(reason), words_of(part[0].text))
        if part is None:
            yield Dropped(f"{where}, {chat}".rstrip(", "), NO_MESSAGES)
