"""Whether the Hub answers, and whose the token is. The token is sent to the Hub, and is never told nor printed.

A process of its own (tries.py).
"""

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session

from tunesmith.boundary import without_secrets
from tunesmith.doctoring.finding import Finding
from tunesmith.doctoring.tries import Try, serve

TIMEOUT_S = 5.0
LIMIT_S = 12.0  # the client takes longer than its timeout says, now and then
TOKENS = "https://huggingface.co/settings/tokens"
SET = f"set the environment variable HF_TOKEN to a token from {TOKENS}, or type `hf auth login`"
NETWORK = "check the network, and HF_ENDPOINT where it is set; what was fetched before works offline"


def tries_for(_: dict[str, Any]) -> Iterator[Try]:
    """The Hub, then the token."""
    yield Try("hub", "Hub", _reached, NETWORK, LIMIT_S)
    yield Try("hub", "token", _token, SET, LIMIT_S)


def _hidden(text: str) -> str:
    token = huggingface_hub.get_token()
    return without_secrets(text, token)


def _reached() -> Finding:
    started = time.perf_counter()
    host = _hidden(urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2])
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except OfflineModeIsEnabled:
        says = "HF_HUB_OFFLINE says that there is no network: only what was fetched before is used"
        return Finding("hub", "Hub", "note", says, "unset HF_HUB_OFFLINE to use the Hub")
    except Exception as error:  # of several HTTP libraries, and their texts can hold the token
        return Finding("hub", "Hub", "note", f"{host} does not answer ({_kind(error)})", NETWORK)
    took_s = time.perf_counter() - started
    return Finding("hub", "Hub", "ok", f"{host} answers in {took_s:.1f} s", facts={"seconds": took_s})


def _token() -> Finding:
    token = huggingface_hub.get_token()
    if not token:
        says = "not set: gated and private models cannot be fetched, and nothing can be published"
        return Finding("hub", "token", "note", says, SET, {"set": False})
    if not (token.isascii() and token.isprintable()):
        return Finding("hub", "token", "lacks", "it has a letter that no token has", SET, {"set": True, "valid": False})
    try:
        said = get_session().get(
            f"{constants.ENDPOINT}/api/whoami-v2", headers=build_hf_headers(token=token), timeout=TIMEOUT_S
        )
    except Exception as error:  # as above
        fix = "unset HF_HUB_OFFLINE to try it" if isinstance(error, OfflineModeIsEnabled) else NETWORK
        return Finding("hub", "token", "note", f"set; not tried ({_kind(error)})", fix, {"set": True})
    return _known(said.json()) if said.status_code == 200 else _unknown(said.status_code)


def _unknown(status: int) -> Finding:
    """The finding for a token that the Hub does not know, or did not look at."""
    if status in (401, 403):
        says = "set, and the Hub does not know it: it may refuse also what everybody may have"
        return Finding("hub", "token", "lacks", says, f"unset it, or {SET}", {"set": True, "valid": False})
    says = f"set; the Hub did not say whose it is (HTTP {status})"
    return Finding("hub", "token", "note", says, "try again in a minute", {"set": True})


def _known(who: dict[str, Any]) -> Finding:
    """The finding for a token that the Hub knows."""
    name = _hidden(str(who.get("name", "")))
    role = _hidden(str(who.get("auth", {}).get("accessToken", {}).get("role", "unknown")))
    accounts = [name, *(_hidden(str(each.get("name", ""))) for each in who.get("orgs", []))]
    facts = {"set": True, "valid": True, "user": name, "role": role, "accounts": accounts}
    return Finding("hub", "token", "ok", f"set and valid, of {name}, role {role}", facts=facts)


def _kind(error: Exception) -> str:
    """The kind of an error alone: its text could hold an address with a password."""
    return type(error).__name__


if __name__ == "__main__":
    serve(tries_for)
