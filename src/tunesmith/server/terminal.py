"""The chat in the terminal: questions, answers as they come, commands, and a history of what was typed."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from tunesmith.console import say, warn
from tunesmith.errors import DataError, TunesmithError
from tunesmith.inference.client import Answer, Client
from tunesmith.printable import printable
from tunesmith.server.saving import Exchange, Spoken, save
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
    "/system [TEXT]": "show the system prompt in force, or start a new conversation with another",
    "/clear": "start a new conversation, and forget what was said",
    "/save FILE": "add what was said to a JSONL file, a row for each conversation, to be trained on",
    "/exit": "end the chat, as Ctrl+D does; Ctrl+C cuts an answer short",
    MANY_LINES: f"begin a text of many lines, which ends with {MANY_LINES}",
    "//TEXT": "send a text that begins with a slash",
}


class Talk:
    """One conversation at a time, and what is typed into it."""

    def __init__(self, engine: Client, *, system: str | None, own_system: str | None, context: int) -> None:
        """`system`: None leaves it to the file's template, which puts in `own_system`."""
        self._engine, self._own_system, self._context = engine, own_system, context
        self._spoken = [Spoken(system)]
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help, "/system": self._set_system, "/clear": self._clear, "/save": self._save,
        }  # fmt: skip

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

    def _take(self, text: str) -> None:
        if text.startswith("//"):
            self._ask(text[1:])
        elif text.startswith("/"):
            command, _, rest = text.partition(" ")
            self._commands.get(command, self._unknown(command))(rest.strip())
        elif text:
            self._ask(text)

    def _ask(self, question: str) -> None:
        now = self._spoken[-1]
        try:
            text, whole = _answer(self._engine, now.messages(question), self._context)
        except DataError as error:
            warn(f"{error.what}; the conversation goes on without it")
        except TunesmithError as error:
            warn(f"{error.what}; a new conversation starts")
            self._spoken.append(Spoken(now.system))
        else:
            if text:  # else nothing came, so the question was not asked
                now.said.append(Exchange(question, text, whole))

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
        """What was said under another system prompt was not said under this one: neither the model nor a row mixes."""
        now = self._spoken[-1]
        if text and text != now.system:
            if now.said:
                say("a new conversation starts; /save makes a row of each, with its own system prompt")
            self._spoken.append(now := Spoken(text))
        own = f"system prompt, of the file's template: {self._own_system}" if self._own_system else "no system prompt"
        say(f"system prompt: {now.system}" if now.system else own)

    def _clear(self, _: str) -> None:
        self._spoken = [Spoken(self._spoken[-1].system)]
        say("a new conversation starts")

    def _save(self, name: str) -> None:
        save(self._spoken, name)


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


def _answer(engine: Client, messages: list[dict[str, str]], context: int) -> tuple[str, bool]:
    """Stream one answer, and whether it is whole; of one that Ctrl+C cuts, what came until then."""
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        print(printable(text), end="", flush=True)

    try:
        answer = engine.chat(messages, max_tokens=context, temperature=None, on_text=show)
    except KeyboardInterrupt:
        print()
        return "".join(pieces), False
    print(flush=True)
    say(f"[{_stats(answer)}]")
    return answer.text, answer.stopped


def _stats(answer: Answer) -> str:
    """How fast an answer came, in one line."""
    end = "" if answer.stopped else ", cut: the context is full"
    return f"{answer.tokens} tokens, first after {answer.first_token_s:.2f} s, {answer.tokens_per_s:.0f} tokens/s{end}"
