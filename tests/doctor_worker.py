"""Tries for tests of doctor (tries.py): some find, some fail, some take the process with them."""

import os
import signal
import sys
import time

from tunesmith.doctoring.finding import Finding
from tunesmith.doctoring.tries import Try, serve
from tunesmith.errors import ResourceError


def found(name, says="well"):
    return lambda: Finding("machine", name, "ok", says)


def fails():
    raise ValueError(f"no good, said with {os.environ['HF_TOKEN']} and https://me:secret@hub.example\nmore")


def refuses():
    raise ResourceError("there is too little", fix="get more")


def aborts():
    print("as it died it printed hf_secretsecretsecret", file=sys.stderr, flush=True)
    os.abort()


def tries_for(job):
    yield Try("machine", "first", found("first", str(os.getpid())))
    yield Try("machine", "fails", fails, "mend it")
    yield Try("machine", "refuses", refuses)
    yield Try("machine", "aborts", aborts, "build it anew")
    yield Try("machine", "hangs", lambda: time.sleep(600), "wait less", limit_s=0.5)
    yield Try("machine", "killed", lambda: os.kill(os.getpid(), signal.SIGKILL))
    yield Try("machine", "exits", lambda: os._exit(3))
    yield Try("machine", "leaves", lambda: os._exit(0))
    yield Try("machine", "last", found("last", str(os.getpid())))


if __name__ == "__main__":
    serve(tries_for)
