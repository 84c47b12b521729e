"""Killed, or cut off from power, at each single point of a write: the next start finds what is whole, old or new."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tunesmith.errors import ResourceError
from tunesmith.files import FINISHED, commit_folder, finish, finished, write_file
from tunesmith.lock import locked
from tunesmith.record import read_record
from tunesmith.runs import Run, commit_stage, write_manifest
from tunesmith.training.metrics import Metrics, plot_losses

EACH_POINT = """
    import json, os, pathlib, shutil, sys
    from tunesmith.files import digest_folder
    from tunesmith.lock import locked
    from tunesmith.record import read_record
    from tunesmith.runs import Run, commit_stage

    CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "open")

    def work(text):
        def write(draft):
            for name in "abc":
                (draft / name).write_text(text)
            return {"text": text}
        return write

    def kill_at(point):
        done = 0
        def watched(call):
            def change(*args, **kwargs):
                nonlocal done
                done += 1
                if done == point:
                    os.kill(os.getpid(), 9)
                return call(*args, **kwargs)
            return change
        for name in CHANGES:
            setattr(os, name, watched(getattr(os, name)))

    def once(place, point):
        run = Run(place / str(point))
        commit_stage(run.model, {"text": "old"}, {}, work("old"))
        pid = os.fork()  # before any thread is started; importing once, not once for each point
        if pid == 0:
            kill_at(point)
            commit_stage(run.model, {"text": "new"}, {}, work("new"))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        left = sorted(path.name for path in run.path.iterdir())
        with locked(run):
            pass
        record = read_record(run.model)
        whole = record is not None and record.outputs == digest_folder(run.model) and sorted(
            path.name for path in run.model.iterdir()) == ["a", "b", "c", "record.json"]
        texts = {(run.model / name).read_text() for name in "abc"}
        after = sorted(path.name for path in run.path.iterdir())
        return {"status": status, "left": left, "after": after, "whole": whole, "texts": sorted(texts)}

    found, point = [], 0
    while not found or found[-1]["status"]:
        point += 1
        found.append(once(pathlib.Path(sys.argv[1]), point))
    print(json.dumps(found))
"""


def test_killed_at_each_point_of_a_replace_the_next_start_has_one_whole_folder(tmp_path):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(EACH_POINT), str(tmp_path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    *killed, last = found
    assert len(killed) > 20 and all(one["status"] == 9 for one in killed) and last["status"] == 0
    for one in found:
        assert one["whole"] and one["after"] == [".lock", "model"], one
    texts = [one["texts"] for one in found]
    assert texts == sorted(texts, reverse=True), "old first, from some point on new"
    assert texts[0] == ["old"] and texts[-2:] == [["new"], ["new"]]
    moments = {tuple(one["left"]) for one in killed}
    assert {(".model.draft", ".model.old"), (".model.old", "model"), (".model.gone", "model")} <= moments
    between = [one["texts"] for one in killed if one["left"] == [".model.draft", ".model.old"]]
    assert between and all(texts == ["old"] for texts in between)


class Traced:
    """What a run of some code flushed and named, in order, as (what, path below a folder)."""

    def __init__(self, monkeypatch, folder):
        self.events, self.folder = [], folder
        fsync, rename = os.fsync, os.rename

        def noted_fsync(descriptor):
            self.note("flush", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def noted_rename(old, new, **kind):
            rename(old, new, **kind)
            self.note(f"name {Path(old).name}", new)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "rename", noted_rename)

    def note(self, what, path):
        self.events.append((what, str(Path(path).relative_to(self.folder))))


def test_each_file_is_flushed_before_its_folder_is_named_and_the_name_after_it(tmp_path, monkeypatch):
    def write(draft):
        (draft / "sub").mkdir()
        (draft / "sub" / "a").write_text("a")
        (draft / "b").write_text("b")

    traced = Traced(monkeypatch, tmp_path)
    commit_folder(tmp_path / "new" / "runs" / "data", write)
    *before, named, after = traced.events
    assert named == ("name .data.draft", "new/runs/data") and after == ("flush", "new/runs")
    parents, rest = before[:3], before[3:]
    assert parents == [("flush", "."), ("flush", "new"), ("flush", "new/runs")]  # names of folders that were made
    draft = "new/runs/.data.draft"
    assert sorted(rest) == sorted(("flush", path) for path in (draft, f"{draft}/b", f"{draft}/sub", f"{draft}/sub/a"))
    traced.events.clear()
    commit_folder(tmp_path / "new" / "runs" / "data", write, lambda _: None)
    names = [event for event in traced.events if event[0] != "flush"]
    assert names[:2] == [("name data", "new/runs/.data.old"), ("name .data.draft", "new/runs/data")]
    at = traced.events.index(names[1])
    assert traced.events[at + 1] == ("flush", "new/runs") and names[2][1] == "new/runs/.data.gone"  # deleted last
    traced.events.clear()
    write_file(tmp_path / "other" / "a.json", "text")
    assert traced.events == [
        ("flush", "."), ("flush", "other/.a.json.draft"), ("name .a.json.draft", "other/a.json"), ("flush", "other"),
    ]  # fmt: skip
    traced.events.clear()
    Metrics(tmp_path / "metrics.jsonl").flush()
    Metrics(tmp_path / "metrics.jsonl").append({"step": 1})
    Metrics(tmp_path / "metrics.jsonl").flush()
    assert traced.events == [("flush", "metrics.jsonl")]


def test_finished_files_of_a_draft_outlive_an_interruption_and_are_used_once(tmp_path):
    run, written = Run(tmp_path), []

    def work(stop):
        def write(draft):
            for name in ("one", "two"):
                if name not in finished(draft):
                    (draft / name).write_text(name)
                    written.append(name)
                    if stop == name:
                        raise KeyboardInterrupt
                    finish(draft, name, {"length": len(name)})
            return {name: finished(draft)[name]["facts"] for name in ("one", "two")}

        return write

    with pytest.raises(KeyboardInterrupt):
        commit_stage(run.gguf, {"a": 1}, {}, work("two"))
    draft = tmp_path / ".gguf.draft"
    assert sorted(path.name for path in draft.iterdir()) == [FINISHED, "one"]  # the half one is gone
    with locked(run):  # a start sweeps, and spares it
        assert (draft / "one").exists() and not run.gguf.exists()
    record, done = commit_stage(run.gguf, {"a": 1}, {}, work(None))
    assert done and written == ["one", "two", "two"] and record.counts == {"one": {"length": 3}, "two": {"length": 3}}
    assert sorted(path.name for path in run.gguf.iterdir()) == ["one", "record.json", "two"]
    assert set(record.outputs) == {"one", "two"} and read_record(run.gguf) == record and not draft.exists()

    written.clear()
    with pytest.raises(KeyboardInterrupt):
        commit_stage(run.gguf, {"a": 2}, {}, work("two"))
    commit_stage(run.gguf, {"a": 3}, {}, work(None))
    assert written == ["one", "two", "one", "two"], "a draft of other settings was used"

    written.clear()
    with pytest.raises(KeyboardInterrupt):
        commit_stage(run.gguf, {"a": 4}, {}, work("two"))
    (draft / "one").write_text("onX")
    (draft / "stray").write_text("x")
    commit_stage(run.gguf, {"a": 4}, {}, work(None))
    assert written == ["one", "two", "one", "two"], "a file with other bytes was used"
    assert not (run.gguf / "stray").exists() and (run.gguf / "one").read_text() == "one"


FULL = """
    import json, pathlib, sys
    from tunesmith.errors import ResourceError
    from tunesmith.lock import locked
    from tunesmith.recipe import Recipe
    from tunesmith.runs import Run, write_manifest
    from tunesmith.training.metrics import Metrics, plot_losses

    place = pathlib.Path(sys.argv[1])
    run, recipe = Run(place / "run"), Recipe(name="a", base="b", data={"sources": [{"path": "rows"}]})
    run.keep_recipe(recipe)
    Metrics(run.metrics).append({"step": 1, "loss": 1.0})
    plot_losses(Metrics(run.metrics), run.loss_plot)
    write_manifest(run)
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    with open(place / "filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass

    def takes_lock(run):
        with locked(run):
            raise AssertionError("taken")

    def append():
        lines, size = Metrics(run.metrics), -1
        while run.metrics.stat().st_size != size:  # until the disk takes no more, which ends nothing yet
            size = run.metrics.stat().st_size
            lines.append({"step": 2, "pad": "x" * 4096})
        assert run.metrics.read_bytes()[-2:] == bytes([125, 10]), "half a line was left"
        lines.flush()

    tried = {
        "recipe.yaml": lambda: run.keep_recipe(recipe.model_copy(update={"seed": 1})),
        "metrics.jsonl": append,
        "loss.png": lambda: plot_losses(Metrics(run.metrics), run.loss_plot),
        "manifest.json": lambda: write_manifest(run),
        ".lock": lambda: takes_lock(Run(place / "other")),
    }
    for name, write in tried.items():
        try:
            write()
        except ResourceError as error:
            print(json.dumps([name, error.what]))
    kept = {path: path.read_bytes() for path in run.path.iterdir()}
    assert all(kept[path].startswith(content) for path, content in before.items()), "something was lost"
    assert set(kept) == set(before), "a draft was left on a full disk"
"""


def test_a_full_disk_is_named_at_every_small_write_and_nothing_is_lost(tmp_path):
    """On a file system of one megabyte, in a mount namespace of its own, which needs no root."""
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(FULL))
    place = tmp_path / "place"
    place.mkdir()
    mounted = f"mount -t tmpfs -o size=1m,nr_inodes=20 tmpfs {place} && {sys.executable} {script} {place}"
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mounted], capture_output=True, text=True, check=False
    )
    if "not permitted" in done.stderr or "denied" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 0, done.stderr
    said = dict(map(json.loads, done.stdout.splitlines()))
    assert list(said) == ["recipe.yaml", "metrics.jsonl", "loss.png", "manifest.json", ".lock"]
    assert all(f"the disk is full: {name}" in what for name, what in said.items()), said


def test_the_same_from_dev_full_where_nothing_may_be_mounted(tmp_path):
    """/dev/full gives the kernel's own "no space left"; a draft that is a link to it cannot be written."""
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.metrics.symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=r"the disk is full: metrics\.jsonl"):
        lines = Metrics(run.metrics)
        lines.append({"step": 1})
        lines.flush()
    run.metrics.unlink()
    for path, write in (
        (run.loss_plot, lambda: plot_losses(Metrics(run.metrics), run.loss_plot)),
        (run.manifest, lambda: write_manifest(run)),
        (run.recipe, lambda: write_file(run.recipe, "name: a")),
    ):
        draft = path.with_name(f".{path.name}.draft")
        draft.symlink_to("/dev/full")
        with pytest.raises(ResourceError, match="the disk is full"):
            write()
        draft.unlink(missing_ok=True)
    assert list(run.path.iterdir()) == []
