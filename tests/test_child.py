"""The process beside ours: only what it tells is read, whatever else is printed, and its end has one meaning."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

from tunesmith import cli, machine
from tunesmith.errors import ResourceError
from tunesmith.inference.child import Child
from tunesmith.inference.ended import ended

PRINTS = """
import os, sys
os.write(1, b"[New LWP 12]\\n")  # before all else, as an import may
from tunesmith.inference.child import serve_parent, tell

def work(job):
    os.write(1, b'{"text": "not ours"}\\n')
    if job["tells"]:
        tell({"text": job["tells"]})
    print("Attaching to process", os.getpid(), flush=True)
    print("GGML_ASSERT(n > 0) failed", file=sys.stderr, flush=True)
    if job["ends"] == "raise":
        raise KeyError("half")
    if isinstance(job["ends"], int):
        os.kill(os.getpid(), job["ends"]) if job["ends"] < 100 else os._exit(job["ends"])
    if job["ends"] == "abort":
        os.abort()
    if job["ends"] == "cut":
        os.write(int(sys.argv[1]), b'{"text": "half a li')
        os.abort()
    if job["ends"] == "never":
        sys.stdin.read()

serve_parent(work)
"""


TELLS = """
import os
from tunesmith.inference.child import serve_parent, tell
serve_parent(lambda job: tell({name: os.environ.get(name) for name in job["names"]}))
"""


TELLS = """
import os
from tunesmith.inference.child import serve_parent, tell
serve_parent(lambda job: tell({name: os.environ.get(name) for name in job["names"]}))
"""


@pytest.fixture
def child_of(tmp_path, monkeypatch):
    """Start a child that prints, tells (or not), and ends."""
    (tmp_path / "prints.py").write_text(PRINTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    children = []

    def start(ends, tells=None):
        children.append(Child("prints", {"tells": tells, "ends": ends}, "tiny"))
        return children[-1]

    yield start
    for child in children:
        child.close()


def test_what_is_printed_is_never_read_as_a_line(child_of):
    text = "a b\u2028\u00e9\U0001f600" * 40_000  # more than a pipe holds
    assert list(child_of("well", text)) == [{"text": text}]


def test_threads_that_wait_spin_little_unless_the_user_has_said_how(tmp_path, monkeypatch):
    (tmp_path / "tells.py").write_text(TELLS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    names = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"]

    def told(environment, *spins):
        with monkeypatch.context() as patch:
            for name in names:
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            with contextlib.closing(Child("tells", {"names": names}, "tiny", *spins)) as child:
                return {name: value for name, value in child.read().items() if value}

    ours = {"GOMP_SPINCOUNT": str(machine.TRAINING_SPINS)}  # as the command line has it
    for environment in ({}, ours):
        assert told(environment) == {"GOMP_SPINCOUNT": str(machine.ANSWERING_SPINS)}
        assert told(environment, machine.TRAINING_SPINS) == ours
    for environment in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}):
        assert told(environment) == environment
    line = "import os; from tunesmith import cli; cli.app = lambda: print(os.environ['GOMP_SPINCOUNT']); cli.main()"
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, env=clean, check=True)
    assert done.stdout == f"{machine.TRAINING_SPINS}\n"


@pytest.mark.parametrize("ends", ["abort", "cut"])
def test_a_child_that_ends_without_its_line_is_named(child_of, ends):
    child = child_of(ends)
    with pytest.raises(ResourceError, match="that answers with tiny ended with code -6"):
        child.read()
    child.close()
    with pytest.raises(ResourceError, match="code -6"):  # it was not we who ended it
        child.wait()


def test_the_command_line_shows_what_was_printed_before_the_error(monkeypatch, capsys):
    def fails():
        raise ended("tiny", 1, "Traceback\n  in line 3\nKeyError: 'half'\n")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == ResourceError.exit_code
    assert said.startswith("Traceback\n  in line 3\nKeyError: 'half'\nerror: the process that answers with tiny ended")


def test_waiting_for_what_we_closed_ends_well(child_of):
    child, ended = child_of("never", "up"), []
    assert child.read() == {"text": "up"}
    waiter = threading.Thread(target=lambda: ended.append(child.wait()))
    waiter.start()
    child.close()
    waiter.join(timeout=30)
    child.close()  # a second time changes nothing
    assert ended == [None] and child.wait() is None


def test_no_pipe_is_left_open(child_of):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        child_of("well", "up").close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("ends", "said", "fix"),
    [
        (signal.SIGKILL, "code -9: it was killed, as the system does without memory", "free some memory"),
        (128 + signal.SIGKILL, "code 137: it was killed, as the system does without memory", "free some memory"),
        (signal.SIGABRT, "code -6: llama.cpp gave up; GGML_ASSERT(n > 0) failed", "delete gguf/ in its run"),
        (signal.SIGSEGV, "code -11: llama.cpp crashed", "delete gguf/ in its run"),
        (signal.SIGBUS, "code -7: its file was cut or could not be read", "delete gguf/ in its run"),
        (signal.SIGILL, "code -4: the processor lacks instructions", "--no-binary xllamacpp"),
        (signal.SIGTERM, "code -15: it was ended by signal 15 (Terminated)", "start it again"),
        ("raise", "code 1: Python ended it; KeyError: 'half'", "install tunesmith again"),
    ],
)
def test_memory_is_blamed_only_where_it_was_killed(child_of, ends, said, fix):
    child = child_of(ends)
    with pytest.raises(ResourceError) as caught:
        child.read()
    assert f"answers with tiny ended with {said}" in caught.value.what and fix in caught.value.fix
    assert ("memory" in str(caught.value)) == (fix == "free some memory")
    silent = (signal.SIGKILL, 128 + signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)  # it may be what somebody asked
    assert ("GGML" in caught.value.what) == (ends not in silent and ends != "raise")


def test_what_it_printed_is_known_after_it_is_closed(child_of):
    child = child_of("abort")
    child._process.wait()
    child.close()
    with pytest.raises(ResourceError, match=r"code -6: llama\.cpp gave up; GGML_ASSERT\(n > 0\) failed"):
        child.wait()


def test_all_that_was_printed_is_a_note_of_the_error(child_of):
    with pytest.raises(ResourceError) as caught:
        child_of("raise").read()
    (note,) = caught.value.__notes__
    assert note.startswith("GGML_ASSERT(n > 0) failed\nTraceback") and note.endswith("KeyError: 'half'")


def test_where_there_is_no_place_for_temporary_files_an_end_is_said_all_the_same(monkeypatch):
    def none(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", none)
    child = Child("no_such_module", {}, "small")
    with contextlib.closing(child), pytest.raises(ResourceError, match="ended with code 1: Python ended it"):
        child.read()
