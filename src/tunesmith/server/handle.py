"""A model that answers while the caller goes on: what `tunesmith.chat` returns."""

import weakref
from pathlib import Path
from typing import Self

from tunesmith.inference.child import Child
from tunesmith.inference.threads import warn_of_threads
from tunesmith.recipe import ChatConfig


class Chat:
    """A GGUF file that answers at `url`, in a process of its own; a context manager.

    It ends with `close()`, with the handle's last name, with the interpreter, and when the caller is killed.
    """

    def __init__(self, gguf: Path, *, alias: str, chat: ChatConfig, port: int | None, threads: int) -> None:
        """Serve `gguf` as `alias` on 127.0.0.1:`port` (None: any free one) with the sampling and slots of `chat`.

        Raises BaseError for a file that is missing or no GGUF, ResourceError for a port in use.
        """
        job = {
            "gguf": str(gguf),
            "alias": alias,
            "chat": chat.model_dump(),
            "port": port,
            "threads": threads,
        }
        warn_of_threads(threads, "threads")
        self._child = Child("tunesmith.server.worker", job, alias)
        self._closing = weakref.finalize(self, self._child.close)
        try:
            first = self._child.read()
        except BaseException:
            self.close()
            raise
        assert first is not None, "the worker ends only with its parent"
        self.alias = alias
        self.url: str = first["url"]
        """Where the page is, such as http://127.0.0.1:7860; the API is at /v1/chat/completions below it.

        It stays what it was when the engine has ended.
        """

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
        """Until the engine is closed, or is killed: raises ResourceError."""
        self._child.wait()
