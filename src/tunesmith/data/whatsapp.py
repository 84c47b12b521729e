"""WhatsApp's export of a chat, a text file: `31/12/20, 22:15 - Ann: Hello` (Android), `[31.12.20, 22:15:03] Ann: Hello`
(iOS).

A message may go on for many lines. The order of day and month is that of the telephone's language and not said; here
it is the one in which the chat hardly ever goes back in time. A line without a speaker is the program's.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.data.chats import NO_WORDS, SERVICE, WHATSAPP, Message, parted
from tunesmith.data.json_rows import ROW_BYTES
from tunesmith.data.not_text import refuse_no_text
from tunesmith.data.opened import opened
from tunesmith.errors import DataError

HEAD = re.compile(  # white space may be U+202F, before AM and PM, or U+00A0; U+200E stands before some lines of iOS
    r"\u200e?(?P<open>\[)?(?P<day>\d{1,4}[./-]\d{1,2}[./-]\d{1,4}),?\s(?:(?:at|um|à)\s)?"
    r"(?P<hour>\d{1,2})[:.](?P<minute>\d\d)(?:[:.]\d\d)?(?:\s?(?P<half>[ap])\.?\s?m\.?)?(?(open)\]| -)\s",
    re.IGNORECASE,
)
SPEAKER = re.compile(r"([^:\"“”\n]{1,100}): ?")  # with a quote it is the program's: Ann changed the name to "a: b"
MEDIA = re.compile(r"<[^<>\n]+>|.*\(file attached\)|null", re.DOTALL)  # "<Media omitted>" in any language
DELETED = ("This message was deleted", "You deleted this message")
EDITED = re.compile(r"\s*\u200e?<This message was edited>\s*$")
ORDERS = {"day first": (2, 1, 0), "month first": (2, 0, 1), "year first": (0, 1, 2)}
"""Order of a date -> the places of year, month and day in it; where two fit as well, the first is taken."""


class Head(NamedTuple):
    """How a message begins: its date as three numbers, and its time."""

    numbers: tuple[int, int, int]
    hour: int
    minute: int


def whatsapp_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One row a conversation: the line of its first message, and {"whatsapp": [[speaker, text], ...], "left_out": ...}.

    Raises DataError for a text that is no such export.
    """
    refuse_no_text(path)
    order, left_out = _order(path), Counter[str]()
    for messages in parted(_messages(path, order, left_out)):
        said = [[message.speaker, message.text] for message in messages]
        yield int(messages[0].place), {WHATSAPP: said, "left_out": dict(left_out)}
        left_out.clear()


def _lines(path: Path) -> Iterator[str]:
    with opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape") as text:
        for number, line in enumerate(iter(lambda: text.readline(ROW_BYTES), ""), 1):
            if len(line) >= ROW_BYTES:
                raise _too_long(path, "line", number)
            yield line


def _too_long(path: Path, what: str, number: int) -> DataError:
    long = f"a {what} of more than {ROW_BYTES >> 20} MiB"
    return DataError(
        f"{path} holds {long} that starts in line {number}, and nothing from there on can be read",
        fix="name the chat's own file, or take out what does not belong to it",
        where=f"{path.name}, line {number}",
    )


def _head(line: str) -> tuple[Head, str] | None:
    """How a message begins that a line begins, and the rest of the line."""
    if not (found := HEAD.match(line)):
        return None
    first, second, third = (int(number) for number in re.split("[./-]", found["day"]))
    hour = int(found["hour"])
    if found["half"]:
        hour = hour % 12 + (12 if found["half"].lower() == "p" else 0)
    return Head((first, second, third), hour, int(found["minute"])), line[found.end() :]


def _time(head: Head, order: str) -> float | None:
    """The time in seconds; None if there is no such day or hour."""
    year, month, day = (head.numbers[place] for place in ORDERS[order])
    try:
        moment = datetime(year + 2000 if year < 100 else year, month, day, head.hour, head.minute)
    except ValueError:
        return None
    return (moment - datetime(2000, 1, 1)).total_seconds()


def _order(path: Path) -> str:
    """The order of the dates: that in which the fewest are no day or before the one above. Raises DataError."""
    wrong, last, seen = Counter[str](), dict.fromkeys(ORDERS, 0.0), False
    for line in _lines(path):
        found = _head(line)
        if found is None and not seen and line.strip():
            break
        if found is None:
            continue
        seen = True
        for order in ORDERS:
            time_s = _time(found[0], order)
            wrong[order] += time_s is None or time_s < last[order]
            last[order] = last[order] if time_s is None else time_s
    if not seen:
        raise DataError(
            f"{path} is no export of a WhatsApp chat: its text does not begin with a date and a time",
            fix="export the chat without media and name that file; write other rows as JSON, JSONL, CSV or Parquet",
        )
    return min(ORDERS, key=lambda order: wrong[order])


def _messages(path: Path, order: str, left_out: Counter[str]) -> Iterator[Message]:
    """The messages with words; the others are counted."""
    for number, time_s, text in _whole(path, order):
        found = SPEAKER.match(text)
        words = EDITED.sub("", text[found.end() :]).strip("\n") if found else ""
        if not found:
            left_out[SERVICE] += 1
        elif words.startswith("\u200e") or MEDIA.fullmatch(words) or words.rstrip(".") in DELETED or not words.strip():
            left_out[NO_WORDS] += 1  # iOS marks what is no text with U+200E
        else:
            yield Message(found[1].lstrip("\u200e\u202a").rstrip("\u202c"), words, time_s, str(number))


def _whole(path: Path, order: str) -> Iterator[tuple[int, float, str]]:
    """Line number, time and text of each message, with the lines that it goes on for."""
    began, when, text, held = 0, 0.0, list[str](), 0
    for number, line in enumerate(_lines(path), 1):
        found = _head(line)
        time_s = _time(found[0], order) if found else None
        if found and time_s is not None:
            if began:
                yield began, when, "".join(text)
            began, when, text, held = number, time_s, [found[1]], 0
        elif began:
            held += len(line)
            if held >= ROW_BYTES:
                raise _too_long(path, "message", began)
            text.append(line)
    if began:
        yield began, when, "".join(text)
