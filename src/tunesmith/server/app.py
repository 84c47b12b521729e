"""VERB chat: the model in the browser, through llama.cpp's own page and API, or in the terminal."""

import contextlib
import http.client
import io
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tunesmith.boundary import sigterm_as_ctrl_c
from tunesmith.console import say
from tunesmith.gguf.metadata import read_singles
from tunesmith.server.door import Door
from tunesmith.server.handle import Chat, Served
from tunesmith.server.terminal import Talk

OFF = {
    "temperature": None, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "dry_multiplier": 0.0, "xtc_probability": 0.0, "mirostat": 0,
}  # fmt: skip
"""What llama.cpp samples with, and the value at which each changes nothing."""


def chat(served: Served, *, door: Door, threads: int, cli: bool) -> None:
    """Serve a model at a door, or chat with it in the terminal (`cli`), until told to stop.

    Raises BaseError for a file that is missing or no GGUF, ResourceError for a port in use or an engine that dies.
    """
    if cli:
        _take_any_bytes()
        alone = replace(served, chat=served.chat.model_copy(update={"slots": 1}))
        with Chat(alone, threads=threads) as handle, _end_explained(handle):
            _say_settings(handle, served)
            say("/exit or Ctrl+D ends the chat, Ctrl+C cuts an answer short, /help shows what else there is")
            talk = Talk(
                handle.client(), system=served.chat.system, own_system=handle.own_system, context=handle.context
            )
            talk.go_on()
        return
    with (
        sigterm_as_ctrl_c(),
        contextlib.suppress(KeyboardInterrupt),
        Chat(served, door=door, threads=threads) as handle,
    ):
        _say_settings(handle, served)
        say(repr(handle))
        say(_who_gets_in(door, int(handle.url.rpartition(":")[2])))
        say("Ctrl+C stops it")
        handle.wait()
    say("stopped")


def _who_gets_in(door: Door, port: int) -> str:
    """Who can reach it, and how it is reached from elsewhere."""
    limits = door.limits
    if door.public:
        return (
            f"everybody who reaches it gets in: {limits.rate} requests a minute of one address, answers of "
            f"{limits.answer} tokens, {limits.waiting} requests in the queue"
        )
    if door.beyond:
        return "other machines get in with the key, in the page or as `Authorization: Bearer KEY`"
    if "COLAB_RELEASE_TAG" in os.environ:
        return f"from a cell: from google.colab import output; output.serve_kernel_port_as_window({port})"
    return f"only this machine gets in; from another one: ssh -L {port}:localhost:{port} THIS_MACHINE"


def _say_settings(handle: Chat, served: Served) -> None:
    """What the model is told before all else, and how it samples."""
    say(f"system prompt: {handle.system}" if handle.system else "no system prompt")
    source = ""
    if served.own_sampling:
        stated = any(key.startswith("general.sampling.") for key in read_singles(served.gguf))
        source = ", as the file says" if stated else "; the file says nothing of it"
    say(f"sampling: {sampling_text(handle.sampling)}{source}")
    if handle.context < served.chat.context:
        say(f"the model knows {handle.context:,} tokens of a conversation, so chat.context is that")


def sampling_text(sampling: Mapping[str, Any]) -> str:
    """The temperature, and what else changes something, such as `temperature 0.2, top_p 0.9`."""
    found = {name: round(sampling[name], 4) for name in OFF if name in sampling}
    return ", ".join(f"{name} {value:g}" for name, value in found.items() if value != OFF[name])


@contextlib.contextmanager
def _end_explained(handle: Chat) -> Iterator[None]:
    """Where the engine ends in the middle of the chat, the error is why it did."""
    try:
        yield
    except (ConnectionError, http.client.HTTPException):
        handle.wait()
        raise


def _take_any_bytes() -> None:
    """Where the terminal's encoding is not what Python thinks: no letter that is typed or answered is a traceback."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
