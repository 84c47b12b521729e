"""Who may speak to the chat: programs of this machine, its own page, and origins that the user has named.

A web page anywhere can send requests to 127.0.0.1. What the browser says of the sender, and pages cannot change, is
looked at before the engine sees anything: Host (another name for this machine is DNS rebinding), Origin (RFC 6454,
section 7) and Sec-Fetch-Site (Fetch Metadata). A program of this machine sends none of the last two.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from urllib.parse import unquote

from tunesmith.errors import RecipeError

THIS_MACHINE = ("127.0.0.1", "localhost", "[::1]")
ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://((?:\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII)
PLAIN = re.compile(r"(?!.*\\)(?!.*/\.{0,2}/)(?!.*/\.{1,2}$)/.*", re.DOTALL)
PAGE = ("/", "/index.html")
FOREIGN = ("cross-site", "same-site")
"""Values of Sec-Fetch-Site for what another origin asked for; another port of this machine is same-site."""
NO_ADDRESS = ("null", "file://")
"""How browsers name a page without an address of its own: a file that is opened, a frame that is sandboxed."""
NO_ADDRESS_SAID = (
    ", of a page without an address, such as a file: if it is yours, serve it, as with "
    "`python -m http.server 8000 --bind 127.0.0.1`, open it at http://127.0.0.1:8000, and start the chat with "
    "--allow-origin http://127.0.0.1:8000"
)


@dataclass(frozen=True)
class Verdict:
    """What is done with a request."""

    refused: str = ""
    """Why it goes no further; empty: it may pass."""
    cors: str = ""
    """The origin of another page that may read the answer."""
    from_outside: bool = False
    """A link or frame of another site opens the page: without what the address tells it to do."""


@dataclass(frozen=True)
class Names:
    """What the chat may be called: this machine's names, and what is told here."""

    more: tuple[str, ...] = ()
    addresses: bool = False
    """Any number of the network: DNS rebinding needs a name. Pages over TLS too, which a proxy may put before it."""
    any: bool = False

    def hold(self, name: str) -> bool:
        """Whether a name, without its port, is one."""
        return self.any or name in (*THIS_MACHINE, *self.more) or (self.addresses and _is_address(name))


LOCAL = Names()


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Origins as browsers write them, such as https://hub.example, https://*.hub.example or chrome-extension://ID.

    Raises RecipeError for what is none.
    """
    checked = tuple(origin.lower().rstrip("/") for origin in origins)
    for given, origin in zip(origins, checked, strict=True):
        if not ORIGIN.fullmatch(origin):
            fix = "write scheme, name and port alone, as in https://hub.example or http://localhost:3000"
            raise RecipeError(f"--allow-origin {given!r} is no origin of a web page", fix=fix)
    return checked


def judge(method: str, path: str, headers: Message, origins: Sequence[str], names: Names = LOCAL) -> Verdict:
    """Whether a request may reach the engine; `origins` are those that the user has named (`check_origins`)."""
    if odd := _odd(path, headers):
        return Verdict(refused=odd)
    host, sender = headers["Host"].strip().lower(), headers.get("Origin", "").strip().lower()
    if not names.hold(_name(host)) and not any(_same_host(host, origin) for origin in origins):
        return Verdict(refused=f"{host} is no name of this machine{_permit(f'https://{host}')}")
    own = (f"http://{host}", f"https://{host}") if names.addresses else (f"http://{host}",)
    if sender and sender not in own:
        named = any(_matches(sender, origin) for origin in origins)
        return Verdict(cors=sender) if named else Verdict(refused=f"{sender} is another origin{_permit(sender)}")
    if headers.get("Sec-Fetch-Site", "").lower() in FOREIGN:
        opened = method == "GET" and headers.get("Sec-Fetch-Mode", "").lower() == "navigate"
        to_page = opened and path.partition("?")[0] in PAGE
        return Verdict(from_outside=True) if to_page else Verdict(refused="another origin asks for it")
    return Verdict()


def _permit(origin: str) -> str:
    """What lets the page of an origin in that may be the user's own; nothing works for what no page can have."""
    if origin in NO_ADDRESS:
        return NO_ADDRESS_SAID
    return f": if it is yours, start the chat with --allow-origin {origin}" if ORIGIN.fullmatch(origin) else ""


def _odd(path: str, headers: Message) -> str:
    """What no browser and no client of HTTP/1.1 sends."""
    if len(headers.get_all("Host", [])) != 1 or len(headers.get_all("Origin", [])) > 1 or not path.startswith("/"):
        return "a request has one Host, at most one Origin, and a path"
    if not PLAIN.fullmatch(unquote(path.partition("?")[0])):
        return "the address has empty or dotted parts, or a backslash"  # which the engine would read as another one
    return ""


def _name(host: str) -> str:
    """Without the port, and without the dot that may end a name."""
    return re.sub(r":\d*$", "", host).rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _same_host(host: str, origin: str) -> bool:
    return any(
        _matches(f"{scheme}://{host}", origin) for scheme in ("http", "https") if origin.startswith(f"{scheme}:")
    )


def _matches(sender: str, origin: str) -> bool:
    """Whether a sender is an origin that was named; `*.` stands for one or more labels of its name."""
    if "://*." not in origin:
        return sender == origin
    scheme, _, rest = origin.partition("://*")
    return ORIGIN.fullmatch(sender) is not None and sender.startswith(f"{scheme}://") and sender.endswith(rest)
