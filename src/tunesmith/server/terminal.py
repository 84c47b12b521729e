"""The chat in the terminal: questions, answers as they come, commands, and a history of what was typed."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.console import say, warn
from tunesmith.errors import DataError, ResourceError, TunesmithError
from tunesmith.files import write_user_file
from tunesmith.inference.client import Answer, Client
from tunesmith.weights.cache import cache_folder

try:
    import readline
except ImportError:  # a Python without it: lines are typed as the terminal alone lets them
    readline = None  # type: ignore[assignment]

HISTORY = "chat-history"
KEPT_LINES = 1000
MANY_LINES = '"""'
COMMANDS = {
    "/help": "this list",
    "/system [TEXT]": "show the system prompt in force, or replace it; the conversation goes on",
    "/clear": "start a new conversation",
    "/save FILE": "add the conversation to a JSONL file, as a row that can be trained on",
    "/exit": "end the chat, as Ctrl+D does; Ctrl+C cuts an answer short",
    MANY_LINES: f"begin a text of many lines, which ends with {MANY_LINES}",
    "//TEXT": "send a text that begins with a slash",
}


class Talk:
    """One conversation at a time, and what is typed into it."""

    def __init__(self, engine: Client, *, system: str | None, own_system: str | None, context: int) -> None:
        """`system`: None leaves it to the file's template, which puts in `own_system`."""
        self._engine, self._system, self._own_system, self._context = engine, system, own_system, context
        self.messages: list[dict[str, str]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help, "/system": self._set_system, "/clear": self._clear, "/save": self._save,
        }  # fmt: skip

    @property
    def conversation(self) -> list[dict[str, str]]:
        """What the model is given: the system prompt, if one is sent, and the turns."""
        return [*([{"role": "system", "content": self._system}] if self._system else []), *self.messages]

    def go_on(self) -> None:
        """Until /exit or the end of what is typed."""
        with _history():
            while True:
                try:
                    if (text := _typed()) is None or text in ("/exit", "/quit"):
                        return
                    self._take(text)
                except KeyboardInterrupt:
                    print()
                    if not sys.stdin.isatty():
                        return
                    say("Ctrl+D or /exit ends the chat")
                    if self.messages and self.messages[-1]["role"] == "user":
                        self.messages.pop()  # nothing came of it

    def _take(self, text: str) -> None:
        if text.startswith("//"):
            self._ask(text[1:])
        elif text.startswith("/"):
            command, _, rest = text.partition(" ")
            self._commands.get(command, self._unknown(command))(rest.strip())
        elif text:
            self._ask(text)

    def _ask(self, question: str) -> None:
        self.messages.append({"role": "user", "content": question})
        try:
            if not (text := _answer(self._engine, self.conversation, self._context)):
                self.messages.pop()  # nothing came, so the question was not asked
                return
        except DataError as error:
            warn(f"{error.what}; the conversation goes on without it")
            self.messages.pop()
        except TunesmithError as error:
            warn(f"{error.what}; a new conversation starts")
            self.messages = []
        else:
            self.messages.append({"role": "assistant", "content": text})

    def _unknown(self, command: str) -> Callable[[str], None]:
        def answer(_: str) -> None:
            warn(f"there is no command {command}")
            self._help("")

        return answer

    def _help(self, _: str) -> None:
        width = max(map(len, COMMANDS))
        for command, does in COMMANDS.items():
            say(f"{command:<{width}}  {does}")

    def _set_system(self, text: str) -> None:
        self._system = text or self._system
        if self._system:
            say(f"system prompt: {self._system}")
        else:
            say(
                f"system prompt, of the file's template: {self._own_system}" if self._own_system else "no system prompt"
            )

    def _clear(self, _: str) -> None:
        self.messages = []
        say("a new conversation starts")

    def _save(self, name: str) -> None:
        if not name:
            warn("/save needs the name of a file, such as /save chats.jsonl")
        elif not self.messages:
            warn("nothing was said yet, so nothing is saved")
        else:
            try:
                _save_row({"messages": self.conversation}, Path(_unquoted(name)).expanduser())
            except (OSError, ValueError, RuntimeError, TunesmithError) as error:  # RuntimeError: no home folder
                what = error.what if isinstance(error, TunesmithError) else getattr(error, "strerror", None) or error
                warn(f"{name} is not written: {what}; name another file")


def _unquoted(name: str) -> str:
    """A name in quotes, as a shell takes it; one with a lone quote is as it stands."""
    with contextlib.suppress(ValueError):
        if len(parts := shlex.split(name)) == 1:
            return parts[0]
    return name


def _save_row(row: dict[str, Any], file: Path) -> None:
    """One more line of a JSONL file; what is there stays, unless the user says otherwise."""
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    if not os.path.lexists(file):
        write_user_file(file, line)
        return say(f"saved to {file}")
    if not file.is_file():
        raise ResourceError("it is no file", fix="name another file")
    how = _choice(f"{file} is there. Add to it (a), replace it (r), or leave it (enter)? ")
    if how == "a":
        with file.open("r+b") as opened:
            if opened.seek(0, os.SEEK_END) and (opened.seek(-1, os.SEEK_END), opened.read(1))[1] != b"\n":
                opened.write(b"\n")
            opened.write(line)
        say(f"added to {file}")
    elif how == "r":
        write_user_file(file, line)
        say(f"replaced {file}")
    else:
        warn(f"{file} is left as it is; name another file")


def _choice(question: str) -> str:
    """What a person answers; nothing where there is none to ask."""
    if not sys.stdin.isatty():
        return ""
    try:
        return input(question).strip().lower()[:1]
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


def _typed() -> str | None:
    """The next text of the user; None at the end. A prompt is for people, not for a pipe."""
    asked = sys.stdin.isatty()
    try:
        text = input("> " if asked else "").strip()
        while text.startswith(MANY_LINES) and not (len(text) >= 6 and text.endswith(MANY_LINES)):
            text += "\n" + input(". " if asked else "").rstrip()
    except EOFError:
        if asked:
            print()
        return None
    _remember(text)
    return text.removeprefix(MANY_LINES).removesuffix(MANY_LINES).strip() if text.startswith(MANY_LINES) else text


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """The lines typed earlier are there (arrow up), where a person types; only the user can read their file."""
    if readline and sys.stdin.isatty():
        with contextlib.suppress(OSError, TunesmithError):  # a history is a comfort
            file = cache_folder() / HISTORY
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDONLY | os.O_NOFOLLOW, 0o600))
            file.chmod(0o600)
            readline.set_auto_history(False)  # answers to our own questions are none
            readline.set_history_length(KEPT_LINES)
            readline.read_history_file(file)
    yield


def _remember(text: str) -> None:
    """At once, so that a kill forgets nothing; two chats add to one file."""
    if readline and text and sys.stdin.isatty():
        with contextlib.suppress(OSError, ValueError, TunesmithError):
            readline.add_history(text)
            readline.append_history_file(1, cache_folder() / HISTORY)


def _answer(engine: Client, messages: list[dict[str, str]], context: int) -> str:
    """Stream one answer; what was said of it before a Ctrl+C counts as the answer."""
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        print(text, end="", flush=True)

    try:
        answer = engine.chat(messages, max_tokens=context, temperature=None, on_text=show)
    except KeyboardInterrupt:
        print()
        return "".join(pieces)
    print(flush=True)
    say(f"[{_stats(answer)}]")
    return answer.text


def _stats(answer: Answer) -> str:
    """How fast an answer came, in one line."""
    end = "" if answer.stopped else ", cut: the context is full"
    return f"{answer.tokens} tokens, first after {answer.first_token_s:.2f} s, {answer.tokens_per_s:.0f} tokens/s{end}"
