"""The mirror: what is there is complete or absent, a new machine goes on with it, and no fault of it stops training."""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import fsspec
import pytest
from hub_store import TOKEN, stand_in
from mirrored_runs import NAME, Failing, contents, emptied, made_run, mirrored, offered, s3_server, saved, wait_for

from tunesmith.errors import RecipeError, ResourceError
from tunesmith.files import DIGESTS, digest_folder
from tunesmith.runs import Run, commit_stage
from tunesmith.training import fetched
from tunesmith.training import mirror as mirror_module
from tunesmith.training.hub_folder import HubFolder
from tunesmith.training.mirror import OWNER, Mirror
from tunesmith.training.saved import ADAPTER, OPTIMIZER, STATE, is_whole
from tunesmith.training.store import FileStore, reason, said, within

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to its client
fsspec.register_implementation("failing", Failing, clobber=True)
WITH_TESTS = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
SMALL = f"checkpoints/step-000002/{ADAPTER}"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Nothing in the memory that memory:// and failing:// keep; no seconds between tries."""
    for kept in (Failing, fsspec.get_filesystem_class("memory")):
        kept.store.clear()
        kept.pseudo_dirs[:] = [""]
    Failing.fails, Failing.log = staticmethod(lambda path: False), []
    monkeypatch.setattr(mirror_module, "FIRST_WAIT_S", 0.002)
    monkeypatch.setattr(mirror_module, "MOST_WAIT_S", 0.02)


@pytest.fixture
def hub(monkeypatch):
    with stand_in(monkeypatch) as store:
        monkeypatch.setattr(HubFolder, "pause_s", 0.0)
        yield store


@pytest.fixture(params=["folder", "file", "memory", "s3", "dataset", "branch"])
def url(request, tmp_path, monkeypatch):
    with ExitStack() as stack:
        if request.param == "s3":
            stack.enter_context(s3_server(monkeypatch))
        if request.param in ("dataset", "branch"):
            request.getfixturevalue("hub")
        yield {
            "folder": str(tmp_path / "there"), "file": f"file://{tmp_path}/there", "memory": "memory://there/x",
            "s3": "s3://bucket/there", "dataset": "hf://datasets/me/mine", "branch": "hf://me/mine@copies/some/folder",
        }[request.param]  # fmt: skip


def store_at(url):
    return HubFolder(url, NAME) if url.startswith("hf:") else FileStore(url, NAME)


def test_a_new_machine_goes_on_with_what_is_there(url, tmp_path, capsys):
    here = mirrored(url, tmp_path / "here", 2, 4)
    names = store_at(url).names()
    steps = [f"checkpoints/step-00000{n}/{file}" for n in (2, 4) for file in
             (ADAPTER, DIGESTS, "metrics.jsonl", OPTIMIZER, "samples.jsonl", STATE)]  # fmt: skip
    assert names == [*steps, *(f"data/{name}" for name in sorted(contents(here.data))), OWNER, "recipe.yaml"]
    there = Run(tmp_path / "new" / NAME)
    got = Mirror(url, there, NAME).fetch()
    assert [one.partition(" ")[0] for one in got] == ["data", "step-000004", "recipe.yaml"]
    assert (
        f"mirror: fetched data (0.0 MB), step-000004 (0.0 MB), recipe.yaml from {url}/{NAME}" in capsys.readouterr().err
    )
    wanted = {name: content for name, content in contents(here.path).items() if "step-000002" not in name}
    assert contents(there.path) == wanted, "bytes, names, and nothing hidden"
    there.refuse_strangers()
    assert Mirror(url, there, NAME).fetch() == []


def test_where_nothing_is_there_nothing_happens(url, tmp_path, capsys):
    run = Run(tmp_path / "run")
    assert Mirror(url, run, NAME).fetch() == [] and not run.path.exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("url", ["folder", "memory", "s3", "dataset"], indirect=True)
def test_a_run_goes_on_in_its_mirror_and_old_checkpoints_go(url, tmp_path):
    run = mirrored(url, tmp_path / "run", 2, 4, best=2)
    mirror = Mirror(url, run, NAME)
    assert mirror.fetch() == []
    mirror.claim()
    mirror.start()
    offered(mirror, run, 6, best=2, keep=["step-000006"])
    assert mirror.close(20)
    store = store_at(url)
    assert sorted({name.split("/")[1] for name in store.names("checkpoints")}) == ["step-000002", "step-000006"]
    assert json.loads(store.read(OWNER))["generation"] == 2 and store.read("nothing") is None
    mirror.begin_anew()
    assert not store.names("checkpoints") and store.names("data") and not store.names("dat")


def test_each_write_is_in_an_order_that_tells_what_is_complete(tmp_path):
    mirrored("failing://there", tmp_path / "run", 2, 4)
    order = [path.removeprefix(f"/there/{NAME}/") for path in dict.fromkeys(Failing.log)]
    assert (
        order[:2] == [OWNER, "recipe.yaml"]
        and order.index("data/record.json") == 2 + len([name for name in order if name.startswith("data/")]) - 1
    )
    for step in ("step-000002", "step-000004"):
        of_step = [name for name in order if step in name]
        assert of_step[-1] == f"checkpoints/{step}/{DIGESTS}" and len(of_step) == 6
    Failing.log.clear()
    mirror = Mirror("failing://there", Run(tmp_path / "run"), NAME)
    mirror.start()
    offered(mirror, Run(tmp_path / "run"), 6, keep=["step-000006"])
    assert mirror.close(20)
    gone = [name for path in Failing.log if "step-000006" not in (name := path.removeprefix(f"/there/{NAME}/"))]
    first, second = gone[1:7], gone[7:]
    assert gone[0] == OWNER and first[0] == f"checkpoints/step-000002/{DIGESTS}", "the rows are not sent again"
    assert second[0] == f"checkpoints/step-000004/{DIGESTS}" and len(second) == 6


DAMAGE = {
    "adapter.safetensors is missing": lambda folder: (folder / ADAPTER).unlink(),
    "metrics.jsonl is missing": lambda folder: (folder / "metrics.jsonl").unlink(),
    "optimizer.safetensors has 7 bytes, not 2,880": lambda folder: os.truncate(folder / OPTIMIZER, 7),
    "adapter.safetensors has 0 bytes, not 960": lambda folder: os.truncate(folder / ADAPTER, 0),
    "adapter.safetensors has other bytes than were written": lambda folder: flip(folder / ADAPTER),
    "samples.jsonl has other bytes than were written": lambda folder: flip(folder / "samples.jsonl"),
    "digests.json is damaged": lambda folder: os.truncate(folder / DIGESTS, 30),
    "": lambda folder: (folder / DIGESTS).unlink(),  # half sent: no checkpoint at all
    "it is no checkpoint": lambda folder: (folder / DIGESTS).write_text("{}"),
    "../../recipe.yaml is no name of a file in it": lambda folder: (folder / DIGESTS).write_text(
        json.dumps({"../../recipe.yaml": {"sha256": "", "bytes": 1}})
    ),
}  # fmt: skip


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a mirror of three checkpoints."""
    place = tmp_path_factory.mktemp("mirrored")
    mirrored(str(place / "there"), place / "run", 2, 4, 6)
    return place / "there"


@pytest.mark.parametrize("why", DAMAGE)
def test_what_is_damaged_there_is_passed_over_by_name_and_the_next_older_is_taken(why, there, tmp_path, capsys):
    copy = shutil.copytree(there, tmp_path / "there")
    DAMAGE[why](copy / NAME / "checkpoints" / "step-000006")
    run = Run(tmp_path / "run")
    Mirror(str(copy), run, NAME).fetch()
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000004"]
    assert is_whole(run.checkpoints / "step-000004") and len(run.metrics.read_text().splitlines()) == 4
    said = [line for line in capsys.readouterr().err.splitlines() if "step-000006" in line]
    line = f"warning: mirror: step-000006 is damaged in {copy}/{NAME} ({why}) and is passed over"
    assert said == ([line] if why else [])


@pytest.mark.parametrize(
    ("file", "damage", "got", "told"),
    [
        ("data/tokens.npy", flip, ["recipe.yaml", "step-000006"], "tokens.npy has other bytes"),
        ("data/tokens.npy", Path.unlink, ["recipe.yaml", "step-000006"], "tokens.npy is missing"),
        ("data/rows.parquet", lambda path: os.truncate(path, 5), ["recipe.yaml", "step-000006"], "has not the size"),
        ("data/record.json", lambda path: os.truncate(path, 9), ["recipe.yaml", "step-000006"], "record.json is dama"),
        ("data/record.json", Path.unlink, ["recipe.yaml", "step-000006"], ""),
        ("recipe.yaml", lambda path: os.truncate(path, 9), ["data", "step-000006"], "recipe.yaml is damaged"),
        (OWNER, lambda path: os.truncate(path, 9), ["data", "step-000006", "recipe.yaml"], ""),
    ],
)
def test_other_damage_costs_no_more_than_what_is_damaged(file, damage, got, told, there, tmp_path, capsys):
    copy = shutil.copytree(there, tmp_path / "there")
    damage(copy / NAME / file)
    mirror = Mirror(str(copy), Run(tmp_path / "run"), NAME)
    assert [one.partition(" ")[0] for one in mirror.fetch()] == got
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert (told in warned[0] and len(warned) == 1) if told else not warned
    mirror.claim()
    assert json.loads((copy / NAME / OWNER).read_text())["generation"] == (1 if file == OWNER else 2)


def test_what_is_here_counts_and_only_what_is_lacking_is_fetched(there, tmp_path, capsys):
    run = made_run(tmp_path / "run")
    saved(run, 5)
    saved(run, 6, best=4)
    lines = run.metrics.read_bytes()
    flip(run.checkpoints / "step-000006" / ADAPTER)
    mirror = Mirror(str(there), run, NAME)
    before = contents(run.data)
    assert [one.partition(" ")[0] for one in mirror.fetch()] == ["step-000006"], "the newest here is damaged"
    assert contents(run.data) == before and run.metrics.read_bytes() == lines
    assert any(path.name.startswith(".damaged-step-000006-") for path in run.checkpoints.iterdir())
    told = (
        "step-000006 is not gone on with, adapter.safetensors has other bytes than were written; it is kept as .damaged"
    )
    assert told in capsys.readouterr().err
    saved(run, 8, best=4)
    assert [one.partition(" ")[0] for one in mirror.fetch()] == ["step-000004"], "the best one is lacking"
    assert len(run.metrics.read_text().splitlines()) == 8, "an older one brings no lines"
    saved(run, 9, best=3)
    assert mirror.fetch() == []
    assert f"step-000003, is whole neither here nor in {there}/{NAME}" in capsys.readouterr().err


def test_a_training_that_has_ended_needs_no_checkpoints(there, tmp_path):
    run = made_run(tmp_path / "run")
    commit_stage(run.adapter, {}, {}, lambda draft: {})
    assert Mirror(str(there), run, NAME).fetch() == [] and not run.checkpoints.exists()


def test_a_run_without_samples_gets_none(tmp_path):
    run = made_run(tmp_path / "run")
    mirror = Mirror("memory://there", run, NAME)
    mirror.start()
    mirror.offer(saved(run, 2), b"lines", b"", [])
    assert mirror.close(20)
    new = Run(tmp_path / "new")
    Mirror("memory://there", new, NAME).fetch()
    assert new.metrics.read_bytes() == b"lines" and not new.samples.exists()


def test_with_the_newest_comes_the_best(tmp_path):
    url = str(tmp_path / "there")
    mirrored(url, tmp_path / "run", 2, 4, 6, best=2)
    new = Run(tmp_path / "new")
    got = Mirror(url, new, NAME).fetch()
    assert [one.partition(" ")[0] for one in got] == ["data", "step-000006", "step-000002", "recipe.yaml"]


def test_scores_go_along(tmp_path):
    """Made anew on another kind of machine they would have other bits, and other rows would be trained on."""
    run, url = made_run(tmp_path / "run"), str(tmp_path / "there")

    def work(draft):
        (draft / "scores.npy").write_bytes(b"scores")
        return {}

    commit_stage(run.scores, {}, {}, work)
    mirror = Mirror(url, run, NAME)
    mirror.claim()
    mirror.start()
    assert mirror.close(20)
    new = Run(tmp_path / "new")
    assert [one.partition(" ")[0] for one in Mirror(url, new, NAME).fetch()] == ["data", "scores", "recipe.yaml"]
    assert contents(new.scores) == contents(run.scores)


def test_an_ancestor_goes_along(tmp_path):
    run = made_run(tmp_path / "run")
    (run.path / "ancestor").mkdir()
    (run.path / "ancestor" / ADAPTER).write_bytes(b"weights")
    (run.path / "ancestor" / "record.json").write_text("{}")
    url = str(tmp_path / "there")
    mirror = Mirror(url, run, NAME)
    mirror.claim()
    mirror.start()
    assert mirror.close(20) and (tmp_path / "there" / NAME / "ancestor" / DIGESTS).is_file()
    new = Run(tmp_path / "new")
    assert [one.partition(" ")[0] for one in Mirror(url, new, NAME).fetch()] == ["data", "ancestor", "recipe.yaml"]
    assert (new.path / "ancestor" / ADAPTER).read_bytes() == b"weights"


def test_superseded_ones_are_dropped_and_the_best_is_not(tmp_path):
    run, gate, at_gate = made_run(tmp_path / "run"), threading.Event(), threading.Event()

    def held(path):
        if SMALL in path:
            at_gate.set()
            assert gate.wait(20)
        return False

    Failing.fails = staticmethod(held)
    mirror = Mirror("failing://there", run, NAME)
    mirror.claim()
    mirror.start()
    offered(mirror, run, 2)
    assert at_gate.wait(20)
    for step, best in ((4, 4), (6, 4), (8, 4)):
        folder = offered(mirror, run, step, best, keep=[f"step-00000{step}", "step-000004"])
        shutil.rmtree(folder)  # as pruning here may, before it is sent
    assert len(list((run.path / ".leaving.draft").iterdir())) == 3
    gate.set()
    assert mirror.close(20)
    steps = {name.split("/")[1] for name in store_at("failing://there").names("checkpoints")}
    assert steps == {"step-000004", "step-000008"} and not any("step-000006" in path for path in Failing.log)
    assert not (run.path / ".leaving.draft").exists()
    new = Run(tmp_path / "new")
    assert len(Mirror("failing://there", new, NAME).fetch()) == 4 and is_whole(new.checkpoints / "step-000004")


def test_a_disk_without_hard_links_and_a_checkpoint_that_is_gone(tmp_path, monkeypatch, capsys):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    mirrored("memory://there", run_path := tmp_path / "run", 2)
    mirror = Mirror("memory://there", Run(run_path), NAME)
    mirror.start()
    mirror.offer(run_path / "checkpoints" / "step-000009", b"", b"", [])
    assert mirror.close(20) and "warning" not in capsys.readouterr().err
    assert is_whole(Run(run_path).checkpoints / "step-000002")


def test_a_newer_one_there_is_not_deleted_by_a_machine_that_fell_behind(there, tmp_path):
    copy = shutil.copytree(there, tmp_path / "there")
    run = made_run(tmp_path / "run")
    mirror = Mirror(str(copy), run, NAME)  # it could not be reached when the run began
    mirror.claim()
    mirror.start()
    offered(mirror, run, 3)
    assert mirror.close(20)
    assert sorted(path.name for path in (copy / NAME / "checkpoints").iterdir()) == [
        "step-000003", "step-000004", "step-000006",
    ]  # fmt: skip
    assert list((tmp_path / "run").glob(".*")) == []


def test_a_checkpoint_that_is_made_again_takes_the_place_of_the_other_in_one_moment(tmp_path):
    """Killed at any write, the mirror has the one or the other whole; of what was before nothing is left at the end."""
    url = "failing://there"
    run = mirrored(url, tmp_path / "run", 4, 6, best=4)
    old = contents(run.checkpoints / "step-000006")
    shutil.rmtree(run.checkpoints / "step-000006")
    folder = saved(run, 6, best=3)
    new = contents(folder)
    assert old != new
    for writes in range(7):
        mirror = Mirror(url, run, NAME)
        mirror.claim()
        left = [writes]
        Failing.fails = staticmethod(lambda path, left=left: "step-000006" in path and not _one_less(left))
        mirror.start()
        mirror.offer(folder, b"new lines\n", b"", ["step-000004", "step-000006"])
        mirror.close(0.3)
        Failing.fails = staticmethod(lambda path: False)
        there = Run(tmp_path / f"new{writes}")
        Mirror(url, there, NAME).fetch()
        assert contents(there.checkpoints / "step-000006") == (new if writes > 4 else old), writes
    mirror = Mirror(url, run, NAME)
    mirror.claim()
    mirror.start()
    mirror.offer(folder, b"new lines\n", b"", ["step-000004", "step-000006"])
    assert mirror.close(20)


def _one_less(left):
    left[0] -= 1
    return left[0] >= 0


def test_what_a_new_machine_has_fetched_is_not_sent_again_nor_taken_away(tmp_path):
    url = "failing://there"
    mirrored(url, tmp_path / "run", 2, 4)
    new = Run(tmp_path / "new")
    mirror = Mirror(url, new, NAME)
    mirror.fetch()
    mirror.claim()
    Failing.log.clear()
    mirror.start()
    mirror.offer(new.checkpoints / "step-000004", b"lines of another moment", b"", ["step-000002", "step-000004"])
    assert mirror.close(20)
    assert Failing.log == []


def test_with_the_newest_of_another_branch_comes_its_best(tmp_path, capsys):
    url = str(tmp_path / "there")
    mirrored(url, tmp_path / "b", 2, 6, best=2)
    here = made_run(tmp_path / "a")
    saved(here, 2)
    saved(here, 4, best=2)
    change_adapter(here.checkpoints / "step-000002")
    got = Mirror(url, here, NAME).fetch()
    assert [one.partition(" ")[0] for one in got] == ["step-000006", "step-000002"]
    assert contents(here.checkpoints / "step-000002") == contents(Run(tmp_path / "b").checkpoints / "step-000002")
    assert "it is another than the mirror's; it is kept as .damaged-step-000002-" in capsys.readouterr().err


def change_adapter(checkpoint):
    """Other weights, with digests that say so."""
    flip(checkpoint / ADAPTER)
    (checkpoint / DIGESTS).unlink()
    (checkpoint / DIGESTS).write_text(json.dumps(digest_folder(checkpoint), indent=1))


def test_nothing_begins_anew_where_the_rows_are_damaged_and_then_the_mirror_is_gone(there, tmp_path, monkeypatch):
    copy, run = shutil.copytree(there, tmp_path / "there"), Run(tmp_path / "run")
    flip(copy / NAME / "data" / "tokens.npy")
    real = FileStore.get

    def get(store, name, to):
        if OPTIMIZER in name:
            raise OSError(110, "Connection timed out")
        real(store, name, to)

    monkeypatch.setattr(FileStore, "get", get)
    for _ in range(2):
        with pytest.raises(ResourceError, match=r"cannot be read: Connection timed out"):
            Mirror(str(copy), run, NAME).fetch()
    monkeypatch.undo()
    assert [one.partition(" ")[0] for one in Mirror(str(copy), run, NAME).fetch()] == ["step-000006"]


@pytest.mark.parametrize("place", ["runs", "runs/small/mirror", "runs/small", "file"])
def test_a_mirror_on_the_way_to_the_run_folder_or_in_it_is_refused(tmp_path, place):
    url = f"file://{tmp_path}/runs" if place == "file" else str(tmp_path / place)
    with pytest.raises(RecipeError, match="lie in one another"):
        Mirror(url, Run(tmp_path / "runs" / NAME), NAME)
    Mirror(str(tmp_path / "runs"), Run(tmp_path / "runs" / "other"), NAME)


def test_a_place_that_connects_as_it_is_opened_is_opened_again_as_it_is_used(tmp_path, capsys):
    run = made_run(tmp_path / "run")
    saved(run, 2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    mirror = Mirror(f"ftp://127.0.0.1:{port}/there", run, NAME)
    assert mirror.fetch() == [] and "Connection refused" in capsys.readouterr().err
    with pytest.raises(ResourceError, match=r"cannot be read: .*Connection refused"):
        Mirror(f"ftp://127.0.0.1:{port}/there", Run(tmp_path / "new"), NAME).fetch()


def test_what_is_deleted_there_leaves_nothing_but_what_is_not_ours(there, tmp_path):
    copy = shutil.copytree(there, tmp_path / "there")
    checkpoints = copy / NAME / "checkpoints"
    (checkpoints / "step-000002" / f".{ADAPTER}.draft").write_text("of a write that was killed")
    (checkpoints / "step-000004" / ".mine").write_text("mine")
    run = made_run(tmp_path / "run")
    mirror = Mirror(str(copy), run, NAME)
    mirror.start()
    offered(mirror, run, 8, keep=["step-000008"])
    assert mirror.close(20)
    assert sorted(contents(checkpoints)) == [
        "step-000004/.mine", *(f"step-000008/{name}" for name in sorted(contents(checkpoints / "step-000008"))),
    ]  # fmt: skip
    assert not (checkpoints / "step-000002").exists()


def test_a_new_start_that_cannot_clear_the_old_one_there_is_refused(there, tmp_path):
    mirrored("failing://there", tmp_path / "run", 2)
    Failing.fails = staticmethod(lambda path: path.endswith(DIGESTS))
    with pytest.raises(ResourceError, match="in failing://there/small cannot be deleted: Input/output error"):
        Mirror("failing://there", Run(tmp_path / "run"), NAME).begin_anew()


def test_begun_anew_a_machine_that_still_trains_puts_nothing_back(tmp_path):
    url, run = str(tmp_path / "there"), made_run(tmp_path / "old")
    old = Mirror(url, run, NAME)
    old.claim()
    old.start()
    offered(old, run, 9)
    while not store_at(url).names("checkpoints/step-000009"):
        time.sleep(0.01)
    Mirror(url, made_run(tmp_path / "new"), NAME).begin_anew()
    offered(old, run, 12)
    assert not old.close(20) and old.taken_over
    assert not [name for name in store_at(url).names("checkpoints") if name.endswith(DIGESTS)]


@pytest.mark.parametrize("way", ["at random", "two of three"])
def test_half_of_the_writes_fail_and_all_gets_there(way, tmp_path, capsys):
    rng, failed = random.Random(4), []

    def fails(path):
        failed.append(rng.random() < 0.5 if way == "at random" else len(failed) % 3 != 0)  # never two in a row
        return failed[-1]

    Failing.fails = staticmethod(fails)
    run = mirrored("failing://there", tmp_path / "run", *range(2, 14, 2))
    assert sum(failed) > 20, "few failed"
    told = capsys.readouterr().err
    assert told.count("takes nothing (Input/output error)") == 1 and told.count("has caught up") == 1, "a storm"
    new = Run(tmp_path / "new")
    Failing.fails = staticmethod(lambda path: False)
    Mirror("failing://there", new, NAME).fetch()
    assert contents(new.checkpoints / "step-000012") == contents(run.checkpoints / "step-000012")


def test_while_it_is_gone_training_is_not_held_and_then_it_catches_up(tmp_path, capsys):
    run, gone = made_run(tmp_path / "run"), True
    Failing.fails = staticmethod(lambda path: gone)
    mirror = Mirror("failing://there", run, NAME)
    mirror.claim()
    mirror.start()
    began = time.monotonic()
    for step in (2, 4, 6):
        offered(mirror, run, step)
    assert time.monotonic() - began < 1.0
    time.sleep(0.1)
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and "takes nothing (Input/output error); training goes on" in told
    gone = False
    wait_for(lambda: mirror._done == "step-000006" and not mirror._failing)
    assert "mirror: failing://there/small has caught up, with step-000006" in capsys.readouterr().err
    assert mirror.close(20) and not mirror.taken_over


def test_what_is_not_there_at_the_end_is_said(tmp_path, capsys):
    Failing.fails = staticmethod(lambda path: SMALL in path)
    run = made_run(tmp_path / "run")
    mirror = Mirror("failing://there", run, NAME)
    mirror.claim()
    mirror.start()
    offered(mirror, run, 2)
    began = time.monotonic()
    assert not mirror.close(0.2) and time.monotonic() - began < 1.0
    told = capsys.readouterr().err
    assert f"mirror: step-000002 is not in failing://there/{NAME} (Input/output error); it is in {run.path}" in told
    mirror._thread.join(5)
    assert not mirror._thread.is_alive() and not (run.path / ".leaving.draft").exists()
    log = len(Failing.log)
    offered(mirror, run, 4)
    assert len(Failing.log) == log


HUNG = """
    import sys, threading, time
    import fsspec
    from mirrored_runs import Failing, made_run, offered
    from tunesmith.training.mirror import Mirror

    def hangs(path):
        if "step-" in path:
            print("hangs", flush=True)
            threading.Event().wait()

    Failing.fails = staticmethod(hangs)
    fsspec.register_implementation("failing", Failing, clobber=True)
    run = made_run(__import__("pathlib").Path(sys.argv[1]))
    mirror = Mirror("failing://there", run, "small")
    mirror.claim()
    mirror.start()
    offered(mirror, run, 2)
    time.sleep(0.2)
    began = time.monotonic()
    offered(mirror, run, 4)
    assert not mirror.close(0.3) and time.monotonic() - began < 2
"""


def test_a_write_that_hangs_does_not_keep_the_process(tmp_path):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(HUNG), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=WITH_TESTS)
    assert done.returncode == 0 and done.stdout == "hangs\n", done.stderr
    assert "step-000004 is not in failing://there/small (it was not sent within 0 s)" in done.stderr


def test_a_network_that_hangs_is_an_error_after_a_while(tmp_path, monkeypatch):
    with pytest.raises(TimeoutError, match="no answer for 0 s"):
        within(0.05, threading.Event().wait)
    grown = tmp_path / "grows"

    def slowly():
        for _ in range(8):
            with grown.open("ab") as file:
                file.write(b"x")
            time.sleep(0.03)
        return "whole"

    assert within(0.15, slowly, tmp_path) == "whole"
    monkeypatch.setattr(fetched, "LIMIT_S", 0.05)
    run = Run(tmp_path / "run")
    mirror = Mirror("memory://there", run, NAME)
    monkeypatch.setattr(mirror._store, "names", lambda: threading.Event().wait())
    with pytest.raises(ResourceError, match="cannot be read: no answer for 0 s"):
        mirror.fetch()


def test_a_mirror_that_cannot_be_reached_begins_nothing_anew(tmp_path, monkeypatch, capsys):
    with s3_server(monkeypatch):
        for url, why in (
            ("s3://nobucket/x", "The specified bucket does not exist"),
            (str(tmp_path / "not" / "mounted"), "is its drive mounted?"),
        ):
            with pytest.raises(ResourceError) as refused:
                Mirror(url, Run(tmp_path / "new"), NAME).fetch()
            assert why in refused.value.what and "--set checkpoint.mirror=null" in refused.value.fix
    assert not (tmp_path / "new").exists() and not (tmp_path / "not").exists()
    run = made_run(tmp_path / "run")
    saved(run, 2)
    before = contents(run.path)
    assert Mirror("s3://bucket/x", run, NAME).fetch() == [] and contents(run.path) == before
    told = capsys.readouterr().err
    assert "mirror: s3://bucket/x/small cannot be read (Could not connect to the endpoint" in told
    assert told.endswith("; the run goes on with what is here\n")


def test_a_fault_of_the_run_folder_is_none_of_the_mirror(there, tmp_path):
    run = Run(tmp_path / "run")
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match=str(tmp_path / "run")):
        Mirror(str(there), run, NAME).fetch()


@pytest.mark.parametrize("url", ["folder", "s3", "dataset"], indirect=True)
def test_the_older_of_two_machines_finds_the_newer_one_and_stops(url, tmp_path, capsys):
    run = mirrored(url, tmp_path / "run", 2)
    old, new = Mirror(url, run, NAME), Mirror(url, other := Run(tmp_path / "other"), NAME)
    old.claim()
    old.start()
    offered(old, run, 4)
    wait_for(lambda: old._done == "step-000004")
    new.fetch()
    new.claim()
    store = store_at(url)
    before = {name: store.read(name) for name in store.names()}
    offered(old, run, 6)
    wait_for(lambda: old.taken_over)
    assert re.fullmatch(rf".+, process {os.getpid()}, since 20\S+, generation 3", old.taken_over)
    assert "another machine goes on with this run" in capsys.readouterr().err
    assert not old.close(5) and capsys.readouterr().err == ""
    assert {name: store.read(name) for name in store.names()} == before
    new.start()
    offered(new, other, 8)
    assert new.close(20) and not new.taken_over


def test_two_that_start_at_once_are_not_both_owners(tmp_path):
    run = made_run(tmp_path / "run")
    first, second = Mirror("memory://there", run, NAME), Mirror("memory://there", run, NAME)
    owner = first._owner
    first._owner = lambda: (
        first.__dict__.pop("_owner") and (second.claim(), None)[1]
    )  # it looked before the other wrote
    first.claim()
    assert not first.taken_over and owner()["token"] == first._token
    second.start()
    second._thread.join(20)
    assert second.taken_over
    late = Mirror("memory://there", run, NAME)
    late._since = "2000-01-01T00:00:00+00:00"  # it began before, could not reach the mirror, and does now
    late.start()
    late._thread.join(20)
    assert late.taken_over
    assert owner()["token"] == first._token


def test_two_processes_at_once_of_which_the_older_stops(tmp_path):
    url, begin = str(tmp_path / "there"), "import sys; from mirrored_runs import trainer; trainer(*sys.argv[1:])"

    def begun(name, seconds):
        command = [sys.executable, "-W", "error", "-c", begin, str(tmp_path / name), url, str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=WITH_TESTS)

    old = begun("old", 60)
    wait_for(lambda: [*(tmp_path / "there" / NAME).glob(f"checkpoints/*/{DIGESTS}")], 60)
    new = begun("new", 1)
    (of_old, said_old), (of_new, said_new) = old.communicate(timeout=60), new.communicate(timeout=60)
    assert old.returncode == 0 and new.returncode == 0, said_old + said_new
    assert f"process {new.pid}, " in of_old.splitlines()[-1] and "another machine" in said_old
    assert of_new.endswith("taken over: \n") and "fetched data" in said_new
    last = int(of_new.splitlines()[-2])
    after = Run(tmp_path / "after")
    Mirror(url, after, NAME).fetch()
    (found,) = after.checkpoints.iterdir()
    assert int(found.name[5:]) >= last  # the older one may have got further before it was told


KILLING = """
    import json, os, pathlib, shutil, sys, threading
    from mirrored_runs import NAME, contents, made_run, mirrored, offered
    from tunesmith.runs import Run, checkpoint_folders
    from tunesmith.training.mirror import Mirror
    from tunesmith.training.saved import is_whole

    CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "remove", "link", "open")
    os.fsync = lambda descriptor: None  # no power is cut here
    place = pathlib.Path(sys.argv[1])
    mirrored(str(place / "there"), place / "run", 2, 4, best=2)

    def kill_at(point, thread=""):
        done = 0
        def watched(call):
            def change(*args, **kwargs):
                nonlocal done
                done += not thread or threading.current_thread().name == thread
                if done == point:
                    os.kill(os.getpid(), 9)
                return call(*args, **kwargs)
            return change
        for name in CHANGES:
            setattr(os, name, watched(getattr(os, name)))

    def each_point(once):
        found, point = [], 0
        while not found or found[-1]["status"]:
            point += 1
            found.append(once(point))
        print(json.dumps(found))
"""
SENDING = """
    def once(point):
        here = place / str(point)
        shutil.copytree(place / "there", here / "there")
        shutil.copytree(place / "run", here / "run")
        pid = os.fork()  # before any thread is alive; importing once, not once for each point
        if pid == 0:
            run = Run(here / "run")
            mirror = Mirror(str(here / "there"), run, NAME)
            mirror.claim()
            kill_at(point, "tunesmith-mirror")
            mirror.start()
            offered(mirror, run, 6, keep=["step-000006"])
            os._exit(not mirror.close(20))
        _, status = os.waitpid(pid, 0)
        new = Run(here / "new")
        Mirror(str(here / "there"), new, NAME).fetch()
        found = checkpoint_folders(new.checkpoints)
        lines = len(new.metrics.read_text().splitlines())
        left = sorted(path.name for path in (here / "there" / NAME / "checkpoints").iterdir())
        return {"status": status, "newest": found[-1].name, "whole": all(map(is_whole, found)), "lines": lines,
                "left": left, "recipe": new.recipe.is_file(), "data": new.data.is_dir()}

    each_point(once)
"""
FETCHING = """
    def once(point):
        run = Run(place / f"{point}")
        mirror = Mirror(str(place / "there"), run, NAME)
        pid = os.fork()
        if pid == 0:
            kill_at(point)
            mirror.fetch()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        run.refuse_strangers()
        began = run.recipe.exists()
        run.sweep()
        lacked = bool(mirror.fetch())
        same = {name: (run.path / name).read_bytes() == content for name, content in wanted.items()}
        return {"status": status, "began": began, "lacked": lacked, "same": all(same.values()),
                "names": sorted(contents(run.path)) == sorted(wanted)}

    wanted = contents(place / "run")
    each_point(once)
"""


def each_point(script, folder):
    """What the script found after a kill at each of its writes."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(KILLING) + textwrap.dedent(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=WITH_TESTS)
    assert done.returncode == 0, done.stderr
    *killed, last = json.loads(done.stdout)
    assert len(killed) > 20 and all(one["status"] == 9 for one in killed) and last["status"] == 0
    return killed, last


def test_killed_at_each_write_of_a_fetch_the_next_one_does_the_rest(tmp_path):
    killed, last = each_point(FETCHING, tmp_path)
    assert all(one["same"] and one["names"] for one in [*killed, last])
    assert not any(one["began"] and one["lacked"] for one in killed), "a recipe says that nothing is lacking"
    assert killed[0]["lacked"] and not last["lacked"]


def test_killed_at_each_write_the_mirror_has_a_whole_one(tmp_path):
    killed, last = each_point(SENDING, tmp_path)
    newest = [one["newest"] for one in killed]
    assert newest == sorted(newest) and {*newest} == {"step-000004", "step-000006"}, "the older one, then the newer"
    for one in [*killed, last]:
        assert one["whole"] and one["recipe"] and one["data"] and one["lines"] == int(one["newest"][5:]), one
    assert last["left"] == ["step-000006"]
    halves = {tuple(one["left"]) for one in killed}
    assert {("step-000002", "step-000004"), ("step-000002", "step-000004", "step-000006")} <= halves


FULL = """
    import pathlib, sys, time
    from mirrored_runs import NAME, made_run, offered, wait_for
    from tunesmith.runs import Run
    from tunesmith.training import mirror as module
    from tunesmith.training.mirror import Mirror

    module.FIRST_WAIT_S, module.MOST_WAIT_S = 0.01, 0.05
    drive, place = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    with open(drive / "filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    run = made_run(place / "run")
    mirror = Mirror(str(drive / "there"), run, NAME)
    mirror.claim()
    mirror.start()
    began = time.monotonic()
    for step in (2, 4, 6):
        offered(mirror, run, step, keep=[f"step-{step:06d}"])
    assert time.monotonic() - began < 2
    wait_for(lambda: mirror._failing)
    print("failed:", mirror._failing)
    (drive / "filler").unlink()
    assert mirror.close(20)
    new = Run(place / "new")
    print(Mirror(str(drive / "there"), new, NAME).fetch())
"""


def test_a_drive_that_is_full_and_then_has_room(tmp_path):
    """A file system of 200 KB, in a mount namespace of its own, which needs no root."""
    drive, script = tmp_path / "drive", tmp_path / "full.py"
    drive.mkdir()
    script.write_text(textwrap.dedent(FULL))
    mounted = f"mount -t tmpfs -o size=200k tmpfs {drive} && {sys.executable} -W error {script} {drive} {tmp_path}"
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mounted], capture_output=True, text=True, check=False,
        env=WITH_TESTS,
    )  # fmt: skip
    if "not permitted" in done.stderr or "denied" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 0, done.stderr
    assert "failed: No space left on device" in done.stdout and "step-000006" in done.stdout
    assert done.stderr.count("takes nothing (No space left on device") == 1 and done.stderr.count("caught up") == 1


def test_a_drive_that_goes_away_is_not_written_to_where_it_was(tmp_path, capsys):
    drive = tmp_path / "media" / "drive"
    drive.mkdir(parents=True)
    run = made_run(tmp_path / "run")
    mirror = Mirror(str(drive / "there"), run, NAME)
    mirror.claim()
    mirror.start()
    offered(mirror, run, 2)
    wait_for(lambda: mirror._done)
    drive.rename(elsewhere := tmp_path / "unplugged")
    offered(mirror, run, 4)
    wait_for(lambda: "is its drive mounted?" in mirror._failing)
    assert not drive.exists()
    elsewhere.rename(drive)
    assert mirror.close(20) and (drive / "there" / NAME / "checkpoints" / "step-000004" / DIGESTS).is_file()
    emptied(drive / "there")  # somebody tidies up while the run goes on
    again = Mirror(str(drive / "there"), run, NAME)
    again.claim()
    again.start()
    wait_for(lambda: again._began)
    emptied(drive / "there")
    offered(again, run, 6)
    assert again.close(20)
    assert "takes nothing (owner.json was gone, so all is sent anew)" in capsys.readouterr().err
    assert len(Mirror(str(drive / "there"), Run(tmp_path / "new"), NAME).fetch()) == 3


def test_on_the_hub_what_is_put_is_one_commit_and_another_between_is_seen(hub, tmp_path, capsys):
    run = mirrored("hf://datasets/me/mine/runs", tmp_path / "run", 2)
    repo = hub.repos["datasets/me/mine"]
    assert repo.private and len(repo.commits) == 1 + 3, "owner, recipe and rows, checkpoint"
    assert {name.split("/")[0] for name in repo.files} == {".gitattributes", "runs"}
    store, first = HubFolder("hf://datasets/me/mine/runs", NAME), True

    def another():
        nonlocal first
        if first:
            repo.commit(repo.files | {"other": b"1"})
        first = False

    with pytest.raises(OSError, match="A commit has happened since"):
        store.put({"a": b"1", "b": b"2"}, "b", another, set())
    assert "a" not in store.names()
    store.put({"a": b"1", "b": b"2"}, "b", another, set())
    assert {"a", "b"} <= {*store.names()}
    store.delete(["a", "checkpoints/step-000002"], DIGESTS)
    assert not store.names("checkpoints") and len(repo.commits) == 1 + 3 + 1 + 1 + 1
    repo.private = False
    Mirror("hf://datasets/me/mine/runs", run, NAME).fetch()
    assert "hf://datasets/me/mine/runs/small is public: anybody can read the rows" in capsys.readouterr().err


def test_on_the_hub_a_refusal_names_no_token(hub, tmp_path, monkeypatch, capsys):
    said = {"X-Error-Message": f"no right for {TOKEN}"}
    hub.refusals = {"datasets/me/mine": [(403, said, "")] * 9999}
    with pytest.raises(ResourceError, match="cannot be read") as refused:
        Mirror("hf://datasets/me/mine", Run(tmp_path / "new"), NAME).fetch()
    assert "no right for ***" in str(refused.value) and TOKEN not in str(refused.value)
    run = made_run(tmp_path / "run")
    mirror = Mirror("hf://datasets/me/mine", run, NAME)
    mirror.claim()
    mirror.start()
    assert not mirror.close(0.3)
    told = capsys.readouterr().err
    assert TOKEN not in told and "takes nothing" in told and "***" in told
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ResourceError, match="a mirror on the Hub needs a token, and there is none"):
        Mirror("hf://datasets/me/mine", Run(tmp_path / "new"), NAME).fetch()


def test_between_two_puts_the_hub_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(FileStore, "pause_s", 60.0)
    run = made_run(tmp_path / "run")
    mirror = Mirror("failing://there", run, NAME)
    mirror.claim()
    mirror.start()
    wait_for(lambda: mirror._began and not mirror._busy_since_s)
    for step in (2, 4):
        offered(mirror, run, step)
    time.sleep(0.05)
    assert not any("step-" in path for path in Failing.log)
    assert mirror.close(20) and not any("step-000002" in path for path in Failing.log), "and not at the end"


@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("gs://bucket/x", ResourceError, "pip install 'tunesmith[gcs]'"),
        ("nix://bucket/x", RecipeError, "Protocol not known: nix"),
        ("https://me:secret@example.com/x", RecipeError, "nothing can be written to https://***@example.com/x/small"),
        ("hf://datasets/me", RecipeError, "names no repository of the Hub"),
        ("hf://me", RecipeError, "write hf://datasets/USER/NAME"),
    ],
)
def test_what_can_be_no_mirror_is_refused_by_name(url, error, told, tmp_path):
    with pytest.raises(error) as refused:
        Mirror(url, Run(tmp_path / "run"), NAME)
    assert told in str(refused.value) and "secret" not in str(refused.value)


def test_no_message_holds_a_credential(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretverysecret")
    text = "PUT https://u:pw@host/x?X-Amz-Signature=abc of hf_abcdefghijkl with verysecretverysecret"
    assert said(text) == "PUT https://***@host/x?*** of *** with ***"
    assert reason(OSError(13, "Permission denied", "/x")) == "Permission denied (/x)"
    assert reason(ValueError("403 Forbidden\n\nno   right\nmore")) == "403 Forbidden; no right"
    assert reason(TimeoutError()) == "TimeoutError" and reason(ResourceError("what", fix="fix")) == "what"


def test_neither_module_needs_torch():
    code = "import sys, tunesmith.training.mirror; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
