"""A run folder on a file system that keeps no locks: a file of this machine's is locked instead."""

import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest
from forked import forked

from tunesmith import files, lock
from tunesmith.errors import ResumeError
from tunesmith.lock import locked, looked_at, process_in
from tunesmith.runs import Run

ME = f"{os.getpid()} on {os.uname().nodename}"


def refusing(folder, number):
    """A flock that ends with that number for files below a folder."""
    flock = fcntl.flock

    def refuse(file, how):
        descriptor = file if isinstance(file, int) else file.fileno()
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(folder):
            raise OSError(int(number), os.strerror(int(number)))
        flock(file, how)

    return refuse


def dies(folder, shared, number):
    """In a process of its own: killed as it works in a run."""
    fcntl.flock, lock.SHARED = refusing(folder, number), Path(shared)
    with locked(Run(Path(folder) / "small")):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(params=[errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def run(request, tmp_path, monkeypatch):
    """A run whose folder keeps no locks; tmp_path / "shared" stands in for /tmp."""
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(lock, "SHARED", tmp_path / "shared")
    monkeypatch.setattr(fcntl, "flock", refusing(tmp_path / "runs", request.param))
    lock._warn_of.cache_clear()
    run = Run(tmp_path / "runs" / "small")
    run.number = request.param
    return run


def test_without_locks_one_process_of_this_machine_works_in_a_run(run, tmp_path, capsys):
    link = Run(tmp_path / "link")
    link.path.symlink_to(run.path)
    with locked(run):
        (file,) = (tmp_path / "shared").iterdir()
        assert file.name.startswith(f"tunesmith-{os.getuid()}-") and file.name.endswith(".lock")
        assert process_in(run) == process_in(link) == ME
        for same in (run, link):
            with pytest.raises(ResumeError, match=f"process {ME} is already working"), locked(same):
                pass
        with locked(Run(run.path.parent / "other")):
            pass
    assert process_in(run) is None and run.lock.is_file()
    with locked(run):
        pass
    said = [line for line in capsys.readouterr().err.splitlines() if str(run.path) in line and "no locks" in line]
    assert len(said) == 1 and str(file) in said[0] and "no other machine works there" in said[0]


def test_without_locks_who_looks_on_keeps_the_run_from_beginning(run):
    with locked(run):
        pass
    with looked_at(run) as process:
        assert process is None
        with pytest.raises(ResumeError, match="another process reads this run folder"), locked(run):
            pass


def test_without_locks_what_a_dead_process_left_keeps_nobody_out(run, tmp_path):
    with forked(tmp_path / "child", run.path.parent, tmp_path / "shared", run.number, of=dies) as child:
        assert child.wait() == -signal.SIGKILL, child.stderr
        assert run.lock.read_text().split()[0] == str(child.process.pid) and process_in(run) is None
        assert "no locks" in child.stderr and "soft" not in child.stderr.lower()
    run.lock.write_text("4711 other-host")  # as versions before left it, for ever
    with locked(run):
        assert process_in(run) == ME
    assert len(list((tmp_path / "shared").iterdir())) == 1


def test_another_failure_of_a_lock_is_an_error(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lock, "SHARED", tmp_path / "shared")
    monkeypatch.setattr(fcntl, "flock", failing)
    with pytest.raises(OSError, match="Input/output"), locked(Run(tmp_path / "run")):
        pass
    assert not (tmp_path / "shared").exists() and process_in(Run(tmp_path / "run")) is None


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_a_drive_that_cannot_flush_ends_nothing_and_one_that_fails_does(tmp_path, monkeypatch, number):
    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            files.flush(tmp_path)
    else:
        files.flush(tmp_path)
