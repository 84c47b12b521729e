"""The key: in a header from programs, in a cookie of the chat's own from browsers, which get it for the key once."""

import hashlib
import hmac
import html
import secrets
from importlib.resources import files

from starlette.datastructures import Headers

COOKIE = "tunesmith"
PAGE = files("tunesmith.server").joinpath("login.html")
WRONG = '<p role="alert" id="wrong">That is not the key.</p>'


class Login:
    """Who has shown the key."""

    def __init__(self, key: str, port: int) -> None:
        """`key`: empty lets everybody in. `port`: that of the chat; cookies of two on one machine would be one."""
        self._key = key.encode()
        self._cookie = f"{COOKIE}-{port}"
        self._session = hmac.new(secrets.token_bytes(32), self._key, hashlib.sha256).hexdigest()  # ends with the chat

    def lets_in(self, headers: Headers) -> bool:
        """Whether a request has the key, or the cookie that was given for it."""
        if not self._key:
            return True
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        return self.is_key(given) | hmac.compare_digest(_value(headers, self._cookie), self._session.encode())

    def is_key(self, given: str) -> bool:
        """Compare in a time that tells nothing of the key."""
        return hmac.compare_digest(given.encode(errors="replace"), self._key)

    def cookie(self, *, secure: bool) -> str:
        """What the browser keeps: no script can read it, and no other site's page sends it."""
        return self._set_cookie(self._session, "; Secure" if secure else "")

    def no_cookie(self) -> str:
        """For a browser that is to forget it."""
        return self._set_cookie("", "; Max-Age=0")

    def _set_cookie(self, value: str, more: str) -> str:
        return f"{self._cookie}={value}; Path=/; HttpOnly; SameSite=Strict{more}"


def login_page(name: str, wrong: bool) -> str:
    """The page that asks for the key; it has no script."""
    page = PAGE.read_text(encoding="utf-8").replace("{wrong}", WRONG if wrong else "")
    return page.replace("{name}", html.escape(name))


def _value(headers: Headers, cookie: str) -> bytes:
    """Of several cookies of one host ours alone is read: others may be written in ways that Python's parser refuses."""
    pairs = [pair.strip().partition("=") for line in headers.getlist("cookie") for pair in line.split(";")]
    return next((value.encode(errors="replace") for name, _, value in pairs if name == cookie), b"")
