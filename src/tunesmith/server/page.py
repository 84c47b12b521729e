"""llama.cpp's page with the run's name, the system prompt in force, and without what a model of text cannot do."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from textwrap import shorten
from typing import Any

import httpx2

from tunesmith.errors import ResourceError
from tunesmith.server.door import Limits
from tunesmith.server.keeper import Reached

SHELL = files("tunesmith.server").joinpath("shell.html")
WAITING = files("tunesmith.server").joinpath("waiting.html").read_text(encoding="utf-8")
HEAD = b"<head>"
MOST_SHOWN = 400
"""Letters of the system prompt at the start of a conversation; whole it is at its top."""
TOOLS = ("server", "builtin", "browser", "mcp", "custom", "sandbox")
"""Kinds of tools that the page would tell the model of."""
DIRECTIVES = (
    "default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; font-src 'self' data:; worker-src blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'"
)
"""Nothing comes from, or goes to, another place, an image in an answer neither; no service worker keeps the page of
this run for the next one. No script runs but what the page came with, each by its digest. Styles stay open: llama.cpp's
page writes them into its elements as it draws."""
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Page:
    """The page of a run: made once for each start of the engine, whose page it is."""

    def __init__(self, name: str, run: dict[str, Any]) -> None:
        """`run`: see `described`."""
        self.name, self._run = name, run
        self.policy = "default-src 'none'"
        self.waiting = WAITING.replace("{name}", html.escape(name))
        self._html = ""
        self._of: Reached | None = None

    async def made(self, engine: Reached) -> str:
        """The HTML, and what may run in it is `policy`. Raises httpx2.TransportError where the engine has ended."""
        if self._of != engine:
            async with httpx2.AsyncClient(trust_env=False, headers=dict(engine.headers)) as client:
                response = await client.get(f"{engine.url}/")
            self.take(response.content)
            self._of = engine
        return self._html

    def take(self, page: bytes) -> None:
        """Make it of llama.cpp's."""
        made = with_run(page, self._run).decode()
        hashes = " ".join(_digests(made, "script"))
        self._html, self.policy = made, DIRECTIVES.format(scripts=hashes)


def own_policy(page: str) -> str:
    """For a page of ours alone: its own styles, no script, and a form that comes back here."""
    return f"default-src 'none'; style-src {' '.join(_digests(page, 'style'))}; form-action 'self'; base-uri 'none'"


def _digests(page: str, kind: str) -> list[str]:
    """How a policy names what stands within a page (CSP level 3, section 2.3.1)."""
    digests = [hashlib.sha256(text.encode()).digest() for tag, text in INLINE.findall(page) if tag == kind]
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]


def with_run(page: bytes, run: dict[str, Any]) -> bytes:
    """The page of llama.cpp with `run` (see `described`) put in. Raises ResourceError where it has no head."""
    if HEAD not in page:
        raise ResourceError("llama.cpp's page has no <head>", fix="use the version of xllamacpp in constraints.txt")
    text = json.dumps(run).replace("<", "\\u003c")  # "</script>" in a system prompt ends nothing
    shell = SHELL.read_text(encoding="utf-8").replace("/*RUN*/", text)
    return page.replace(HEAD, HEAD + shell.encode(), 1)


def described(
    name: str, system: str | None, facts: Sequence[tuple[str, str]] = (), examples: Sequence[str] = (),
    *, login: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What the page is told: the run's name, what it shows of it, and the settings that belong to the run.

    `login`: the key was asked for, so that the browser can forget it.
    """
    shown = ["System prompt:", shorten(system, MOST_SHOWN, placeholder=" ...")] if system else ["No system prompt"]
    settings = {
        "systemMessage": system or "", "showSystemMessage": True, "showRawModelNames": True,
        "pasteLongTextToFileLen": 0, "autoMicOnEmpty": False, "jsSandboxEnabled": False, "mcpServers": "[]",
    }  # fmt: skip
    own = {"name": name, "settings": settings, "toolsOff": list(TOOLS)}
    return own | {"shown": shown, "facts": list(facts), "examples": list(examples), "login": login}


def said_limits(limits: Limits, context: int) -> list[tuple[str, str]]:
    """How much may be asked, for the page."""
    conversation = f"up to {context:,} tokens (some {round(context * 0.75, -2):,.0f} words)"
    found = {
        "Conversation": conversation,
        "Answer": f"up to {limits.answer:,} tokens" if limits.answer else "",
        "Requests": f"{limits.rate} a minute" if limits.rate else "",
    }
    return [(name, text) for name, text in found.items() if text]
