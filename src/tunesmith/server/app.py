"""VERB chat: the model in the browser, through llama.cpp's own page and API, or in the terminal."""

import contextlib
import http.client
import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from tunesmith.console import say, warn
from tunesmith.errors import DataError, TunesmithError
from tunesmith.inference.client import Answer, Client
from tunesmith.recipe import ChatConfig
from tunesmith.server.handle import Chat


def chat(gguf: Path, *, alias: str, chat: ChatConfig, port: int, threads: int, cli: bool) -> None:
    """Serve `gguf` as `alias` on 127.0.0.1:`port`, or chat with it in the terminal (`cli`), until told to stop.

    Raises BaseError for a file that is missing or no GGUF, ResourceError for a port in use or a killed engine.
    """
    if cli:
        _take_any_bytes()
        alone = chat.model_copy(update={"slots": 1})
        with Chat(gguf, alias=alias, chat=alone, port=None, threads=threads) as handle, _end_explained(handle):
            _talk(Client(handle.url, alias), alias, chat)
    else:
        _serve(gguf, alias, chat, port, threads)


def _serve(gguf: Path, alias: str, chat: ChatConfig, port: int, threads: int) -> None:
    """Until Ctrl+C or SIGTERM, which end it well."""
    with (
        _sigterm_as_ctrl_c(),
        contextlib.suppress(KeyboardInterrupt),
        Chat(gguf, alias=alias, chat=chat, port=port, threads=threads) as handle,
    ):
        say(repr(handle))
        say("Ctrl+C stops it")
        handle.wait()
    say("stopped")


@contextlib.contextmanager
def _end_explained(handle: Chat) -> Iterator[None]:
    """Where the engine ends in the middle of the chat, the error is why it did."""
    try:
        yield
    except (ConnectionError, http.client.HTTPException):
        handle.wait()
        raise


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)  # a shell starts what goes on in the background with SIGINT ignored
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _take_any_bytes() -> None:
    """Where the terminal's encoding is not what Python thinks: no letter that is typed or answered is a traceback."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _talk(engine: Client, alias: str, chat: ChatConfig) -> None:
    """Questions from standard input, answers to standard output, until /exit or Ctrl+D."""
    opening = [{"role": "system", "content": chat.system}] if chat.system else []
    messages = list(opening)
    say(f"{alias}: /exit or Ctrl+D ends the chat, Ctrl+C cuts an answer short")
    while (question := _question()) != "/exit":
        if not question:
            continue
        messages.append({"role": "user", "content": question})
        try:
            text = _answer(engine, messages, chat)
        except DataError as error:
            warn(f"{error.what}; the conversation goes on without it")
            messages.pop()
        except TunesmithError as error:
            warn(f"{error.what}; a new conversation starts")
            messages = list(opening)
        else:
            messages.append({"role": "assistant", "content": text})


def _question() -> str:
    """The next line of the user; a prompt is for people, not for a pipe."""
    asked = sys.stdin.isatty()
    try:
        return input("> " if asked else "").strip()
    except (EOFError, KeyboardInterrupt):
        if asked:
            print()
        return "/exit"


def _answer(engine: Client, messages: list[dict[str, str]], chat: ChatConfig) -> str:
    """Stream one answer; what was said of it before a Ctrl+C counts as the answer."""
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        print(text, end="", flush=True)

    try:
        answer = engine.chat(
            messages, max_tokens=chat.context, temperature=chat.temperature, top_p=chat.top_p, on_text=show
        )
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
