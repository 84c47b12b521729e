"""Rows made by several processes: the same as by one, in order, and no process left behind."""

import os
import signal
import threading
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from families import conversation
from forked import SERVER
from tiny import save_tokenizer

from tunesmith.data.conversation import Dropped
from tunesmith.data.decontaminate import Prompts
from tunesmith.errors import ResourceError
from tunesmith.recipe import Recipe
from tunesmith.tokens.batch import Job, Maker
from tunesmith.tokens.sent import to_send
from tunesmith.tokens.tally import FURTHER, Tally
from tunesmith.tokens.tokenizer import embedding_rows, load_tokenizer
from tunesmith.tokens.workers import Pool, make_all


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_tokenizer(folder)
    recipe = Recipe(name="t", base="tiny", data={"sources": [{"path": "x.jsonl"}]}, train={"max_length": 60})
    return Job(recipe, to_send(load_tokenizer(folder)), embedding_rows(folder), Prompts(["What is 7?"], nearly=True))


def batches():
    """Rows of every fate: kept, cut, too long, a prompt, broken, refused by the template."""
    for number in range(0, 60, 5):
        rows = [
            conversation(f"What is {n}?", f"It is {n}.", *["And?", "more " * n][: n % 3 * 2]) for n in range(number)
        ]
        yield [*rows, Dropped(f"x:{number}", "not valid JSON"), conversation("a", "b <|im_end|>")]
        yield [conversation("a"), conversation("c", "long " * 99)]


def counted(tally):
    return vars(tally) | {"listed": tally.listed.getvalue()}


def told(made):
    """All that is in what was made, comparable."""
    arrays = [values.tolist() for values in made.packed[:4]]
    return arrays, made.packed.table.to_pylist(), repr(made.signed), counted(made.tally)


def ready(pool):
    while not pool.is_ready():
        time.sleep(0.01)
    return pool


def is_there(pid):
    """Whether a process runs; one that has ended and nobody asked for is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(pool):
    return [worker.pid for worker in pool.workers]


def test_two_workers_make_what_one_process_makes_in_order_and_a_killed_one_is_said(job):
    maker = Maker(job)
    expected = [told(made) for made in make_all(job, batches(), 1)]
    fates = {"longer than max_length", "is an evaluation prompt", "not valid JSON"}
    assert fates <= {reason for one in expected for reason in one[3]["dropped"]}
    with ready(Pool(job, 2)) as pool:
        assert [told(made) for rows in batches() for made in pool.put(rows)] + [
            told(made) for made in pool.rest()
        ] == expected
        given = []
        with pytest.raises(AttributeError) as raised:  # after the batches before it, as in one process
            for rows in [[conversation("a", "b")], [None], [conversation("c", "d")]]:
                given += pool.put(rows)
            given += pool.rest()
        assert len(given) == 1
        with pytest.raises(AttributeError) as alone:
            maker.make([None])
        assert str(raised.value) == str(alone.value)
        for pid in pids(pool):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ResourceError, match=r"ended with signal 9 \(Killed\)\n  fix: run the same command again"):
            list(pool.put([conversation("a", "b")]))
            list(pool.rest())
    assert not any(map(is_there, pids(pool)))


def test_rows_that_are_made_before_a_worker_has_read_its_job_end_in_silence(job, monkeypatch):
    """A tokenizer is more than a pipe holds, so that it is being sent all the while that the worker imports."""
    failed, before = [], {*threading.enumerate()}
    monkeypatch.setattr(threading, "excepthook", failed.append)
    large = replace(job, recipe=job.recipe.model_copy(update={"name": "x" * 3_000_000}))
    for _ in range(3):
        with Pool(large, 1) as pool:
            assert not pool.is_ready()
    for thread in {*threading.enumerate()} - before:
        thread.join(20)
    assert not failed


def _with_worker(job, pipe):
    with ready(Pool(job, 1)) as pool:
        pipe.send(pids(pool))
        while True:
            pool.is_ready()


def test_a_worker_ends_with_the_process_that_started_it(job):
    signals, started = (signal.SIGTERM, signal.SIGINT), []
    for _ in signals:
        ours, theirs = SERVER.Pipe()
        process = SERVER.Process(target=_with_worker, args=(job, theirs))
        process.start()
        started.append((process, ours))
    for number, (process, pipe) in zip(signals, started, strict=True):
        (worker,) = pipe.recv()
        assert is_there(worker)
        os.kill(process.pid, number)
        process.join(20)
        deadline = time.monotonic() + 20
        while is_there(worker) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_there(worker) and process.exitcode is not None


def test_tallies_of_batches_add_up_to_that_of_all_rows():
    whole, parts = Tally(StringIO()), [Tally(StringIO()), Tally(StringIO())]
    for n in range(8):
        for tally in (whole, parts[n // 4]):
            tally.drop(f"x:{n}", "odd" if n % 2 else "even")
            tally.read += 1
    summed = Tally(StringIO())
    for part in parts:
        summed.add(part)
    assert counted(summed) == counted(whole) and summed.examples["odd"] == ["x:1", "x:3", "x:5"]


def test_strange_reasons_are_counted_together_beyond_some(monkeypatch):
    """Each name of a speaker is a reason: the record of 66,000 had 15 MB, and was read for seconds."""
    monkeypatch.setattr("tunesmith.tokens.tally.MOST_REASONS", 2)
    whole, part = Tally(StringIO()), Tally(StringIO())
    for n in range(5):
        part.drop(f"x:{n}", f"unknown role {n % 4}")
    whole.add(part)
    assert whole.dropped == part.dropped == {"unknown role 0": 2, "unknown role 1": 1, FURTHER: 2}
    assert whole.examples[FURTHER] == ["x:2", "x:3"] and "unknown role 3" in whole.listed.getvalue()


def test_what_the_reader_raises_comes_after_the_rows_before_it(job):
    def failing():
        yield [conversation("a", "b")]
        raise OSError("gone")

    found = make_all(job, failing(), 2)
    assert next(found).tally.read == 1
    with pytest.raises(OSError, match="gone"):
        next(found)
