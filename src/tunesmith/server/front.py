"""The one door to the engine: a request is judged (guard.py), shows the key (login.py), and goes its way.

What browsers are told of who may read, frame and run an answer is put on each. Every answer ends its connection, so
that nothing unjudged can follow a judged request.
"""

import asyncio
import errno
import socket
import time
from collections.abc import Callable, MutableMapping
from email.message import Message
from typing import Any
from urllib.parse import parse_qs

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from tunesmith.boundary import why_unread
from tunesmith.errors import ResourceError
from tunesmith.server.asked import Asked, read_body
from tunesmith.server.door import Door
from tunesmith.server.guard import Verdict, judge
from tunesmith.server.keeper import Keeper, Reached
from tunesmith.server.line import Line, Rates, TooMany
from tunesmith.server.login import Login, login_page
from tunesmith.server.metrics import Metrics
from tunesmith.server.page import Page, own_policy
from tunesmith.server.passing import Passing, to_engine
from tunesmith.server.protocol import Protocol, problem

MOST_TOLD = 8
HEALTH_S = 3.0  # in which an engine says how it is, also while it works
HEALTH_KEPT_S = 1.0  # anybody may ask
LOGINS = 10  # tries a minute of one address
KEY_BYTES, TARGET_BYTES = 4096, 8192
METHODS = ("GET", "HEAD", "POST", "DELETE")
OPEN = ("/login", "/logout", "/health", "/sw.js")  # answered without the key
BOUNCE = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=./"><a href="./">To the chat</a>'
)
"""The page once more, asked for by ourselves: what an address of another site told it to do is gone."""
WORKER = """\
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", async () => {
  await self.registration.unregister();
  for (const name of await caches.keys()) await caches.delete(name);
  for (const page of await self.clients.matchAll({ type: "window" })) page.navigate(page.url);
});
"""
"""Ends the service worker that llama.cpp's page left in a browser: it would show the page of another run."""


class Front:
    """Listens from the start; answers once it is told whose door it is."""

    def __init__(
        self, door: Door, on_refused: Callable[[str], None] = lambda _: None, log: Callable[[str], None] | None = None
    ) -> None:
        """`on_refused` gets why, once for each reason, of the first few; `log` a line for each answer.

        Raises ResourceError for a port that is in use, or a host that is not this machine's.
        """
        self.door, self._socket = door, _listening(door)
        self.port: int = self._socket.getsockname()[1]
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(door.host, door.host)
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}"
        self._on_refused, self._told, self._log = on_refused, set[str](), log
        self.metrics, self._login, self._tries = Metrics(), Login(door.key, self.port), Rates(LOGINS)
        self._transport = to_engine()
        self._known_health: tuple[float, Reached | None, str] = (0.0, None, "")
        self.keeper: Keeper
        self.line: Line
        self._page: Page
        self._uvicorn: uvicorn.Server

    def answer(self, keeper: Keeper, page: Page, slots: int) -> None:
        """Pass on what may pass, until `stop`."""
        self.keeper, self._page, self.line = keeper, page, Line(slots, self.door.limits)
        passing = Passing(keeper, self.line, self.metrics, self.door, self._log)
        routes = [
            Route("/", self._show_page), Route("/index.html", self._show_page), Route("/sw.js", self._end_worker),
            Route("/login", self._log_in, methods=["GET", "POST"]), Route("/logout", self._log_out, methods=["POST"]),
            Route("/health", self._tell_health),
            Route("/metrics", self._tell_metrics), Route("/queue", self._tell_queue), Mount("/", passing),
        ]  # fmt: skip
        app = Starlette(routes=routes, exception_handlers={HTTPException: _said})  # type: ignore[dict-item]
        config = uvicorn.Config(
            self._judged(app), http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, date_header=False, proxy_headers=False, log_level="critical", loop="asyncio",
        )  # fmt: skip
        self._uvicorn = uvicorn.Server(config)
        self._uvicorn.run(sockets=[self._socket])

    def stop(self) -> None:
        """End `answer`; running answers are cut."""
        self._uvicorn.should_exit = self._uvicorn.force_exit = True

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()

    def _judged(self, app: Starlette) -> Callable[[Scope, Receive, Send], Any]:
        async def judged(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return
            headers = Message()
            for name, value in scope["headers"]:
                headers[name.decode("latin-1")] = value.decode("latin-1")
            target = scope["raw_path"].decode("ascii")
            verdict = judge(scope["method"], target, headers, self.door.origins, self.door.names)
            asked = Asked.of(scope, trusts_proxy=self.door.public)
            scope["asked"] = asked
            send = self._with_headers(send, verdict, asked)
            if refused := self._refusal(asked, verdict):
                return await refused(scope, receive, send)
            await app(scope, receive, send)

        return judged

    def _refusal(self, asked: Asked, verdict: Verdict) -> Response | None:
        """What is answered before any route is looked for; None: the request goes its way."""
        if verdict.refused:
            self._tell(verdict.refused)
            return said("permission_error", 403, verdict.refused)
        if len(asked.target) > TARGET_BYTES:
            return said("invalid_request_error", 414, f"the address has more than {TARGET_BYTES:,} letters")
        if asked.method == "OPTIONS":
            return Response(status_code=204)
        if asked.method not in METHODS:
            return said("invalid_request_error", 405, f"there is no method {asked.method[:20]} here")
        if verdict.from_outside:
            return HTMLResponse(BOUNCE)
        shown = asked.path in OPEN or self._login.lets_in(asked.headers)
        return None if shown else self._ask_for_key(asked)

    def _ask_for_key(self, asked: Asked) -> Response:
        """Browsers are shown the page for it, programs get an error."""
        self.metrics.refusals["key"] += 1
        if asked.method == "GET" and "text/html" in asked.headers.get("accept", ""):
            return RedirectResponse("./login", 303)
        why = "the key of this chat is missing or wrong; send it as `Authorization: Bearer KEY`"
        return said("authentication_error", 401, why, {"WWW-Authenticate": "Bearer"})

    def _tell(self, why: str) -> None:
        """Say why a request was refused; a page that tries a thousand names is not told of for ever."""
        self.metrics.refusals["origin"] += 1
        if why not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(why)
            self._on_refused(why)

    def _with_headers(self, send: Send, verdict: Verdict, asked: Asked) -> Send:
        """Headers of ours on each answer: who may read, frame and run it."""
        framed = " ".join(["frame-ancestors 'self'", *self.door.origins])
        ours = [*_cors(verdict, asked.headers), ("X-Content-Type-Options", "nosniff"), ("Connection", "close"),
                ("Referrer-Policy", "same-origin")]  # fmt: skip

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests[message["status"]] += 1
                kept = [(name, value) for name, value in message["headers"] if not _is_ours(name)]
                own = dict(message["headers"]).get(b"content-security-policy", b"default-src 'none'").decode()
                added = [*ours, ("Content-Security-Policy", f"{own}; {framed}")]
                more = [(name.lower().encode(), value.encode("latin-1")) for name, value in added]
                message = {**message, "headers": [*kept, *more]}
            await send(message)

        return with_headers

    async def _show_page(self, request: Request) -> Response:
        if not (engine := self.keeper.engine):
            return self._waiting()
        try:
            html = await self._page.made(engine)
        except httpx2.TransportError:
            return self._waiting()
        return HTMLResponse(html, headers={"Cache-Control": "no-store", "Content-Security-Policy": self._page.policy})

    def _waiting(self) -> Response:
        page = self._page.waiting
        return HTMLResponse(page, 503, {"Retry-After": "2", "Content-Security-Policy": own_policy(page)})

    async def _end_worker(self, request: Request) -> Response:
        return Response(WORKER, media_type="text/javascript")

    async def _log_in(self, request: Request) -> Response:
        asked: Asked = request.scope["asked"]
        wrong = False
        if request.method == "POST":
            try:
                self._tries.count(asked.address)
            except TooMany as full:
                self.metrics.refusals["login"] += 1
                return said("rate_limit_error", 429, str(full), {"Retry-After": str(full.retry_after_s)})
            form = parse_qs((await read_body(asked, request.receive, KEY_BYTES)).decode("latin-1"))
            if self._login.is_key(form.get("key", [""])[0].strip()):
                secure = asked.headers.get("origin", "").startswith("https:")
                return RedirectResponse("./", 303, {"Set-Cookie": self._login.cookie(secure=secure)})
            wrong = True
        html = login_page(self._page.name, wrong)
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": own_policy(html)}
        return HTMLResponse(html, 401 if wrong else 200, headers)

    async def _log_out(self, request: Request) -> Response:
        return RedirectResponse("./login", 303, {"Set-Cookie": self._login.no_cookie()})

    async def _tell_health(self, request: Request) -> Response:
        status = await self._status()
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def _status(self) -> str:
        """How the engine is, by what it says itself."""
        if (engine := self.keeper.engine) is None:
            return "the engine is started again"
        asked_s, of, status = self._known_health
        if of == engine and time.monotonic() - asked_s < HEALTH_KEPT_S:
            return status
        request = httpx2.Request("GET", f"{engine.url}/health", headers=dict(engine.headers))
        try:
            response = await asyncio.wait_for(self._transport.handle_async_request(request), HEALTH_S)
            await response.aclose()
            status = "ok" if response.status_code == 200 else "the engine is not ready"
        except (httpx2.TransportError, TimeoutError):
            status = "the engine does not answer"
        self._known_health = (time.monotonic(), engine, status)
        return status

    async def _tell_metrics(self, request: Request) -> Response:
        self.metrics.restarts = self.keeper.restarts
        text = self.metrics.text(self.line, self.keeper.engine is not None)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _tell_queue(self, request: Request) -> Response:
        """For the page: where the request with this ticket waits."""
        place = self.line.place(request.query_params.get("ticket", ""))
        wait_s = round(self.line.wait_s(place)) if place else None
        return JSONResponse({"place": place, "wait_s": wait_s, "waiting": self.line.waiting})


def said(kind: str, code: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error as OpenAI's API writes it."""
    return Response(problem(kind, code, message), code, headers, "application/json")


async def _said(request: Request, error: HTTPException) -> Response:
    kind = "rate_limit_error" if error.status_code == 429 else "invalid_request_error"
    return said(kind, error.status_code, error.detail, dict(error.headers or {}))


def _listening(door: Door) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
        listening = socket.create_server((door.host, door.port or 0), family=family, backlog=256)
        listening.setblocking(False)
        return listening
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            fix = "name an address of this machine, such as 0.0.0.0 for all of them"
            raise ResourceError(f"--host {door.host} is no address of this machine", fix=fix) from error
        fix = f"choose another one, such as --port {(door.port or 0) % 65000 + 1}"
        raise ResourceError(f"port {door.port} cannot be used: {why_unread(error)}", fix=fix) from error


def _is_ours(name: bytes) -> bool:
    """Headers of one connection, and what only we say: whose page may read."""
    own = (b"connection", b"keep-alive", b"server", b"date", b"transfer-encoding", b"content-security-policy")
    return name.lower() in own or name.lower().startswith(b"access-control-")


def _cors(verdict: Verdict, asked: Headers) -> list[tuple[str, str]]:
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
