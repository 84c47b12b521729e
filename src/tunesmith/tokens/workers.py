"""Batches made by several processes, and what they become in the order of the batches, as if one had made them.

A process imports for seconds before it makes anything, so that this one makes the first batches, and goes on until
another is ready. Each is `python -m tunesmith.tokens.worker`: a forked one would have the locks of the tokenizer's
threads but not the threads, and those of multiprocessing import the user's script once more. They end as their pipe
closes, however this process ends.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from multiprocessing import Pipe
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from threading import Thread
from typing import Any

from tunesmith.errors import ResourceError
from tunesmith.tokens.batch import Job, Made, Maker, Rows

ALONE_BATCHES = 4  # 1,024 rows: what one process makes in the seconds that others need to start
IN_FLIGHT = 2  # batches that a worker has: the one it makes, and the next
AHEAD = 4  # batches for each worker that may be sent or wait: behind a slow one the others do not pile up
READY = "ready"


def make_all(job: Job, batches: Iterable[Rows], workers: int) -> Iterator[Made]:
    """What each batch becomes, in order. After ALONE_BATCHES batches `workers` processes make them (1: this one alone).

    Raises what the reader or a batch raises, after what comes before it is given; ResourceError if a worker is killed.
    """
    left, maker = iter(batches), Maker(job)
    yield from map(maker.make, left if workers == 1 else islice(left, ALONE_BATCHES))
    for first in left:
        with Pool(job, workers) as pool:
            for batch in chain([first], _caught(left)):
                if isinstance(batch, Exception):
                    yield from pool.rest()
                    raise batch
                if pool.is_ready():
                    yield from pool.put(batch)
                else:
                    yield maker.make(batch)
            yield from pool.rest()


def _caught(batches: Iterator[Rows]) -> Iterator[Rows | Exception]:
    """The batches, and last of all what the reader raises."""
    try:
        yield from batches
    except Exception as error:  # raised by make_all
        yield error


class _Worker:
    """A process that makes batches, seen from here."""

    def __init__(self, job: memoryview) -> None:
        self.connection, theirs = Pipe()
        self.is_ready, self.numbers = False, deque[int]()
        """The numbers of the batches that it has."""
        command = [sys.executable, "-P", "-m", "tunesmith.tokens.worker", str(theirs.fileno())]
        alone = os.environ | {"TOKENIZERS_PARALLELISM": "false"}  # each worker is a core's
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=alone,
                start_new_session=True,  # Ctrl+C in the terminal is for us to act on
            )  # fmt: skip
        self._sending = Thread(target=self._send_job, args=(job,), daemon=True)  # read once the other side has imported
        self._sending.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def _send_job(self, job: memoryview) -> None:
        with suppress(OSError):  # it has ended, which whoever waits for its answer sees
            self.connection.send_bytes(job)

    def send(self, what: Any) -> None:
        try:
            self.connection.send(what)
        except OSError:
            raise self._ended() from None

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None

    def end(self) -> None:
        self._process.kill()  # it has nothing to save
        self._process.wait()
        self._sending.join()  # of what it has not read; nobody is there any more to take it
        self.connection.close()

    def _ended(self) -> ResourceError:
        code = self._process.wait()
        how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        return ResourceError(
            f"a process that makes rows into tokens ended with {how}",
            fix="run the same command again; if memory was short, close other programs first",
        )


class Pool:
    """Workers, and what they have made. Use as a context manager."""

    def __init__(self, job: Job, workers: int) -> None:
        self.workers, packed = list[_Worker](), ForkingPickler.dumps(job)  # once, as a tokenizer is large
        self._sent = self._given = 0
        self._made: dict[int, Made | Exception] = {}
        try:
            for _ in range(workers):
                self.workers.append(_Worker(packed))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            worker.end()

    def is_ready(self) -> bool:
        """Whether any worker can make batches."""
        self._receive(0)
        return any(worker.is_ready for worker in self.workers)

    def put(self, rows: Rows) -> Iterator[Made]:
        """Hand a batch to a worker as soon as one has room; gives what is made meanwhile and is next in order."""
        while not (worker := self._free()):
            self._receive(None)
            yield from self._in_order()
        worker.numbers.append(self._sent)
        self._sent += 1
        worker.send(rows)
        self._receive(0)
        yield from self._in_order()

    def rest(self) -> Iterator[Made]:
        """Wait for all that was put."""
        yield from self._in_order()
        while self._given < self._sent:
            self._receive(None)
            yield from self._in_order()

    def _free(self) -> _Worker | None:
        room = [worker for worker in self.workers if worker.is_ready and len(worker.numbers) < IN_FLIGHT]
        if not room or self._sent - self._given >= AHEAD * len(self.workers):
            return None
        return min(room, key=lambda worker: len(worker.numbers))

    def _receive(self, timeout_s: float | None) -> None:
        """Take what the workers have sent, waiting for one of them."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), timeout_s):
            worker = by_connection[connection]  # type: ignore[index]
            found = worker.receive()
            if worker.numbers:
                self._made[worker.numbers.popleft()] = found
            elif found == READY:
                worker.is_ready = True
            else:  # it could not take the job
                raise found

    def _in_order(self) -> Iterator[Made]:
        while self._given in self._made:
            found = self._made.pop(self._given)
            self._given += 1
            if isinstance(found, Exception):
                raise found
            yield found
