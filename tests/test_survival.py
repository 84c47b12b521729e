"""A run outlives signals, disks that take nothing, long pauses and other processes: by real means, each of which is
first seen to occur.
"""

import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import survival_worker
from forked import forked
from safetensors.torch import load_file, save_file
from survival_worker import AT_STEP, NO_MOUNTS, STUCK
from training_runs import RECIPE, prepare_rows, recipe_with, same

from tunesmith.errors import ResumeError
from tunesmith.files import DIGESTS, digest_folder
from tunesmith.recipe import CheckpointConfig, Keep
from tunesmith.record import read_record
from tunesmith.runs import Run, checkpoint_folders, checkpoint_name
from tunesmith.training import loop
from tunesmith.training import saver as saving
from tunesmith.training.checkpoint import make_room
from tunesmith.training.metrics import Metrics
from tunesmith.training.saved import FORMAT, bits_required, is_whole, read_state, to_keep, why_unfit
from tunesmith.training.saver import Saver
from tunesmith.training.snapshot import Snapshot
from tunesmith.training.state import Progress
from tunesmith.training.stop import Paused, StopRequested, StopWatch
from tunesmith.training.train import train
from tunesmith.weights.locate import LocatedBase


@pytest.fixture(scope="module")
def base(tiny_base):
    return LocatedBase("tiny", tiny_base, "digest", None, None)


@pytest.fixture(scope="module")
def prepared(base, tmp_path_factory):
    return prepare_rows(tmp_path_factory.mktemp("prepared") / "run", base.folder)


@pytest.fixture(scope="module")
def whole(base, prepared, tmp_path_factory):
    """The run that nothing interrupts."""
    run = Run(shutil.copytree(prepared.path, tmp_path_factory.mktemp("whole") / "run"))
    train(recipe_with(**RECIPE), run, base)
    return run


@pytest.fixture
def run(prepared, tmp_path):
    return Run(shutil.copytree(prepared.path, tmp_path / "run"))


def goes_on_equal(run, whole, base):
    train(recipe_with(**RECIPE), run, base)
    same(run, whole)


def worker(tmp_path, run, base, fault="", *more, **kind):
    return forked(tmp_path / "output", run.path, base.folder, fault, *more, of=survival_worker.main, **kind)


@pytest.mark.parametrize(("fault", "number"), [("stuck", signal.SIGTERM), ("masked", signal.SIGUSR1)])
def test_within_a_long_micro_batch_a_signal_saves_the_step_before_and_ends_in_time(
    run, whole, base, tmp_path, fault, number
):
    with worker(tmp_path, run, base, fault, "50 steps") as child:
        child.wait_until_said(STUCK)
        told = time.monotonic()
        child.send_signal(number)
        assert child.wait() == 128 + number and time.monotonic() - told < 10
        assert f"stopped within a long step, step-{AT_STEP:06d} is saved" in child.stderr
    newest = checkpoint_folders(run.checkpoints)[-1]
    assert newest.name == f"step-{AT_STEP:06d}" and is_whole(newest)
    goes_on_equal(run, whole, base)


def test_a_step_that_ends_soon_is_not_left_to_the_rescue(run, whole, base, tmp_path):
    with worker(tmp_path, run, base, "slow step", "50 steps") as child:
        child.wait_until_said(STUCK)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 143 and "train: stopped at step 4, step-000004 is saved" in child.stderr
    goes_on_equal(run, whole, base)


def test_each_look_whether_one_is_due_knows_how_long_the_next_is_off(run, base, monkeypatch):
    looks, real = [], Saver.is_due
    monkeypatch.setattr(
        Saver, "is_due", lambda self, step, ahead_s=0.0: looks.append((step, ahead_s)) or real(self, step, ahead_s)
    )
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *arguments: time.sleep(0.5) or evaluate(*arguments))
    with pytest.raises(Paused):
        train(recipe_with(**RECIPE, every="1h", stop_after="4 steps"), run, base)
    seconds = [json.loads(line)["seconds"] for line in run.metrics.read_text().splitlines() if "grad_norm" in line]
    before_measuring = next(ahead for step, ahead in looks if step == 3)
    assert 0.5 < before_measuring < 5 and looks[0] == (0, 0.0)
    assert [round(ahead, 3) for step, ahead in looks if step in (1, 2, 4)] == [*seconds[:2], seconds[3]]


def test_what_is_due_is_saved_before_measuring_which_may_take_minutes(run, whole, base, monkeypatch):
    there, real = [], loop.measure_held_out

    def measure(*arguments):
        if len(there) == 2:
            raise Killed
        there.append([path.name for path in checkpoint_folders(run.checkpoints)])
        return real(*arguments)

    monkeypatch.setattr(loop, "measure_held_out", measure)
    with pytest.raises(Killed):
        train(recipe_with(**RECIPE), run, base)
    saved = [path.name for path in checkpoint_folders(run.checkpoints)]
    assert saved[-1] == "step-000006" and read_state(run.checkpoints / saved[-1])["progress"]["evaluated_step"] == 3
    monkeypatch.undo()
    goes_on_equal(run, whole, base)


class Killed(BaseException):
    """As a kill: nothing handles it."""


def test_a_second_ctrl_c_leaves_at_once_and_nothing_is_half_there(run, whole, base, tmp_path):
    with worker(tmp_path, run, base, "slow disk", "3 steps") as child:
        child.wait_until_said(STUCK)
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        told = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.wait() == 130 and time.monotonic() - told < 0.7
        assert "interrupted again; the run goes on from what is on disk" in child.stderr
    assert [path.name for path in checkpoint_folders(run.checkpoints)] == ["step-000003"]
    goes_on_equal(run, whole, base)


def test_a_disk_that_does_not_answer_keeps_no_process_from_ending(run, whole, base, tmp_path):
    with worker(tmp_path, run, base, "slow disk", "3 steps") as child:
        child.wait_until_said(STUCK)
        child.send_signal(signal.SIGTERM)
        assert child.wait(8) == 143 and "could not be written within 1.5 s; the run goes on" in child.stderr
    goes_on_equal(run, whole, base)


def test_a_long_pause_and_a_second_process(run, whole, base, tmp_path):
    with worker(tmp_path, run, base, "slow steps", "1s") as child:
        child.wait_until_said("step 3 of")
        child.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{child.process.pid}/stat")
        while ") T " not in state.read_text():
            time.sleep(0.01)
        with worker(tmp_path / "second", run, base) as second:
            assert second.wait() == 5
            assert f"process {child.process.pid} on {os.uname().nodename} is already working" in second.stderr
        time.sleep(1.5)  # longer than the cadence
        child.send_signal(signal.SIGCONT)
        assert child.wait() == 0, child.stderr
    same(run, whole)


def test_the_lock_of_a_dead_process_is_taken_over(run, whole, base, tmp_path):
    with worker(tmp_path, run, base, "slow steps") as child:
        child.wait_until_said("step 3 of")
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -9 and run.lock.read_text().split() == [str(child.process.pid), os.uname().nodename]
    with worker(tmp_path / "second", run, base) as second:
        assert second.wait() == 0, second.stderr
    same(run, whole)


def test_stop_after_ends_before_its_time_with_the_state(run, whole, base, tmp_path):
    with worker(tmp_path, run, base, "slower steps", "50 steps", "4s") as child:
        child.wait_until_said("train: loading")
        began = time.monotonic()
        assert child.wait() == 0, child.stderr
        assert "train: stopped at step" in child.stderr and time.monotonic() - began < 4
    assert checkpoint_folders(run.checkpoints)
    goes_on_equal(run, whole, base)


def test_before_each_step_it_is_asked_whether_that_and_a_checkpoint_still_fit(run, base, monkeypatch):
    asked, real = [], StopWatch.check
    monkeypatch.setattr(
        StopWatch, "check", lambda watch, a_s=0.0: asked.append((a_s, watch.reserve_s)) or real(watch, a_s)
    )
    with pytest.raises(Paused):
        train(recipe_with(**RECIPE, stop_after="4 steps"), run, base)
    seconds = [json.loads(line)["seconds"] for line in run.metrics.read_text().splitlines() if "grad_norm" in line]
    assert [ahead for ahead, _ in asked if ahead] == seconds and len(seconds) == 4
    assert asked[-1][1] > 0 and asked[-2][1] > 0  # what a checkpoint takes, also within a step
    clock = Clock(monkeypatch)
    watch = StopWatch("100s")
    watch.step_done()
    watch.reserve_s = 2.0
    clock.now += 93.9
    watch.check(3.0)
    clock.now += 0.2
    with pytest.raises(StopRequested):
        watch.check(3.0)
    clock.now += 2.7
    watch.check()
    clock.now += 0.3
    with pytest.raises(StopRequested):
        watch.check()


def test_a_stop_after_that_is_shorter_than_a_step_still_gets_on(run, base):
    for _ in range(2):
        with pytest.raises(Paused):
            train(recipe_with(**RECIPE, stop_after="0.001s"), run, base)
    assert [path.name for path in checkpoint_folders(run.checkpoints)] == ["step-000001", "step-000002"]


# disks


@pytest.mark.parametrize(("kind", "lasting"), [("full", False), ("read-only", False), ("read-only", True)])
def test_a_disk_that_takes_nothing_for_a_while_or_for_good(prepared, whole, base, tmp_path, kind, lasting):
    arguments = (prepared.path, tmp_path / "small", base.folder, kind, "lasting" if lasting else "")
    with forked(tmp_path / "output", *arguments, of=survival_worker.on_a_small_disk) as child:
        code, said, run = child.wait(), child.stderr, Run(tmp_path / "small-after")
    if NO_MOUNTS in said:
        pytest.skip(NO_MOUNTS)
    assert said.count(f"the disk is {kind} now") == 1, said
    if kind == "full":
        assert said.count("is deleted to make room for it") == 1, said
    else:
        assert said.count("training goes on and tries it again") == 1, said
        assert said.count("checkpoints are written again") == (not lasting), said
    if lasting:
        assert code == 7 and "the state after step 18 could not be saved: " in said, said
        assert re.search("the run goes on from step-00000[45]", said), said  # the fifth may just have been written
        assert not run.adapter.exists() and is_whole(checkpoint_folders(run.checkpoints)[-1])
        goes_on_equal(run, whole, base)
    else:
        assert code == 0, said
        same(run, whole)


def test_a_limit_on_the_size_of_files_ends_with_an_error_and_the_same_command_goes_on(run, whole, base, tmp_path):
    with worker(tmp_path, run, base, "file limit") as child:
        assert child.wait() == 7 and "no file may be so large there" in child.stderr, child.stderr
        assert "train: step 18 of 18" in child.stderr  # it had gone on
    assert checkpoint_folders(run.checkpoints) == []
    goes_on_equal(run, whole, base)


# damage

KINDS = (
    "adapter.safetensors missing", "optimizer.safetensors missing", "state.json missing", "digests.json missing",
    "adapter.safetensors cut", "optimizer.safetensors cut", "state.json cut", "digests.json cut",
    "adapter.safetensors flipped", "optimizer.safetensors flipped", "state.json flipped", "digests.json flipped",
    "adapter.safetensors empty", "optimizer.safetensors empty", "state.json empty", "digests.json empty",
    "folder empty", "permission denied", "a file denied", "of another run", "of a later version",
)  # fmt: skip


def damaged(folder, kind):
    """Do this kind of damage to a checkpoint; what is said of it."""
    name, _, how = kind.partition(" ")
    file = folder / name
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif how == "flipped":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        name = "it is damaged, " if name == DIGESTS else name  # it names what it no longer fits
    elif kind == "folder empty":
        for path in folder.iterdir():
            path.unlink()
        return "digests.json is missing"
    elif how == "empty":
        file.write_bytes(b"")
    elif kind == "permission denied":
        folder.chmod(0)
        return "cannot be read: Permission denied"
    elif kind == "a file denied":
        (folder / "optimizer.safetensors").chmod(0)
        return "optimizer.safetensors cannot be read: Permission denied"
    else:
        state = json.loads((folder / "state.json").read_text())
        if kind == "of another run":
            state["decides"]["settings"]["train"]["lr"] = 0.5
        else:
            state["format"] = FORMAT + 1
        (folder / "state.json").write_text(json.dumps(state))
        (folder / DIGESTS).write_text(json.dumps(digest_folder(folder)))
        return "it is of another run: train.lr: 0.5 -> 0.01" if how == "another run" else "a later version of tunesmith"
    return name


@pytest.fixture(scope="module")
def begun(base, prepared, tmp_path_factory):
    """A run that paused after five steps."""
    run = Run(shutil.copytree(prepared.path, tmp_path_factory.mktemp("begun") / "run"))
    with pytest.raises(Paused):
        train(recipe_with(**RECIPE, stop_after="5 steps"), run, base)
    return run


def resumes_each(place, base):
    """For each run below: one step further, as nobody; what the run said of it goes to its log."""
    survival_worker.as_nobody()
    for folder in sorted(Path(place).iterdir()):
        print(f"== {folder.name}", file=sys.stderr, flush=True)
        try:
            recipe = recipe_with(**RECIPE, stop_after="1 steps")
            train(recipe, Run(folder), LocatedBase("tiny", Path(base), "digest", None, None))
        except Paused as paused:
            print(f"paused at {paused.step}", file=sys.stderr, flush=True)


def test_every_kind_of_damage_to_the_newest_falls_back_and_is_named(begun, whole, base, tmp_path):
    expected = {}
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        place = Path(folder, "place")
        _damage_each(begun, whole, base, tmp_path, place, expected)


def _damage_each(begun, whole, base, tmp_path, place, expected):
    for number, kind in enumerate(KINDS):
        run = Run(shutil.copytree(begun.path, place / f"{number:02d}"))
        expected[f"{number:02d}"] = (kind, damaged(run.checkpoints / "step-000005", kind))
    for path in [place, *place.rglob("*")]:
        os.chown(path, 65534, 65534)
    open_base = shutil.copytree(base.folder, place.parent / "base")
    place.parent.chmod(0o755)
    (open_base / "model.safetensors").chmod(0o644)
    with forked(tmp_path / "output", place, open_base, of=resumes_each) as child:
        assert child.wait() == 0, child.stderr
        said = dict(zip(expected, child.stderr.split("== ")[1:], strict=True))
    for name, (kind, words) in expected.items():
        assert "step-000005 is passed over: " in said[name] and words in said[name], (kind, said[name])
        assert "going on from step-000004" in said[name] and "paused at 5" in said[name], (kind, said[name])
    for number in (0, len(KINDS) - 2):
        goes_on_equal(Run(place / f"{number:02d}"), whole, base)


ODD = {
    "there is no progress": lambda state: state.pop("progress"),
    "there is no scaler": lambda state: state.pop("scaler"),
    "there is no machine": lambda state: state.pop("machine"),
    "there is no inputs": lambda state: state["decides"].pop("inputs"),
    "there is no settings": lambda state: state["decides"].update(settings=[]),
    "step is -3": lambda state: state["progress"].update(step=-3),
    "step is 7": lambda state: state["progress"].update(step="7"),
    "step is inf": lambda state: state["progress"].update(step=math.inf),
    "best_step is inf": lambda state: state["progress"].update(best_step=math.inf),
    "best_loss is nan": lambda state: state["progress"].update(best_loss=math.nan),
}


@pytest.mark.parametrize("why", ODD)
def test_a_state_that_is_odd_with_digests_that_fit_is_passed_over_and_named(begun, tmp_path, why):
    checkpoint = shutil.copytree(begun.checkpoints / "step-000005", tmp_path / "step-000005")
    assert why_unfit(checkpoint) == ""
    state = read_state(checkpoint)
    ODD[why](state)
    (checkpoint / "state.json").write_text(json.dumps(state))
    (checkpoint / DIGESTS).write_text(json.dumps(digest_folder(checkpoint)))
    assert why_unfit(checkpoint) == f"state.json is not as training writes it: {why}"


def test_folders_of_others_take_the_place_of_no_checkpoint(begun, base, tmp_path, monkeypatch):
    """A program that synchronises folders puts some there while training goes on."""
    run = Run(shutil.copytree(begun.path, tmp_path / "run"))
    real = saving.save_checkpoint

    def save(folder, snapshot):
        (folder / "step-20260101").mkdir(exist_ok=True)
        (folder / "step-999999").mkdir(exist_ok=True)
        return real(folder, snapshot)

    monkeypatch.setattr(saving, "save_checkpoint", save)
    recipe = recipe_with(**RECIPE, stop_after="2 steps")
    keep = recipe.checkpoint.model_copy(update={"keep": Keep(last=1)})
    with pytest.raises(Paused):
        train(recipe.model_copy(update={"checkpoint": keep}), run, base)
    assert is_whole(run.checkpoints / "step-000007") and (run.checkpoints / "step-20260101").is_dir()


def test_a_training_without_its_checkpoints_says_that_it_begins_anew(begun, base, tmp_path, capsys):
    run = Run(shutil.copytree(begun.path, tmp_path / "run"))
    shutil.rmtree(run.checkpoints)
    with pytest.raises(Paused):
        train(recipe_with(**RECIPE, stop_after="1 steps"), run, base)
    assert "no checkpoint, so training begins anew; metrics.jsonl has 5 steps of it" in capsys.readouterr().err


def test_what_was_not_measured_is_not_shipped_as_the_best(whole, base, tmp_path):
    run = Run(shutil.copytree(whole.path, tmp_path / "run"))
    shutil.rmtree(run.adapter)
    best = run.checkpoints / checkpoint_name(read_record(whole.adapter).counts["best_step"])
    tensors = load_file(best / "adapter.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, best / "adapter.safetensors")
    (best / DIGESTS).write_text(json.dumps(digest_folder(best)))
    with pytest.raises(ResumeError, match=f"{best.name}, is not the adapter that was measured"):
        train(recipe_with(**RECIPE), run, base)


def test_bits_that_are_required_are_refused_where_they_cannot_be(begun, base, tmp_path):
    run = Run(shutil.copytree(begun.path, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    said = "would not have the same bits:\n  - micro_batch_tokens: 200 -> 400"
    with bits_required(True), pytest.raises(ResumeError, match=said):
        train(recipe_with(**RECIPE, micro_batch_tokens=400), run, base)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    with bits_required(True), pytest.raises(Paused):
        train(recipe_with(**RECIPE, stop_after="1 steps"), run, base)


# cadence


class Clock:
    """time.monotonic that the test sets."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(saving.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(saving.time, "time", lambda: 0.0)  # a clock that jumps counts for nothing


def a_saver(tmp_path, **config):
    return Saver(tmp_path, CheckpointConfig(**config), {}, Progress(), [Metrics(tmp_path / "metrics.jsonl")])


def test_cadence_by_time_and_steps_and_never_twice_the_same_step(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    saver = a_saver(tmp_path, every="5min")
    assert not saver.is_due(1)
    clock.now += 299
    assert not saver.is_due(9)
    clock.now += 1
    assert saver.is_due(9) and not saver.is_due(0)
    clock.now -= 60
    assert not saver.is_due(9) and not saver.is_due(9, 59.9) and saver.is_due(9, 60.0)  # the next look is too late
    assert not a_saver(tmp_path, every="200 steps").is_due(199, 1e9)
    assert not a_saver(tmp_path, every="200 steps").is_due(199) and a_saver(tmp_path, every="200 steps").is_due(200)


def test_checkpoints_take_no_more_than_their_share(tmp_path, monkeypatch, capsys):
    clock = Clock(monkeypatch)
    saver = a_saver(tmp_path, every="10s", overhead="2%")
    saver._cost_s = 0.5
    clock.now += 24.9
    assert not saver.is_due(5) and not saver.is_due(6)
    assert capsys.readouterr().err.count("so they are 25 s apart or more, not 10s (checkpoint.overhead: 2%)") == 1
    clock.now += 0.1
    assert saver.is_due(5)
    near = a_saver(tmp_path, every="3s")
    near._cost_s = 0.0304
    clock.now += 3
    assert not near.is_due(5)
    assert "takes 0.030 s from training, so they are 3.1 s apart or more, not 3s" in capsys.readouterr().err
    within = a_saver(tmp_path, every="10s", overhead="2%")
    within._cost_s = 0.15  # 7.5 s apart is no more than the cadence: nothing is to be said
    clock.now += 7
    assert not within.is_due(5, 5.0) and not capsys.readouterr().err
    free = a_saver(tmp_path, every="10s", overhead=None)
    free._cost_s = 5.0
    clock.now += 10
    assert free.is_due(5)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(last=2), [3, 9, 10]),
        (Keep(last=1, every="4 steps"), [1, 3, 5, 9, 10]),
        (Keep(last=1, every="1h"), [1, 3, 4, 7, 10]),  # a step takes 20 minutes
    ],
)
def test_which_checkpoints_are_kept(tmp_path, keep, kept):
    for step in range(1, 11):
        folder = tmp_path / f"step-{step:06d}"
        folder.mkdir()
        for name in ("adapter.safetensors", "optimizer.safetensors"):
            (folder / name).write_text("")
        (folder / "state.json").write_text(json.dumps({"progress": {"seconds": 1200.0 * step}}))
        (folder / DIGESTS).write_text(json.dumps(digest_folder(folder)))
    assert sorted(to_keep(tmp_path, keep, 3)) == [f"step-{step:06d}" for step in kept]


def test_the_thread_that_trains_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    written = []

    def save(folder, snapshot):
        time.sleep(0.5)
        written.append(snapshot.step)
        return folder / f"step-{snapshot.step:06d}"

    monkeypatch.setattr(saving, "save_checkpoint", save)
    monkeypatch.setattr(saving, "take", lambda state, about: Snapshot(state.progress.step, 0, 0, {}, {}, {}, None))
    saver, state = a_saver(tmp_path), type("State", (), {"progress": Progress(step=1)})()
    began = time.monotonic()
    saver.save(state)
    assert time.monotonic() - began < 0.2 and not saver.is_due(2) and written == []
    saver.close()
    assert written == [1]


def test_the_best_state_is_owed_until_it_is_on_disk(run, whole, base, monkeypatch):
    """Its checkpoint fails, and the next try: then it is written before the next one."""
    real, fails = saving.save_checkpoint, []

    def save(folder, snapshot):
        if len(fails) < 2 and snapshot.step >= 3:
            fails.append(snapshot.step)
            raise OSError(5, "Input/output error")
        return real(folder, snapshot)

    monkeypatch.setattr(saving, "save_checkpoint", save)
    monkeypatch.setattr(saving, "FIRST_RETRY_S", 0.0)
    with pytest.raises(Paused):
        train(recipe_with(**RECIPE, every="50 steps", stop_after="4 steps"), run, base)
    assert fails[0] == 3 and [path.name for path in checkpoint_folders(run.checkpoints)] == [
        "step-000003",
        "step-000004",
    ]
    monkeypatch.undo()
    goes_on_equal(run, whole, base)
    assert read_record(run.adapter) is not None


class Host:
    """A snapshot in main memory, or one that finds no room there."""

    def __init__(self, step, full=False):
        self.step, self.evaluated_step, self.best_step, self.full = step, 0, 0, full

    def on_host(self):
        if self.full:
            raise MemoryError("no room")
        return self


@pytest.mark.parametrize(("spare", "full"), [(1, False), (7, False), (7, True)])
def test_a_spare_counts_where_it_is_of_the_last_step_and_one_without_room_stops_nothing(
    tmp_path, monkeypatch, spare, full
):
    written, fetched = [], []

    def save(folder, snapshot):
        written.append(snapshot.step)
        return folder / f"step-{snapshot.step:06d}"

    def beside(state, about):
        fetched.append(state.progress.step)
        return Host(state.progress.step)

    monkeypatch.setattr(saving, "take", lambda state, about: Host(state.progress.step, full))
    monkeypatch.setattr(saving, "take_beside", beside)
    monkeypatch.setattr(saving, "save_checkpoint", save)
    saver = a_saver(tmp_path)
    state = type("State", (), {"progress": Progress(step=spare), "applied": True, "lock": threading.Lock()})()
    saver.keep_spare(state)
    saver._waiting.join()
    state.progress = Progress(step=7)
    assert saver.rescue(state).name == "step-000007" and written == [7]
    assert fetched == ([] if spare == 7 and not full else [7])
    saver.close()


def test_what_comes_after_a_checkpoint_does_not_make_it_a_failed_one(run, base, monkeypatch, capsys):
    def refused(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(saving, "prune", refused)
    with pytest.raises(Paused):
        train(recipe_with(**RECIPE, stop_after="2 steps"), run, base)
    said = capsys.readouterr().err
    assert "step-000001 is saved; what comes after that could not be done" in said and "tries it again" not in said


def test_room_is_never_made_of_the_best_that_the_newest_on_disk_needs(begun, tmp_path):
    run = Run(shutil.copytree(begun.path, tmp_path / "run"))
    there = [path.name for path in checkpoint_folders(run.checkpoints)]
    assert there == ["step-000003", "step-000004", "step-000005"]  # the third is the best by the fifth
    assert make_room(run.checkpoints, 6) == "step-000004" and make_room(run.checkpoints, 6) == ""
