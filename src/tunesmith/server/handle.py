"""A model that answers while the caller goes on: what `tunesmith.chat` returns."""

import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tunesmith.console import warn
from tunesmith.inference.child import Child
from tunesmith.inference.client import Client
from tunesmith.inference.threads import warn_of_threads
from tunesmith.recipe import ChatConfig
from tunesmith.server.guard import check_origins


@dataclass(frozen=True)
class Served:
    """A model, what it is called, and how it is spoken to."""

    gguf: Path
    alias: str
    chat: ChatConfig
    own_sampling: bool = False
    """What the file's metadata say of sampling goes before `chat`."""


class Chat:
    """A GGUF file that answers at `url`, in a process of its own; a context manager.

    It ends with `close()`, with the handle's last name, with the interpreter, and when the caller is killed.
    """

    def __init__(
        self, served: Served, *, port: int | None, threads: int, origins: Sequence[str] = (), front: bool = True
    ) -> None:
        """Serve a model on 127.0.0.1:`port` (None: any free one); `origins`: web pages that may use it beside its own.

        Without a `front` there is no page, and only `client` gets in. Raises BaseError for a file that is missing or
        no GGUF, ResourceError for a port in use, RecipeError for an origin that is none.
        """
        job = asdict(served) | {
            "gguf": str(served.gguf), "chat": served.chat.model_dump(), "port": port, "threads": threads,
            "origins": check_origins(origins), "front": front,
        }  # fmt: skip
        warn_of_threads(threads, "threads")
        self._child = Child("tunesmith.server.worker", job, served.alias)
        self._closing = weakref.finalize(self, self._child.close)
        try:
            first = self._child.read()
        except BaseException:
            self.close()
            raise
        assert first is not None, "the worker ends only with its parent"
        self.alias = served.alias
        self.url: str = first["url"]
        """Where the page is, such as http://127.0.0.1:7860; the API is at /v1/chat/completions below it.

        It stays what it was when the engine has ended.
        """
        self.system: str | None = first["system"]
        """What the model is told before all else; None: nothing."""
        self.own_system: str | None = first["own_system"]
        """What the file's template tells it where a conversation has no system prompt."""
        self.sampling: dict[str, Any] = first["sampling"]
        """How it samples where a request says nothing, in llama.cpp's names."""
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
        """Number of the engine's process."""
        return self._child.pid

    def close(self) -> None:
        """End the engine; running answers are cut. Nothing where it is closed already."""
        self._closing()

    def wait(self) -> None:
        """Until the engine is closed, or is killed: raises ResourceError. Who is refused is said meanwhile."""
        try:
            while self._closing.alive and (line := self._child.read()) is not None:
                warn(f"a request was refused: {line['refused']}")
        except ValueError:
            if self._closing.alive:
                raise  # else it was closed between the look and the read
        self._child.wait()
