"""A process that makes batches of rows into token rows for workers.py: `python -m tunesmith.tokens.worker FD`.

FD is its end of a pipe. It gets a Job, says that it is ready, then gets batches and answers each in order.
"""

import copy
import os
import sys
import traceback
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread

from tunesmith.tokens.batch import Maker, Rows
from tunesmith.tokens.workers import READY


def main(descriptor: int) -> None:
    """Work until the pipe is closed."""
    connection, batches = Connection(descriptor), SimpleQueue[Rows]()
    try:
        try:
            maker = Maker(connection.recv())
        except (EOFError, OSError):
            raise
        except Exception as error:
            connection.send(_sendable(error))
            return
        connection.send(READY)
        Thread(target=_feed, args=(connection, batches), daemon=True).start()
        while True:
            rows = batches.get()
            try:
                made = maker.make(rows)
            except Exception as error:
                connection.send(_sendable(error))
            else:
                connection.send(made)
    except (EOFError, OSError):  # nobody is there to answer
        return


def _feed(connection: Connection, batches: "SimpleQueue[Rows]") -> None:
    """Take batches from the pipe as they come, so that who sends never waits; with the other end this process ends."""
    while True:
        try:
            batches.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be sent."""
    try:
        copy.copy(error)  # made anew from its arguments, as on the other side
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


if __name__ == "__main__":
    main(int(sys.argv[1]))
