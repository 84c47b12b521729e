"""A request that may pass waits for its turn and goes to the engine; its answer comes back as it is made."""

import asyncio
import re
import time
from collections.abc import Callable
from urllib.parse import unquote

import httpx2
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from tunesmith.server.answer import Answer
from tunesmith.server.asked import Asked, Gone, read_body
from tunesmith.server.door import Door
from tunesmith.server.keeper import Keeper, Reached
from tunesmith.server.line import Line, Rates, TooMany
from tunesmith.server.metrics import Metrics
from tunesmith.server.wanted import checked

OURS = {"host", "origin", "referer", "cookie", "authorization", "x-api-key", "content-length", "transfer-encoding",
        "connection", "keep-alive", "te", "trailer", "upgrade", "expect", "proxy-authorization", "x-forwarded-for",
        "x-ticket"}  # fmt: skip
"""Headers that go no further: of one connection (RFC 9110, section 7.6.1), the client's keys, and what was judged."""
CHAT = ("/v1/chat/completions", "/chat/completions")
WORK = re.compile(r"(/v1|/api)?(/chat)?/(completions?|infill|embeddings?|re-?rank(ing)?|responses|messages|chat)/?")
"""What makes the model work, and waits for its turn; tokenizing does not."""
NEEDED = ("/props", "/v1/models", "/models")
ASSET = re.compile(r"/(_app/[A-Za-z0-9_./-]+|[A-Za-z0-9_-]+\.(ico|svg|png|webmanifest))", re.ASCII)
"""What others than this machine may have of the engine beside answers: what its page needs, and no more."""
AWAY = "the engine has ended and is started again; ask again in some seconds"
RETRY_S = 2


class Passing:
    """The way to the engine and back, as an application of ASGI."""

    def __init__(
        self, keeper: Keeper, line: Line, metrics: Metrics, door: Door, log: Callable[[str], None] | None
    ) -> None:
        """`log`: gets a line for each answer."""
        self._keeper, self._line, self._metrics, self._door, self._log = keeper, line, metrics, door, log
        self._rates = Rates(door.limits.rate)
        self._transport = to_engine()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; who hangs up ends it."""
        asked: Asked = scope["asked"]
        if (self._door.beyond or self._door.public) and not _is_offered(asked):
            raise HTTPException(404, "there is nothing of that name here")
        try:
            body = await read_body(asked, receive, self._door.limits.request_bytes)
        except Gone:
            return
        work = asyncio.ensure_future(self._answer(Answer(asked, body, send, keep=self._door.log_texts)))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled():
            work.result()

    async def _answer(self, answer: Answer) -> None:
        asked = answer.asked
        if asked.method != "POST" or not WORK.fullmatch(unquote(asked.path)):
            return await self._ask_engine(answer)
        if asked.path not in CHAT and self._door.limits.answer is not None:
            raise HTTPException(404, f"where answers are bounded they are had at {CHAT[0]} alone")
        if asked.path in CHAT:
            context, limits = self._keeper.first["context"], self._door.limits
            answer.body = checked(answer.body, context=context, longest=limits.answer, public=self._door.public)
        try:
            self._rates.count(asked.address)
            async with self._line.turn(asked.ticket, asked.address):
                await self._ask_engine(answer)
        except TooMany as full:
            self._metrics.refusals[full.reason] += 1
            await answer.say("rate_limit_error", 429, str(full), full.retry_after_s)
        finally:
            self._note(answer)

    async def _ask_engine(self, answer: Answer) -> None:
        if (engine := self._keeper.engine) is None:
            return await self._say_away(answer)
        try:
            response = await self._transport.handle_async_request(_request(engine, answer))
        except httpx2.TransportError:
            return await self._say_away(answer)
        try:
            await self._pass_back(answer, response)
        except httpx2.TransportError:  # it died in the middle
            await self._say_away(answer)
        except TimeoutError:
            return
        finally:
            await response.aclose()

    async def _pass_back(self, answer: Answer, response: httpx2.Response) -> None:
        stream = response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)
        if response.status_code >= 400 or answer.asked.path == "/props":
            return await answer.say_of_engine(response.status_code, b"".join([piece async for piece in stream]))
        await answer.start(response.status_code, response.headers.raw)
        async for piece in stream:
            await answer.write(piece)
        await answer.end()

    async def _say_away(self, answer: Answer) -> None:
        self._metrics.refusals["engine"] += 1
        await answer.say("server_error", 503, AWAY, RETRY_S)

    def _note(self, answer: Answer) -> None:
        if answer.first_s is not None:
            self._metrics.first_token(answer.first_s)
        tokens = self._metrics.answered(answer.tail)
        if self._log is None:
            return
        counts = f", {tokens[0]} tokens read, {tokens[1]} made" if tokens else ""
        status = answer.status or "gone"
        line = f"{answer.asked.path} {status}{counts}, {time.monotonic() - answer.started:.1f} s"
        if answer.kept is not None:
            texts = [bytes(text).decode(errors="replace") for text in (answer.body, answer.kept)]
            line += f"\n  asked: {texts[0]}\n  answered: {texts[1]}"
        self._log(line)


def to_engine() -> httpx2.AsyncHTTPTransport:
    """Connections to an engine, each for one request."""
    none_kept = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.AsyncHTTPTransport(limits=none_kept, trust_env=False)


def _is_offered(asked: Asked) -> bool:
    if asked.method == "POST":
        return asked.path in CHAT
    return asked.method in ("GET", "HEAD") and (asked.path in NEEDED or ASSET.fullmatch(asked.path) is not None)


def _request(engine: Reached, answer: Answer) -> httpx2.Request:
    asked = answer.asked
    host, _, port = engine.url.removeprefix("http://").rpartition(":")
    url = httpx2.URL(scheme="http", host=host, port=int(port), raw_path=asked.target.encode())
    kept = [(name, value) for name, value in asked.headers.raw if name.decode("latin-1").lower() not in OURS]
    ours = [(b"host", f"{host}:{port}".encode()), (b"connection", b"close")]
    ours += [(name.encode(), value.encode()) for name, value in engine.headers.items()]
    content = answer.body if answer.body or asked.method == "POST" else None
    return httpx2.Request(asked.method, url, headers=[*kept, *ours], content=content)


async def _gone(receive: Receive) -> None:
    """Until the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
