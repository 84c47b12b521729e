"""What was said in the terminal, as rows that can be trained on, and the file of the user's that they go to."""

import contextlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.console import say, warn
from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation, Dropped, Turn
from tunesmith.errors import ResourceError, TunesmithError
from tunesmith.files import write_user_file
from tunesmith.json_file import json_line
from tunesmith.recipe import Clean

CUT = "cut"
RULES = Clean(mojibake=False)  # ftfy is of the extra `train`, which a chat does not need


@dataclass(frozen=True)
class Exchange:
    """A question, and what the model said to it."""

    question: str
    answer: str
    whole: bool
    """The model ended it; False: Ctrl+C or the context did."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """Both, as the API takes them."""
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]


@dataclass
class Spoken:
    """A conversation under one system prompt; None sends none."""

    system: str | None
    said: list[Exchange] = field(default_factory=list)

    def messages(self, question: str) -> list[dict[str, str]]:
        """What the model is given to answer a question; a cut answer is part of it, as it is on the screen."""
        said = [message for exchange in self.said for message in exchange.messages]
        return [*self._system, *said, {"role": "user", "content": question}]

    def row(self, left_out: Counter[str]) -> dict[str, Any] | None:
        """A row of what was said but for exchanges that nothing can learn from, which are counted by reason."""
        kept: list[dict[str, str]] = []
        for exchange in self.said:
            if reason := self._fault(exchange):
                left_out[reason] += 1
            else:
                kept += exchange.messages
        return {"messages": [*self._system, *kept]} if kept else None

    def _fault(self, exchange: Exchange) -> str:
        """Why an exchange teaches no whole answer, or would make prepare drop the row."""
        if not exchange.whole:
            return CUT
        turns = (Turn(message["role"], message["content"]) for message in [*self._system, *exchange.messages])  # type: ignore[arg-type]
        tidied, _ = clean(Conversation(tuple(turns), ""), RULES)
        return tidied.reason if isinstance(tidied, Dropped) else ""

    @property
    def _system(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []


def save(conversations: Sequence[Spoken], name: str) -> None:
    """Add conversations to the JSONL file `name`, a row each, and say what is left out; a fault is a warning."""
    left_out = Counter[str]()
    rows = [row for one in conversations if (row := one.row(left_out))]
    why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    if not name:
        warn("/save needs the name of a file, such as /save chats.jsonl")
    elif not any(one.said for one in conversations):
        warn("nothing was said yet, so nothing is saved")
    elif not rows:
        warn(f"nothing is saved, for no answer can be trained on: {why}")
    else:
        try:
            if _written(rows, Path(_unquoted(name)).expanduser()) and why:
                answers = sum(len(one.said) for one in conversations)
                warn(f"{left_out.total()} of {answers} answers left out with their questions: {why}")
        except (OSError, ValueError, RuntimeError, TunesmithError) as error:  # RuntimeError: no home folder
            what = error.what if isinstance(error, TunesmithError) else getattr(error, "strerror", None) or error
            warn(f"{name} is not written: {what}; name another file")


def _unquoted(name: str) -> str:
    """A name in quotes, as a shell takes it; one with a lone quote is as it stands."""
    with contextlib.suppress(ValueError):
        if len(parts := shlex.split(name)) == 1:
            return parts[0]
    return name


def _written(rows: Sequence[dict[str, Any]], file: Path) -> bool:
    """Add lines to a JSONL file; what is there stays, unless the user says otherwise. Whether it was done."""
    lines = "".join(map(json_line, rows)).encode()
    count = f", a row for each of {len(rows)} conversations" if len(rows) > 1 else ""
    if not os.path.lexists(file):
        write_user_file(file, lines)
        say(f"saved to {file}{count}")
        return True
    if not file.is_file():
        raise ResourceError("it is no file", fix="name another file")
    how = _choice(f"{file} is there. Add to it (a), replace it (r), or leave it (enter)? ")
    if how == "a":
        with file.open("r+b") as opened:
            if opened.seek(0, os.SEEK_END) and (opened.seek(-1, os.SEEK_END), opened.read(1))[1] != b"\n":
                opened.write(b"\n")
            opened.write(lines)
        say(f"added to {file}{count}")
    elif how == "r":
        write_user_file(file, lines)
        say(f"replaced {file}{count}")
    else:
        warn(f"{file} is left as it is; name another file")
    return how in ("a", "r")


def _choice(question: str) -> str:
    """What a person answers; nothing where there is none to ask."""
    if not sys.stdin.isatty():
        return ""
    try:
        return input(question).strip().lower()[:1]
    except (EOFError, KeyboardInterrupt):
        print()
        return ""
