"""Who the chat is open to, and how much one may ask of it: what the command line says of it, checked."""

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import RecipeError
from tunesmith.server.guard import Names, check_origins

LOOPBACK = "127.0.0.1"
KEY_VARIABLE = "TUNESMITH_API_KEY"
LEAST_KEY = 16  # letters: 64 bits of a key in hexadecimal, which nobody guesses at some requests a second
PUBLIC_RATE = 20  # requests a minute of one address: a person types slower
PUBLIC_ANSWER = 1024  # tokens: some 750 words, 10 s of a small model on two cores
MAKE_KEY = "make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))' > key.txt`"


@dataclass(frozen=True)
class Limits:
    """How much may be asked; None: as much as anyone likes."""

    waiting: int = 32
    """Requests that wait for their turn; one more is refused with 429."""
    rate: int | None = None
    """Requests a minute of one address that make the model work."""
    at_once: int | None = None
    """Requests of one address that are answered or wait."""
    answer: int | None = None
    """Tokens of one answer."""
    request_bytes: int = 64 << 20
    """Of one request; a context of a million tokens has some five."""


@dataclass(frozen=True)
class Door:
    """Where the chat listens, and for whom."""

    host: str = LOOPBACK
    port: int | None = None
    """None: any free one."""
    public: bool = False
    """Open to everybody, without a key: every limit holds, and a proxy's word for who asks is taken."""
    key: str = ""
    """Without which nobody is answered; empty: everybody who reaches it is."""
    origins: tuple[str, ...] = ()
    """Web pages that may use it beside its own."""
    limits: Limits = Limits()
    log: bool = False
    """A line for each answer; never what was said."""
    log_texts: bool = False
    """What was asked and answered as well."""

    @property
    def beyond(self) -> bool:
        """Others than this machine may reach it."""
        return not is_loopback(self.host)

    @property
    def names(self) -> Names:
        """What it may be called in `Host`."""
        if not self.beyond and not self.public:
            host = self.host.lower()
            return Names(more=(f"[{host}]" if ":" in host else host,))  # 127.0.0.2 is this machine too
        return Names(more=(self.host.lower(), socket.gethostname().lower()), addresses=True, any=self.public)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def checked_door(  # noqa: PLR0913 - one argument an option
    *, host: str = LOOPBACK, port: int | None = None, public: bool = False, key_file: Path | None = None,
    origins: Sequence[str] = (), waiting: int | None = None, rate: int | None = None, answer: int | None = None,
    log_texts: bool = False,
) -> Door:  # fmt: skip
    """A door of the options that were given. Raises RecipeError for one that is open by oversight."""
    host = host.strip().removeprefix("[").removesuffix("]")
    if not host:
        raise RecipeError("--host is empty", fix=f"leave it out, which is {LOOPBACK}, or name an address")
    key = _read_key(key_file)
    if public and key:
        fix = "leave one of the two out"
        raise RecipeError(f"--public lets everybody in, and a key ({_key_source(key_file)}) nobody without it", fix=fix)
    if not is_loopback(host) and not public and not key:
        raise RecipeError(
            f"--host {host} lets other machines in, and there is no key",
            fix=f"{MAKE_KEY} and add --api-key key.txt; or add --public to let everybody in, with limits; or leave "
            "--host out and come through `ssh -L`",
        )
    limits = Limits(
        waiting=Limits.waiting if waiting is None else waiting,
        rate=rate or (PUBLIC_RATE if public else None), at_once=4 if public else None,
        answer=answer or (PUBLIC_ANSWER if public else None),
        request_bytes=1 << 20 if public else Limits.request_bytes,
    )  # fmt: skip
    return Door(host, port, public, key, check_origins(origins), limits, log_texts=log_texts)


def _key_source(file: Path | None) -> str:
    return f"--api-key {file}" if file else KEY_VARIABLE


def _read_key(file: Path | None) -> str:
    """The key in a file or in the environment: on the command line every user of the machine could read it."""
    try:
        key = (file.read_text(encoding="utf-8") if file else os.environ.get(KEY_VARIABLE, "")).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no text"
        what = f"--api-key names no file with a key: {why}"  # without what was given: it may be the key itself
        raise RecipeError(what, fix=MAKE_KEY) from error
    if (file or key) and not (len(key) >= LEAST_KEY and key.isascii() and key.isprintable() and " " not in key):
        what = f"the key of {_key_source(file)} is no line of {LEAST_KEY} letters, digits and signs or more"
        raise RecipeError(what, fix=MAKE_KEY)
    return key
