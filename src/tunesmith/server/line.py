"""The queue in front of the engine: as many requests at once as it has slots, the others in the order they came."""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tunesmith.server.door import Limits

KNOWN_ADDRESSES = 10_000  # whose last requests are remembered; the oldest are forgotten
MOST_WAIT_S = 120
MINUTE_S = 60.0


class TooMany(Exception):  # noqa: N818 - no error: a refusal with the time after which to ask again
    """A request that is refused for now."""

    def __init__(self, reason: str, why: str, retry_after_s: float) -> None:
        super().__init__(why)
        self.reason, self.retry_after_s = reason, max(1, math.ceil(retry_after_s))


class Rates:
    """Who has asked how often in the last minute."""

    def __init__(self, most: int | None) -> None:
        """`most`: requests a minute of one address; None: any number."""
        self._most = most
        self._asked: dict[str, deque[float]] = {}

    def count(self, address: str) -> None:
        """One more request of an address. Raises TooMany for more than its share."""
        if self._most is None:
            return
        now, times = time.monotonic(), self._asked.pop(address, deque[float]())
        self._asked[address] = times  # the newest last
        while len(self._asked) > KNOWN_ADDRESSES:
            del self._asked[next(iter(self._asked))]
        while times and times[0] <= now - MINUTE_S:
            times.popleft()
        if len(times) >= self._most:
            wait_s = times[0] + MINUTE_S - now
            raise TooMany("rate", f"more than {self._most} requests a minute of one address", wait_s)
        times.append(now)


class Line:
    """Who is answered, and who waits."""

    def __init__(self, slots: int, limits: Limits) -> None:
        self.slots, self.limits, self.running = slots, limits, 0
        self._waiting: dict[asyncio.Future[None], str] = {}  # whose turn -> its ticket, which two may have
        self._of_address = Counter[str]()
        self._usual_s = 5.0  # how long an answer takes; learned

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def place(self, ticket: str) -> int | None:
        """Requests that come first, and this one; None where it does not wait."""
        return next((n for n, one in enumerate(self._waiting.values(), 1) if one == ticket), None)

    def wait_s(self, place: int) -> float:
        """How long one at that place will wait, as far as one can know."""
        return min(MOST_WAIT_S, self._usual_s * place / self.slots)

    @asynccontextmanager
    async def turn(self, ticket: str, address: str) -> AsyncIterator[None]:
        """Wait for a slot, and have it; who is cancelled leaves at once. Raises TooMany where the queue is full."""
        limits = self.limits
        if limits.at_once and self._of_address[address] >= limits.at_once:
            raise TooMany("at once", f"more than {limits.at_once} requests at once of one address", self._usual_s)
        if self.running >= self.slots and self.waiting >= limits.waiting:
            why = f"the queue is full: {self.waiting} requests wait"
            raise TooMany("queue", why, self.wait_s(self.waiting))
        self._of_address[address] += 1
        try:
            await self._enter(ticket)
            started = time.monotonic()
            try:
                yield
            finally:
                self._usual_s += 0.2 * (time.monotonic() - started - self._usual_s)
                self._leave()
        finally:
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    async def _enter(self, ticket: str) -> None:
        if self.running < self.slots:
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = ticket
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiting.pop(turn, None) is None and not turn.cancelled():
                self._leave()  # it was its turn in the same moment: the next one's now
            raise

    def _leave(self) -> None:
        """The slot goes to the first who waits."""
        while self._waiting:
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
