"""One request: what is asked, by whom, and its body."""

import ipaddress
import secrets
from dataclasses import dataclass
from typing import Self

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope


class Gone(Exception):  # noqa: N818 - no error: nobody is there to be answered
    """The client has hung up."""


@dataclass(frozen=True)
class Asked:
    """What the first lines of a request say."""

    method: str
    path: str
    """As its sender wrote it, without the query."""
    target: str
    """With it."""
    headers: Headers
    address: str
    """Whose it is, for limits."""
    ticket: str
    """Its name in the queue: the page makes one up, to ask for its place."""

    @classmethod
    def of(cls, scope: Scope, *, trusts_proxy: bool) -> Self:
        """The request that a scope of ASGI holds."""
        headers, path = Headers(scope=scope), scope["raw_path"].decode("ascii")
        query = scope["query_string"].decode("ascii")
        peer = scope["client"][0] if scope["client"] else ""
        address = _forwarded(headers, peer) if trusts_proxy else peer
        ticket = f"{headers.get('x-ticket', '')[:64]}" or secrets.token_hex(8)
        return cls(scope["method"], path, f"{path}?{query}" if query else path, headers, address, ticket)


def _forwarded(headers: Headers, peer: str) -> str:
    """The address that a proxy names: the last one that is no machine of its own network.

    What stands before it, the client may have written itself. So only a proxy beside us is believed, which has a
    private address; an IPv6 address stands for its network of 64 bits, which one household has.
    """
    named = [name for line in headers.getlist("x-forwarded-for") for name in line.split(",")]
    found = [_address(name) for name in (peer, *reversed(named))]
    address = next((each for each in found if each is None or not (each.is_private or each.is_loopback)), found[0])
    if address is None:
        return peer
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in a word of the header, which may have a port, and brackets around it; None where it has none."""
    text = name.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


async def read_body(asked: Asked, receive: Receive, most: int) -> bytes:
    """The body, whose length its sender has stated. Raises HTTPException for one that is too large, Gone."""
    stated = asked.headers.get("content-length", "0")
    if "transfer-encoding" in asked.headers or not (stated.isascii() and stated.isdigit()):
        raise HTTPException(411, "the length of the request is not stated")
    if len(stated) > 15 or int(stated) > most:
        raise HTTPException(413, f"the request has {stated[:20]} bytes, {most:,} is the most")
    pieces: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)
