"""llama.cpp's page with the run's name, the system prompt in force, and without what a model of text cannot do."""

import json
from functools import partial
from importlib.resources import files
from textwrap import shorten
from typing import Any

from tunesmith.errors import ResourceError

SHELL = files("tunesmith.server").joinpath("shell.html")
HEAD = b"<head>"
MOST_SHOWN = 400
"""Letters of the system prompt at the start of a conversation; whole it is at its top."""
TOOLS = ("server", "builtin", "browser", "mcp", "custom", "sandbox")
"""Kinds of tools that the page would tell the model of."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src blob:"
)
"""Nothing comes from, or goes to, another place, an image in an answer neither; and no service worker keeps the page
of this run for the next one."""


def with_run(page: bytes, run: dict[str, Any]) -> bytes:
    """The page of llama.cpp with `run` (see `described`) put in. Raises ResourceError where it has no head."""
    if HEAD not in page:
        raise ResourceError("llama.cpp's page has no <head>", fix="use the version of xllamacpp in constraints.txt")
    text = json.dumps(run).replace("<", "\\u003c")  # "</script>" in a system prompt ends nothing
    shell = SHELL.read_text(encoding="utf-8").replace("/*RUN*/", text)
    return page.replace(HEAD, HEAD + shell.encode(), 1)


def described(name: str, system: str | None) -> dict[str, Any]:
    """What the page is told: the run's name, what it shows at the start, and the settings that belong to the run."""
    shown = ["System prompt:", shorten(system, MOST_SHOWN, placeholder=" ...")] if system else ["No system prompt"]
    settings = {
        "systemMessage": system or "", "showSystemMessage": True, "showRawModelNames": True,
        "pasteLongTextToFileLen": 0, "autoMicOnEmpty": False, "jsSandboxEnabled": False, "mcpServers": "[]",
    }  # fmt: skip
    return {"name": name, "shown": shown, "settings": settings, "toolsOff": list(TOOLS)}


def page_of(name: str, system: str | None) -> partial[bytes]:
    """What makes the run's page of llama.cpp's."""
    return partial(with_run, run=described(name, system))
