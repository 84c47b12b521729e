"""The Hub's client as publishing needs it: huggingface_hub's own, that waits when it is told to, and errors with a fix.

A token is taken from HF_TOKEN or huggingface_hub's login, sent to the Hub and nowhere else, and never in a message.
Files go up by HTTP (git LFS), not by Xet: there it is known of each one whether the Hub has it.
"""

import contextlib
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils._http import default_client_factory  # what set_client_factory replaces

from tunesmith.boundary import is_of_this_machine, without_secrets
from tunesmith.console import progress, say
from tunesmith.errors import PublishError, TunesmithError

Result = TypeVar("Result")
TIMEOUT_S = (10.0, 300.0, 60.0, 10.0)
"""To connect, to get an answer (a commit of many files takes minutes), to send a piece, to get a connection."""
MOST_WAITING_S = 900.0
"""How long the Hub is waited for in one call; its limits are over five minutes."""
UNSAID_WAIT_S = 60.0
"""Where a 429 does not say how long."""
NOT_FOUND = 404
LONGEST = 300
"""Letters of what the Hub says that are shown."""
TOKENS = "https://huggingface.co/settings/tokens"
AGAIN = "type the same again: what is there already is not sent again"
RESET = re.compile(r";\s*t\s*=\s*(\d{1,9})\b")
QUOTA = re.compile(r"(?i)storage|quota|limit reached")


class Busy(Exception):  # noqa: N818 - not an error: the Hub says how long to wait
    """The Hub answered 429."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


class HubClient:
    """Calls to the Hub with one token."""

    def __init__(self) -> None:
        """Raises PublishError where there is no token."""
        self._token = huggingface_hub.get_token()
        self.api = HfApi(token=self._token)
        if self._token and not (self._token.isascii() and self._token.isprintable()):
            raise PublishError("the token of the Hub has a letter that no token has", fix=_TOKEN_FIX)
        if not self._token:
            raise PublishError("publishing needs a token of the Hub, and there is none", fix=_TOKEN_FIX)

    def find(self, what: str, do: Callable[[], Result]) -> Result | None:
        """As `call`; None where the Hub has no such repository."""

        def found() -> Result | None:
            try:
                return do()
            except RepositoryNotFoundError as error:
                if error.response.status_code != NOT_FOUND:  # 401: this token may not know
                    raise
                return None

        return self.call(what, found)

    def call(self, what: str, do: Callable[[], Result]) -> Result:
        """What `do` returns; waits where the Hub asks to. Raises PublishError, without the token, where it fails."""
        until: float | None = None
        while True:
            try:
                with _heeded():
                    return do()
            except TunesmithError:
                raise
            except Exception as error:  # of several libraries, and their texts can hold the token
                busy = next((one for one in _chain(error) if isinstance(one, Busy)), None)
                if busy is None and is_of_this_machine(error):
                    raise
                said = None if busy else self._explained(error, what)
            if said:
                raise said  # outside: no nested exception text either
            assert busy
            until = until or time.monotonic() + MOST_WAITING_S
            if time.monotonic() + busy.wait_s > until:
                refused = f"{what}: the Hub takes no more requests from this account for {busy.wait_s:.0f} s (HTTP 429)"
                raise PublishError(refused, fix=f"wait, then {AGAIN}")
            wait(busy.wait_s, f"{what}: the Hub asks to wait {busy.wait_s:.0f} s (too many requests)")

    def _explained(self, error: Exception, what: str) -> PublishError:
        http = next((one for one in _chain(error) if isinstance(one, HfHubHTTPError)), None)
        status = http.response.status_code if http else None
        first = list(_chain(error))[-1]  # what it began with says most: a connection refused, a name not known
        message = " ".join(str((http and http.server_message) or http or first).split())[:LONGEST]
        reason, fix = _reason(status, message, first)
        text = without_secrets(f"{what}: {reason}", self._token)
        return PublishError(text, fix=fix)


_QUOTA_FIX = (
    "free some of it at https://huggingface.co/settings/billing, or publish fewer parts with --only, or with --public"
)
_TOKEN_FIX = (
    f"make a token that may write at {TOKENS}, and set the environment variable HF_TOKEN to it, or type `hf auth login`"
)
_NO_RIGHT = ("this token may not do that", f"give it write access to this account at {TOKENS}; or name another in --to")
_OTHER_NAME = "or name another repository in --to"
_REFUSED = ("the Hub does not take what was sent", f"see what it says of it, and mend that; {_OTHER_NAME}")
REFUSALS = {
    401: ("the Hub does not know this token", _TOKEN_FIX),
    402: _NO_RIGHT,
    403: _NO_RIGHT,
    404: ("the Hub does not find it", "check the name after --to, and that it was not deleted there"),
    400: _REFUSED,
    409: (
        "it is in the way of what is there, which this token may not see",
        f"look at the account there; {_OTHER_NAME}",
    ),
    422: _REFUSED,
    412: ("the repository has moved on while this was sent", f"look at it there; then {AGAIN}"),
    413: (
        "a file, or all of them together, is too large for the Hub",
        "publish smaller files: fewer or smaller types in export.gguf, with --only gguf",
    ),
}
"""HTTP status of the Hub -> why, and the fix."""


def _reason(status: int | None, message: str, error: BaseException) -> tuple[str, str]:
    """Why the Hub did not do it, and the fix."""
    said = f" ({message})" if message else ""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE says that there is no network", "unset it, and type the same again"
    if status in (None, 402, 403) and QUOTA.search(message):
        return f"the account has no room left{said}", _QUOTA_FIX
    if status is None and (isinstance(error, OSError) or type(error).__module__.startswith("http")):
        what = f"the Hub cannot be reached, or was cut off ({type(error).__name__}: {message})"
        return what, f"check the network; {AGAIN}"
    what, fix = REFUSALS.get(status or 0, ("the Hub did not do it", f"wait a little; then {AGAIN}"))
    return f"{what}{f' (HTTP {status})' if status else ''}{said}", fix


def wait(seconds: float, why: str) -> None:
    """Wait, and say so."""
    say(why)
    with progress("waiting", seconds, unit="s") as advance:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            step = min(1.0, left)
            time.sleep(step)
            advance(step, "")


@contextlib.contextmanager
def _heeded() -> Iterator[None]:
    """In the block the Hub's client says 429 to us at once, gives up on a dead network, and prints nothing itself."""
    verbosity = hub_logging.get_verbosity()

    def client() -> Any:
        made = default_client_factory()
        made.timeout = TIMEOUT_S
        made.event_hooks = {**made.event_hooks, "response": [_heed]}
        return made

    bars = not are_progress_bars_disabled()
    hub_logging.set_verbosity_error()
    disable_progress_bars()
    huggingface_hub.set_client_factory(client)
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(default_client_factory)
        hub_logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def _heed(response: Any) -> None:
    if response.status_code == 429:
        raise Busy(wait_asked(response.headers))


def wait_asked(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait: Retry-After, as a number or a date (RFC 9110, 10.2.3), or the Hub's own
    RateLimit, as in `"api";r=0;t=55` (draft-ietf-httpapi-ratelimit-headers-09).
    """
    said = headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    if found := RESET.search(headers.get("RateLimit", "")):
        return float(found[1]) + 1  # whole seconds, rounded down
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return UNSAID_WAIT_S


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


class Upload(io.BufferedReader):
    """A file that tells how much of it was read.

    huggingface_hub sends an open file by LFS, whatever else is installed; a path or bytes go by Xet where it can.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.told: Callable[[float], None] = lambda _: None

    def read(self, size: int | None = -1, /) -> bytes:
        """As every file's; `told` gets the MB."""
        data = super().read(size)
        self.told(len(data) / 1e6)
        return data
