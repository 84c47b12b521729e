"""A model that answers while the caller goes on: what `tunesmith.chat` returns."""

import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tunesmith.console import say, warn
from tunesmith.inference.child import Child
from tunesmith.inference.client import Client
from tunesmith.inference.threads import warn_of_threads
from tunesmith.recipe import ChatConfig
from tunesmith.server.door import Door


@dataclass(frozen=True)
class Served:
    """A model, what it is called, and how it is spoken to."""

    gguf: Path
    alias: str
    chat: ChatConfig
    own_sampling: bool = False
    """What the file's metadata say of sampling goes before `chat`."""
    examples: tuple[str, ...] = ()
    """Questions that the page offers to begin with."""


class Chat:
    """A GGUF file that answers at `url`, in a process of its own; a context manager.

    It ends with `close()`, with the handle's last name, with the interpreter, and when the caller is killed.
    """

    def __init__(self, served: Served, *, threads: int, door: Door | None = None) -> None:
        """Serve a model at a door; without one there is no page, and only `client` gets in.

        Raises BaseError for a file that is missing or no GGUF, ResourceError for a port in use or too little memory.
        """
        engine = asdict(served) | {
            "gguf": str(served.gguf), "chat": served.chat.model_dump(), "threads": threads,
        }  # fmt: skip
        job = {"engine": engine, "door": asdict(door)} if door else engine
        warn_of_threads(threads, "threads")
        self._child = Child("tunesmith.server.worker" if door else "tunesmith.inference.serving", job, served.alias)
        self._closing = weakref.finalize(self, self._child.close)
        try:
            first = self._child.read()
        except BaseException:
            self.close()
            raise
        assert first is not None, "it ends only with its parent"
        self.alias = served.alias
        self.url: str = first["url"]
        """Where the page is, such as http://127.0.0.1:7860; the API is at /v1/chat/completions below it.

        It stays what it was when the engine has ended.
        """
        self.system: str | None = served.chat.system or first["own_system"]
        """What the model is told before all else; None: nothing."""
        self.own_system: str | None = first["own_system"]
        """What the file's template tells it where a conversation has no system prompt."""
        self.sampling: dict[str, Any] = first["sampling"]
        """How it samples where a request says nothing, in llama.cpp's names."""
        self.context: int = first["context"]
        """Tokens that a conversation may have: those of the recipe, or fewer where the model knows fewer."""
        self._key: str = first["key"]

    def client(self) -> Client:
        """Requests from this process."""
        return Client(self.url, self.alias, self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if not self._closing.alive:
            return f"{self.alias} is closed"
        if (code := self._child.code) is not None:
            return f"{self.alias} has ended (code {code})"
        return f"{self.alias} answers at {self.url} (API: {self.url}/v1/chat/completions)"

    @property
    def pid(self) -> int:
        """Number of the process that answers."""
        return self._child.pid

    def close(self) -> None:
        """End it; running answers are cut. Nothing where it is closed already."""
        self._closing()

    def wait(self) -> None:
        """Until it is closed, or has ended: raises ResourceError. What happens is said meanwhile."""
        try:
            while self._closing.alive and (line := self._child.read()) is not None:
                if "log" in line:
                    say(line["log"])
                else:
                    warn(line["warning"])
        except ValueError:
            if self._closing.alive:
                raise  # else it was closed between the look and the read
        self._child.wait()
