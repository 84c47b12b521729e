"""The one door to the engine: a request is judged (guard.py), then passed on as it is; so is the answer, as it comes.

The engine itself listens on a port that nobody knows and answers nobody without its key. Every answer ends its
connection, so that nothing unjudged can follow a judged request; a client that hangs up ends its answer. One that
closes its sending side only (RFC 9112, section 9.6, leaves it that) gets its answer.
"""

import contextlib
import http.client
import io
import json
import select
import socket
import socketserver
from collections.abc import Callable, Iterator, Sequence
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any

from tunesmith.boundary import why_unread
from tunesmith.errors import ResourceError
from tunesmith.inference.client import Client
from tunesmith.server.guard import PAGE, Verdict, judge
from tunesmith.server.page import POLICY

MOST_BYTES = 64 << 20  # of a request; a context of a million tokens has some five
IDLE_S = 60.0  # for the rest of a request: who sends none holds a thread
PIECE_BYTES = 1 << 16
ASK_EVERY_S = 5.0  # whether a client that sends no more still waits
MOST_TOLD = 8
OURS = {"host", "origin", "referer", "cookie", "authorization", "x-api-key", "content-length", "transfer-encoding",
        "connection", "keep-alive", "te", "trailer", "upgrade", "expect", "proxy-authorization"}  # fmt: skip
"""Headers that go no further: of one connection (RFC 9110, section 7.6.1), the client's keys, and what was judged."""
BOUNCE = (
    b'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=./"><a href="./">To the chat</a>'
)
"""The page once more, asked for by ourselves: what an address of another site told it to do is gone."""
WORKER = b"""\
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", async () => {
  await self.registration.unregister();
  for (const name of await caches.keys()) await caches.delete(name);
  for (const page of await self.clients.matchAll({ type: "window" })) page.navigate(page.url);
});
"""
"""Ends the service worker that llama.cpp's page left in a browser: it would show the page of another run."""


class Front(socketserver.ThreadingTCPServer):
    """Listens on 127.0.0.1 from the start; answers once it is told whose door it is."""

    daemon_threads = True
    allow_reuse_address = True  # a closed server's port is free at once
    request_queue_size = 64

    def __init__(
        self, port: int | None, origins: Sequence[str], on_refused: Callable[[str], None] = lambda _: None
    ) -> None:
        """`port`: None takes any free one. `on_refused` gets why, once for each reason, of the first few.

        Raises ResourceError for a port that is in use.
        """
        try:
            super().__init__(("127.0.0.1", port or 0), _Request)
        except (OSError, OverflowError) as error:
            fix = f"choose another one, such as --port {(port or 0) % 65000 + 1}"
            raise ResourceError(f"port {port} cannot be used: {why_unread(error)}", fix=fix) from error
        self.origins, self._on_refused, self._told = tuple(origins), on_refused, set[str]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.engine: Client
        self.page: Callable[[bytes], bytes]

    def answer(self, engine: Client, page: Callable[[bytes], bytes]) -> None:
        """Pass on what may pass, for ever; `page` makes our page of the engine's."""
        self.engine, self.page = engine, page
        self.serve_forever()

    def tell(self, why: str) -> None:
        """Say why a request was refused; a page that tries a thousand names is not told of for ever."""
        if why not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(why)
            self._on_refused(why)

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is none of ours."""


class _Request(BaseHTTPRequestHandler):
    """One request of one client."""

    server: Front
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True  # a token is shown when it is there
    _begun = False

    def handle_any(self) -> None:
        self.close_connection = True
        self.verdict = judge(self.command, self.path, self.headers, self.server.origins)
        if self.verdict.refused:
            self.server.tell(self.verdict.refused)
            return self._say(403, self.verdict.refused)
        if self.command == "OPTIONS":
            return self._reply(204, [])
        if self.path == "/sw.js":
            return self._reply(200, [("Content-Type", "text/javascript")], WORKER)
        if self.verdict.from_outside:
            return self._reply(200, [("Content-Type", "text/html; charset=utf-8")], BOUNCE)
        size = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (size.isascii() and size.isdigit()):
            return self._say(411, "the length of the request is not stated")
        if len(size) > 15 or int(size) > MOST_BYTES:
            return self._say(413, f"the request has {size[:20]} bytes, {MOST_BYTES:,} is the most")
        body = self.rfile.read(int(size))
        if len(body) == int(size):
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # the client has hung up
                self._ask_engine(body)

    do_GET = do_HEAD = do_POST = do_DELETE = do_OPTIONS = handle_any

    def log_message(self, *_: Any) -> None:
        """Nothing: what is asked is the user's own."""

    def _ask_engine(self, body: bytes) -> None:
        try:
            if self.command == "GET" and self.path.partition("?")[0] in PAGE:
                return self._show_page()
            with self._sent(body) as engine:
                self._pass_on(engine)
        except (ConnectionRefusedError, http.client.HTTPException):
            self._say(502, "the engine has ended")

    @contextlib.contextmanager
    def _sent(self, body: bytes) -> Iterator[socket.socket]:
        """A connection of its own to the engine, with the request."""
        host, _, port = self.server.engine.url.removeprefix("http://").rpartition(":")
        kept = [(name, value) for name, value in self.headers.items() if name.lower() not in OURS]
        ours = [*self.server.engine.headers.items(), ("Host", f"{host}:{port}"), ("Connection", "close")]
        if body or self.command == "POST":
            ours.append(("Content-Length", str(len(body))))
        lines = [f"{self.command} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in [*kept, *ours])]
        with socket.create_connection((host, int(port))) as engine:
            engine.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            engine.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            yield engine

    def _pass_on(self, engine: socket.socket) -> None:
        """The answer as it comes, with headers of ours."""
        self.connection.settimeout(None)
        head, pieces = b"", self._pieces(engine)
        for piece in pieces:
            head += piece
            if b"\r\n\r\n" in head:
                break
        else:
            raise http.client.BadStatusLine("")
        first, _, rest = head.partition(b"\r\n")
        lines, _, body = rest.partition(b"\r\n\r\n")
        headers = http.client.parse_headers(io.BytesIO(lines + b"\r\n\r\n"))
        own = {"connection", "keep-alive", "server"}
        kept = [(name, value) for name, value in headers.items() if name.lower() not in own and not _is_cors(name)]
        self._head(int(first.split(b" ")[1]), kept)
        self.wfile.write(body)
        for piece in pieces:
            self.wfile.write(piece)

    def _pieces(self, engine: socket.socket) -> Iterator[bytes]:
        """What the engine sends, until it ends. Raises ConnectionResetError when the client hangs up."""
        client, either, wait_ms = self.connection, select.poll(), None
        either.register(engine, select.POLLIN)
        either.register(client, select.POLLIN)
        while True:
            ready = dict(either.poll(wait_ms))
            if ready.get(client.fileno(), 0) & (select.POLLERR | select.POLLHUP):
                raise ConnectionResetError
            if engine.fileno() in ready:
                if not (piece := engine.recv(PIECE_BYTES)):
                    return
                yield piece
            elif not ready or not client.recv(PIECE_BYTES):  # more than was judged is read and forgotten
                self._ask_whether_it_reads()
                either.modify(client, 0)  # that it has gone is told all the same
                wait_ms = 1000 * ASK_EVERY_S

    def _ask_whether_it_reads(self) -> None:
        """Of a client that sends no more: has it hung up, or does it wait for its answer? Only a write can tell.

        Each client of HTTP/1.1 takes a 100 before its answer (RFC 9110, section 15.2); the system of one that has gone
        resets the connection, at once on this machine. Once an answer flows, that is such a write itself.
        """
        if self.request_version != "HTTP/1.1":
            raise ConnectionResetError
        if not self._begun:
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _show_page(self) -> None:
        page = self.server.page(self.server.engine.fetch("/"))
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")]
        self._reply(200, [*headers, ("Content-Security-Policy", POLICY)], page)

    def _say(self, code: int, problem: str) -> None:
        """An error as the API writes it."""
        body = json.dumps({"error": {"code": code, "message": problem, "type": "tunesmith_front"}}).encode()
        self._reply(code, [("Content-Type", "application/json; charset=utf-8")], body)

    def _reply(self, code: int, headers: Sequence[tuple[str, str]], body: bytes = b"") -> None:
        self._head(code, [*headers, *([("Content-Length", str(len(body)))] if code != 204 else [])])
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, code: int, headers: Sequence[tuple[str, str]]) -> None:
        """Status and headers, with what tells browsers who may read and frame the answer."""
        self._begun = True
        framed = " ".join(["frame-ancestors 'self'", *self.server.origins])
        self.send_response_only(code)
        for name, value in [*headers, *_cors(self.verdict, self.headers), ("Content-Security-Policy", framed),
                            ("X-Content-Type-Options", "nosniff"), ("Connection", "close")]:  # fmt: skip
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, *_: Any) -> None:
        """What is no HTTP, or no method that there is: in our form too."""
        self.verdict, self.close_connection = Verdict(), True
        self.headers = getattr(self, "headers", Message())
        self.command, self.request_version = getattr(self, "command", None) or "GET", self.protocol_version
        self._say(int(code), f"the request is refused: {http.client.responses.get(int(code), code)}")


def _is_cors(name: str) -> bool:
    return name.lower().startswith("access-control-")


def _cors(verdict: Verdict, asked: Message) -> list[tuple[str, str]]:
    """For a page of an origin that was named: it may read, and send what it asks for."""
    if not verdict.cors:
        return [("Cross-Origin-Resource-Policy", "same-origin")]
    headers = asked.get("Access-Control-Request-Headers") or "Content-Type, Authorization"
    return [
        ("Access-Control-Allow-Origin", verdict.cors),
        ("Access-Control-Allow-Methods", "GET, POST"),
        ("Access-Control-Allow-Headers", headers),
        ("Vary", "Origin"),
    ]
