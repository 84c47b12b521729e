"""HTTP as uvicorn and h11 read it, and what they leave out: clients that send no more, or nothing, or nonsense.

A client that closes its sending side only (`nc -N`; RFC 9112, section 9.6, leaves it that) gets its answer; uvicorn
would take it for one that has gone. Only a write can tell the two apart: each client of HTTP/1.1 takes a 100 before its
answer (RFC 9110, section 15.2); the system of one that has gone resets the connection.
"""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 60.0  # for a whole request: who sends none holds a connection
ASK_AGAIN_S = 0.05  # the reset has come by then on this machine, and the second write sees it
ASK_EVERY_S = 5.0  # later on
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def problem(kind: str, code: int, message: str) -> bytes:
    """An error as OpenAI's API writes it."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


MOST_UNSAID = 256
"""Connections without a whole request; of more the oldest is cut."""
_unsaid: dict["Protocol", None] = {}


class Protocol(H11Protocol):
    """One connection, with one request."""

    _patience: asyncio.TimerHandle | None = None
    _asking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It has a time to send its request in."""
        super().connection_made(transport)
        _unsaid[self] = None
        if len(_unsaid) > MOST_UNSAID:  # else who opens connections and says nothing keeps everybody out
            oldest = next(iter(_unsaid))
            del _unsaid[oldest]
            oldest.transport.abort()
        self._patience = self.loop.call_later(REQUEST_S, self._refuse_slow)

    def data_received(self, data: bytes) -> None:
        """What comes after a whole request is read and forgotten: nothing unjudged follows what was judged."""
        if self.cycle is None or self.cycle.more_body:
            super().data_received(data)
        if self._patience and self.cycle is not None and not self.cycle.more_body:
            self._patience.cancel()
            _unsaid.pop(self, None)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open: for who has asked, until it is known to have gone."""
        if self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
            return False
        if self.scope["http_version"] != "1.1":  # it has no way to be asked
            return False
        self._ask_whether_it_reads(ASK_AGAIN_S)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer outlives it."""
        _unsaid.pop(self, None)
        for timer in (self._patience, self._asking):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, in the form of every other error."""
        self._refuse(400, "the request is no HTTP/1.1")

    def _ask_whether_it_reads(self, again_s: float) -> None:
        """Once an answer flows, that is such a write itself."""
        if self.transport.is_closing() or self.cycle.response_started:
            return
        self.transport.write(CONTINUE)
        self._asking = self.loop.call_later(again_s, self._ask_whether_it_reads, ASK_EVERY_S)

    def _refuse_slow(self) -> None:
        if self.cycle is None:
            self._refuse(408, f"no whole request came within {REQUEST_S:.0f} s")
        elif self.cycle.more_body:
            self.transport.abort()

    def _refuse(self, code: int, why: str) -> None:
        body = problem("invalid_request_error", code, why)
        headers = {"content-type": "application/json", "connection": "close", "content-length": str(len(body))}
        events: list[Any] = [
            h11.Response(status_code=code, headers=list(headers.items())), h11.Data(data=body), h11.EndOfMessage()
        ]  # fmt: skip
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
