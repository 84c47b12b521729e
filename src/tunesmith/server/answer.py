"""What goes back to one client: an answer piece by piece, or an error in the form of OpenAI's API."""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import Send

from tunesmith.server.asked import Asked
from tunesmith.server.protocol import problem

STALLED_S = 60.0  # who takes nothing of an answer for so long has gone
TAIL_BYTES = 3000  # of an answer: its last event, with the counts of tokens
PLACE = re.compile(r"(?<![\w:/])/[\w.~-]+(?:/[\w.~-]+)+")
TEXT = b'"content":"'  # of an event or answer that has some


class Answer:
    """One answer on its way, and what is counted of it."""

    def __init__(self, asked: Asked, body: bytes, send: Send, *, keep: bool) -> None:
        """`keep`: all of it, for the log."""
        self.asked, self.body, self._send = asked, body, send
        self.started = time.monotonic()
        self.first_s: float | None = None
        """When its first text came, after the request."""
        self.status = 0
        """0: it has not begun."""
        self.is_stream = False
        self.tail, self.kept = b"", bytearray() if keep else None

    async def start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Status and headers."""
        self.status = status
        self.is_stream = any(name.lower() == b"content-type" and b"event-stream" in value for name, value in headers)
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def write(self, piece: bytes) -> None:
        """A piece. Raises TimeoutError where the client takes nothing."""
        if self.first_s is None and TEXT in piece:
            self.first_s = time.monotonic() - self.started
        self.tail = (self.tail + piece)[-TAIL_BYTES:]
        if self.kept is not None:
            self.kept += piece
        async with asyncio.timeout(STALLED_S):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        """No more comes."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def say(self, kind: str, code: int, message: str, retry_after_s: int = 0) -> None:
        """An error, whole; inside a stream, an event of it."""
        body = problem(kind, code, message)
        if not self.status:
            await self._whole(code, body, [(b"retry-after", b"%d" % retry_after_s)] if retry_after_s else [])
        elif self.is_stream:
            await self.write(b"\n\ndata: " + body + b"\n\n")
            await self.end()

    async def say_of_engine(self, status: int, body: bytes) -> None:
        """What the engine says of itself, or against a request, without the places of this machine.

        A fault that a request brings about is the request's: 400.
        """
        try:
            found: Any = json.loads(body)
        except ValueError:
            found = {}
        if status < 400:
            told = {**found, "model_path": found.get("model_alias", "")}
            return await self._whole(status, json.dumps(told).encode(), [])
        error = found.get("error", {}) if isinstance(found, dict) else {}
        error = error if isinstance(error, dict) else {}
        message = PLACE.sub("...", str(error.get("message", "there is nothing of that name here")))
        code = {500: 400, 501: 404}.get(status, status)
        told = {key: error[key] for key in ("n_prompt_tokens", "n_ctx") if key in error}
        kind = error.get("type") if status < 500 else "invalid_request_error"
        said = {"message": message, "type": kind, "param": None, "code": code, **told}
        await self._whole(code, json.dumps({"error": said}).encode(), [])

    async def _whole(self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        length = (b"content-length", b"%d" % len(body))
        await self.start(status, [(b"content-type", b"application/json"), length, *headers])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
