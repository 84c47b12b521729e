"""A run whose machine is taken away goes on elsewhere, from its mirror; a fork begins with another run's adapter."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from forked import completed, forked
from mirrored_runs import contents
from small_project import write_project
from training_runs import losses, same

from tunesmith.api import run as run_all
from tunesmith.errors import ResourceError, ResumeError
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import Run, checkpoint_folders
from tunesmith.training import loop
from tunesmith.training.mirror import Mirror

TRAIN = (
    "{tokens_per_step: 400, max_length: 200, epochs: 3, lr: 1e-2, precision: fp32, evaluate_every: 2 steps, "
    "early_stopping: null, micro_batch_tokens: 200}"
)
EACH_STEP = "{every: 1 steps, overhead: null, mirror: drive}"


@pytest.fixture
def recipe(tiny_base, tmp_path):
    """A recipe with a mirror beside it."""
    return write_project(tmp_path, tiny_base, train=TRAIN, checkpoint=EACH_STEP, lora="{rank: 4, dropout: 0.1}")


@pytest.fixture(scope="module")
def whole(tiny_base, tmp_path_factory):
    """The run that stays on one machine, without a mirror."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_project(folder, tiny_base, train=TRAIN, lora="{rank: 4, dropout: 0.1}")
    assert completed("train", recipe, "--run-dir", folder / "run").returncode == 5  # no rows yet
    assert completed("prepare", recipe, "--run-dir", folder / "run").returncode == 0
    assert completed("train", recipe, "--run-dir", folder / "run").returncode == 0
    return Run(folder / "run")


def slow_steps(seconds):
    real = loop.update

    def update(*args):
        time.sleep(float(seconds))
        return real(*args)

    loop.update = update


def mirrored_steps(drive):
    return sorted(path.parent.name for path in (drive / "small" / "checkpoints").glob("step-*/digests.json"))


def test_killed_on_one_machine_it_goes_on_on_an_empty_one(recipe, whole, tmp_path):
    drive, first, second = tmp_path / "drive", tmp_path / "first" / "run", tmp_path / "second" / "run"
    assert completed("prepare", recipe, "--run-dir", first).returncode == 0
    arguments = ("train", recipe, "--run-dir", first)
    with forked(tmp_path / "output", *arguments, before=slow_steps, given=(0.1,)) as child:
        while len(mirrored_steps(drive)) < 3:
            assert child.process.is_alive(), child.stderr
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -9
    there = mirrored_steps(drive)
    shutil.rmtree(first)
    (tmp_path / "rows.jsonl").unlink()  # the other machine has no data files either
    done = completed("train", recipe, "--run-dir", second)
    assert done.returncode == 0 and "mirror: fetched" in done.stderr and f"going on from {there[-1]}" in done.stderr
    same(Run(second), whole)
    record = read_record(Run(second).adapter)
    assert record.counts["interruptions"] == 1 and mirrored_steps(drive)[-1] == f"step-{record.counts['steps']:06d}"
    again = completed("train", recipe, "--run-dir", tmp_path / "third" / "run")  # training had ended there
    assert again.returncode == 0 and not Path(tmp_path / "third" / "run" / ".damaged").exists()
    same(Run(tmp_path / "third" / "run"), whole)


def test_a_machine_thought_dead_stops_where_another_went_on(recipe, whole, tmp_path):
    first, second = tmp_path / "first" / "run", tmp_path / "second" / "run"
    assert completed("prepare", recipe, "--run-dir", first).returncode == 0
    arguments = ("train", recipe, "--run-dir", first)
    with forked(tmp_path / "output", *arguments, before=slow_steps, given=(0.25,)) as child:
        while len(mirrored_steps(tmp_path / "drive")) < 2:
            assert child.process.is_alive(), child.stderr
            time.sleep(0.01)
        done = completed("train", recipe, "--run-dir", second)
        assert done.returncode == 0, done.stderr
        assert child.wait() == 5, child.stderr
        assert f"another machine goes on with this run ({os.uname().nodename}, process" in child.stderr
        assert "is saved here" in child.stderr and "fix: let it" in child.stderr
    same(Run(second), whole)
    assert checkpoint_folders(Run(first).checkpoints) and not Run(first).adapter.exists()


def test_a_mirror_that_cannot_be_reached_begins_nothing_and_stops_nothing(recipe, whole, tmp_path):
    (tmp_path / "drive").write_text("a file")
    new = completed("run", recipe, "--run-dir", tmp_path / "new")
    assert new.returncode == 7 and "--set checkpoint.mirror=null" in new.stderr
    assert not Run(tmp_path / "new").data.exists()
    begun = tmp_path / "begun"
    alone = ("--run-dir", begun, "--set", "checkpoint.mirror=null")
    assert completed("prepare", recipe, *alone).returncode == 0
    refused = completed("train", recipe, "--run-dir", begun)
    assert refused.returncode == 7 and "--set checkpoint.mirror=null" in refused.stderr
    assert completed("train", recipe, *alone, "--set", "train.stop_after=1 steps").returncode == 0
    done = completed("train", recipe, "--run-dir", begun)
    assert done.returncode == 0 and "is not in" in done.stderr, done.stderr
    same(Run(begun), whole)


def test_begun_anew_the_old_checkpoints_in_the_mirror_are_gone_too(recipe, whole, tmp_path, monkeypatch):
    run, drive = tmp_path / "run", tmp_path / "drive"
    assert completed("prepare", recipe, "--run-dir", run).returncode == 0
    assert completed("train", recipe, "--run-dir", run, "--set", "train.stop_after=4 steps").returncode == 0
    assert mirrored_steps(drive)[-1] == "step-000004"
    asked = completed("train", recipe, "--run-dir", run, "--fresh")
    assert asked.returncode == 5 and f"and the checkpoints in {drive}" in asked.stderr
    done = completed("train", recipe, "--run-dir", run, "--fresh", "--yes", "--set", "train.stop_after=2 steps")
    assert done.returncode == 0 and mirrored_steps(drive) == ["step-000001", "step-000002"], done.stderr
    assert completed("train", recipe, "--run-dir", tmp_path / "other").returncode == 0
    same(Run(tmp_path / "other"), whole)


def test_a_fork_begins_with_the_adapter_and_says_whose_it_was(tiny_base, whole, tmp_path):
    recipe = write_project(tmp_path, tiny_base, train=TRAIN, lora="{rank: 4}")
    run = Run(tmp_path / "run")
    how = ("--run-dir", run.path, "--set", "train.lr=1e-3", "--fork", whole.path)
    assert completed("prepare", recipe, "--run-dir", run.path).returncode == 0
    paused = completed("train", recipe, *how, "--set", "train.stop_after=3 steps")
    assert paused.returncode == 0 and "fork: begins with the adapter of" in paused.stderr, paused.stderr
    assert losses(run)[0][2] < losses(whole)[0][2] - 0.05  # at step 0 it knows what the other has learned
    done = completed("train", recipe, *how)
    assert done.returncode == 0 and "going on from step-000003" in done.stderr, done.stderr
    counts = read_record(run.adapter).counts
    theirs = read_record(whole.adapter).counts
    assert counts["ancestor"] == {
        "run": str(whole.path), "step": theirs["best_step"], "held_out_loss": theirs["held_out_loss"],
        "held_out_loss_here": theirs["held_out_loss"],  # on the same rows
    }  # fmt: skip
    assert losses(run)[0][2] == theirs["held_out_loss"] > counts["held_out_loss"]
    for name in ("base_held_out_loss", "base_bits_per_byte"):
        assert counts[name] == theirs[name]
    assert "ancestor/adapter.safetensors" in json.loads(run.manifest.read_text())["files"]
    assert completed("train", recipe, "--run-dir", run.path, "--set", "train.lr=1e-3").stderr.count("already done") == 1


def test_a_fork_that_cannot_be_is_refused_and_changes_nothing(tiny_base, whole, tmp_path):
    recipe = write_project(tmp_path, tiny_base, train=TRAIN, lora="{rank: 4}")
    for changes, source, said in (
        (["lora.rank=8"], whole.path, r"of another shape cannot be gone on with:\n  - lora.rank: 4 -> 8"),
        ([], tmp_path / "none", "is no run folder"),
        ([], tmp_path / "run", "is the run itself"),
    ):
        with pytest.raises(ResumeError, match=said):
            run_all(recipe, tmp_path / "run", changes, fork=source)
        assert not (tmp_path / "run").exists()
    done = completed("prepare", recipe, "--run-dir", tmp_path / "begun")
    assert done.returncode == 0
    train = ("train", recipe, "--run-dir", tmp_path / "begun")
    assert completed(*train, "--set", "train.stop_after=1 steps").returncode == 0
    with pytest.raises(ResumeError, match="has begun already, without --fork"):
        run_all(recipe, tmp_path / "begun", fork=whole.path)
    other = completed(*train, "--set", "train.lr=5e-3")
    assert (
        other.returncode == 5
        and "--fork" in other.stderr
        and "--fresh" in other.stderr
        and "set it back" in other.stderr
    )


def test_another_run_of_the_same_name_gets_and_loses_nothing_in_the_mirror(recipe, whole, tmp_path):
    old, new, drive = tmp_path / "old", tmp_path / "new", tmp_path / "drive"
    assert completed("prepare", recipe, "--run-dir", old).returncode == 0
    assert completed("train", recipe, "--run-dir", old, "--set", "train.stop_after=3 steps").returncode == 0
    there = {path: path.read_bytes() for path in sorted((drive / "small").rglob("*")) if path.is_file()}
    for how in (
        ["--set", "train.lr=5e-3"], ["--set", "train.lr=5e-3", "--fresh", "--yes"], ["--fork", old],
        ["--set", "data.held_out=0.4"],
    ):  # fmt: skip
        done = completed("run", recipe, "--run-dir", new, *how)
        assert done.returncode == 5 and f"the mirror {drive}/small holds another run of this name" in done.stderr, how
        assert "another name, or another checkpoint.mirror" in done.stderr
        assert not Run(new).data.exists() and not Run(new).checkpoints.exists() and not Run(new).recipe.exists()
        assert there == {path: path.read_bytes() for path in sorted((drive / "small").rglob("*")) if path.is_file()}
        assert not new.exists()
    elsewhere = ["--fork", old, "--set", f"checkpoint.mirror={tmp_path / 'other'}"]
    assert completed("prepare", recipe, "--run-dir", new, *elsewhere[2:]).returncode == 0
    done = completed("train", recipe, "--run-dir", new, *elsewhere)
    assert done.returncode == 0, done.stderr
    assert completed("train", recipe, "--run-dir", old).returncode == 0
    same(Run(old), whole)
    shutil.rmtree(old)
    # a new machine, without that run
    third = completed("train", recipe, "--run-dir", tmp_path / "third", *elsewhere)
    assert third.returncode == 0 and "mirror: fetched" in third.stderr, third.stderr
    same(Run(tmp_path / "third"), Run(new))


def test_a_run_of_the_same_settings_with_other_rows_gets_and_loses_nothing_in_the_mirror(recipe, tmp_path):
    old, new, drive = tmp_path / "old", Run(tmp_path / "new"), tmp_path / "drive"
    paused = ("--set", "train.stop_after=2 steps")
    assert completed("prepare", recipe, "--run-dir", old).returncode == 0
    assert completed("train", recipe, "--run-dir", old, *paused).returncode == 0
    rows = recipe.parent / "rows.jsonl"
    rows.write_text("".join(sorted(rows.read_text().splitlines(keepends=True))[1:]))
    alone = ("--run-dir", new.path, "--set", "checkpoint.mirror=null")
    assert completed("prepare", recipe, *alone).returncode == 0
    for trained in (False, True):
        if trained:
            assert completed("train", recipe, *alone, *paused).returncode == 0
        here, there = (contents(folder) for folder in (new.path, drive))
        done = completed("train", recipe, "--run-dir", new.path)
        assert done.returncode == 5 and f"the mirror {drive}/small holds another run of this name" in done.stderr
        assert "data" in done.stderr and (here, there) == (contents(new.path), contents(drive))


def test_a_fork_goes_on_on_a_new_machine_though_what_it_began_with_has_got_on(tiny_base, whole, tmp_path):
    recipe = write_project(tmp_path, tiny_base, train=TRAIN, checkpoint=EACH_STEP, lora="{rank: 4}")
    source = Run(tmp_path / "source")
    plain = ("--set", "checkpoint.mirror=null", "--set", "name=source", "--run-dir", source.path)
    assert completed("prepare", recipe, *plain).returncode == 0
    assert completed("train", recipe, *plain, "--set", "train.stop_after=3 steps").returncode == 0
    forked_at = ("--fork", source.path, "--set", "train.lr=1e-3")
    assert completed("prepare", recipe, "--run-dir", tmp_path / "a").returncode == 0
    done = completed("train", recipe, "--run-dir", tmp_path / "a", *forked_at, "--set", "train.stop_after=2 steps")
    assert done.returncode == 0, done.stderr
    assert completed("train", recipe, *plain, "--set", "train.stop_after=3 steps").returncode == 0
    done = completed("train", recipe, "--run-dir", tmp_path / "b", *forked_at)
    assert done.returncode == 0 and "going on from step-000002" in done.stderr, done.stderr


def test_a_fork_killed_as_its_recipe_alone_is_in_the_mirror_goes_on(tiny_base, whole, tmp_path):
    recipe = write_project(tmp_path, tiny_base, train=TRAIN, checkpoint=EACH_STEP, lora="{rank: 4}")
    how = ("--run-dir", tmp_path / "run", "--fork", whole.path, "--set", "train.stop_after=1 steps")
    assert completed("prepare", recipe, *how[:2]).returncode == 0
    assert completed("train", recipe, *how).returncode == 0
    for folder in ("ancestor", "checkpoints", "data"):
        shutil.rmtree(tmp_path / "drive" / "small" / folder)
    done = completed("train", recipe, *how)
    assert done.returncode == 0 and (tmp_path / "drive" / "small" / "ancestor" / "digests.json").exists(), done.stderr


def test_a_fork_is_not_trained_from_what_is_damaged(tiny_base, whole, tmp_path):
    recipe = write_project(tmp_path, tiny_base, train=TRAIN, lora="{rank: 4}")
    run = Run(tmp_path / "run")
    assert completed("prepare", recipe, "--run-dir", run.path).returncode == 0
    how = ("--run-dir", run.path, "--fork", whole.path, "--set", "train.stop_after=1 steps")
    assert completed("train", recipe, *how).returncode == 0
    file = run.ancestor / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = completed("train", recipe, *how)
    assert done.returncode == 5 and f"{file} is not as it was written, so nothing is trained from it" in done.stderr


def test_a_mirror_that_begins_late_gets_the_best_checkpoint_too(recipe, whole, tmp_path):
    run = Run(tmp_path / "run")
    alone = ("--run-dir", run.path, "--set", "checkpoint.mirror=null")
    assert completed("prepare", recipe, *alone).returncode == 0
    assert completed("train", recipe, *alone, "--set", "train.stop_after=5 steps").returncode == 0
    best = json.loads((run.checkpoints / "step-000005" / "state.json").read_text())["progress"]["best_step"]
    assert 0 < best < 5
    late = ("train", recipe, "--run-dir", run.path, "--set", "train.stop_after=1 steps")
    assert completed(*late, "--set", "checkpoint.mirror=drive").returncode == 0
    assert f"step-{best:06d}" in mirrored_steps(tmp_path / "drive")
    assert completed("train", recipe, "--run-dir", tmp_path / "other").returncode == 0
    same(Run(tmp_path / "other"), whole)


def slow_close():
    real = Mirror.close

    def close(self, within_s):
        print("waiting for the mirror", file=sys.stderr, flush=True)
        time.sleep(1.5)
        return real(self, within_s)

    Mirror.close = close


def test_a_signal_while_the_mirror_is_waited_for_is_not_lost(recipe, tmp_path):
    run = tmp_path / "run"
    with forked(tmp_path / "output", "run", recipe, "--run-dir", run, before=slow_close) as child:
        child.wait_until_said("waiting for the mirror")
        child.send_signal(signal.SIGUSR1)
        assert child.wait() == 138 and "merge" not in child.stderr, child.stderr
    assert completed("train", recipe, "--run-dir", run).returncode == 0


def test_a_mirror_that_no_package_here_reads_is_said_before_anything_is_done(recipe, tmp_path, monkeypatch):
    with pytest.raises(ResourceError, match=r"gcsfs"):
        run_all(recipe, tmp_path / "run", ["checkpoint.mirror=gs://bucket/place"])
    assert not (tmp_path / "run").exists()
    assert read_recipe(recipe).checkpoint.mirror == str(tmp_path / "drive")
