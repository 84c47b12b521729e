"""Checkpoints: clutter changes nothing, none is good is no new beginning, full memory and signals save the state."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from training_runs import prepare_rows, recipe_with, same_adapters

from tunesmith.errors import ResourceError, ResumeError
from tunesmith.runs import Run, checkpoint_folders
from tunesmith.training import loop, memory, saver
from tunesmith.training import train as verb
from tunesmith.training.saved import damage, is_own
from tunesmith.training.stop import Paused, StopRequested, StopWatch, signals_heeded
from tunesmith.training.train import train
from tunesmith.weights.locate import LocatedBase

RECIPE = {"dropout": 0.1, "epochs": 2, "evaluate_every": "3 steps"}
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture(scope="module")
def base(tiny_base):
    return LocatedBase("tiny", tiny_base, "digest", None, None)


@pytest.fixture(scope="module")
def prepared(base, tmp_path_factory):
    return prepare_rows(tmp_path_factory.mktemp("prepared") / "run", base.folder)


@pytest.fixture(scope="module")
def whole(base, prepared, tmp_path_factory):
    """The run that nothing interrupts."""
    run = copied(prepared, tmp_path_factory.mktemp("whole"))
    train(recipe_with(**RECIPE), run, base)
    return run


@pytest.fixture(scope="module")
def begun_once(base, prepared, tmp_path_factory):
    run = copied(prepared, tmp_path_factory.mktemp("begun"))
    with pytest.raises(Paused):
        train(recipe_with(**RECIPE, stop_after="4 steps"), run, base)
    return run


@pytest.fixture
def begun(begun_once, tmp_path):
    """A run that paused after four steps, with checkpoints at 2, 3 and 4."""
    return copied(begun_once, tmp_path)


def copied(run, folder):
    return Run(shutil.copytree(run.path, folder / "run"))


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def losses(run):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def test_clutter_in_every_checkpoint_and_names_that_are_none_change_nothing(begun, whole, base, capsys):
    for folder in checkpoint_folders(begun.checkpoints):
        for name in (".DS_Store", "desktop.ini", ".ipynb_checkpoints/state-checkpoint.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("clutter")
    (begun.checkpoints / "step-000001.zip").write_bytes(b"PK")
    shutil.copytree(begun.checkpoints / "step-000004", begun.checkpoints / "step-000040 (1)")
    (begun.checkpoints / "step-000050").write_text("a file")
    (begun.checkpoints / ".DS_Store").write_text("clutter")
    train(recipe_with(**RECIPE), begun, base)
    said = capsys.readouterr().err
    assert "going on from step-000004" in said and "damaged" not in said
    assert "left alone: step-000001.zip, step-000040 (1), step-000050" in said
    same_adapters(begun, whole)
    left = {path.name for path in begun.checkpoints.iterdir()}
    assert left >= {"step-000001.zip", "step-000040 (1)", "step-000050", ".DS_Store"}
    assert "step-000002" not in left and not any(name.startswith(".damaged") for name in left)  # keep still deletes


def test_where_no_checkpoint_is_whole_training_stops_with_the_reasons_and_nothing_changes(begun, base):
    folders = checkpoint_folders(begun.checkpoints)
    assert [folder.name for folder in folders] == ["step-000002", "step-000003", "step-000004"]
    (folders[0] / "adapter.safetensors").unlink()
    weights = folders[1] / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    state = folders[2] / "state.json"
    state.write_text(state.read_text().replace("4", "5", 1))
    before = tree(begun.path)
    with pytest.raises(ResumeError) as caught:
        train(recipe_with(**RECIPE), begun, base)
    said = str(caught.value)
    assert "no checkpoint of this run is whole" in said
    assert "step-000002: it is damaged, adapter.safetensors is missing" in said
    assert "step-000003: it is damaged, optimizer.safetensors has" in said
    assert "step-000004: it is damaged, state.json has other bytes" in said
    assert tree(begun.path) == before and "from a copy" in caught.value.fix


@pytest.mark.parametrize("fault", ["digests.json gone", "digests.json cut", "digests.json empty", "digests.json deep",
                                   "digests.json a folder", "a file is a folder"])  # fmt: skip
def test_a_damaged_newest_falls_back_and_is_kept(begun, whole, base, capsys, fault):
    newest = begun.checkpoints / "step-000004"
    if fault == "digests.json gone":
        (newest / "digests.json").unlink()
    elif fault == "digests.json cut":
        (newest / "digests.json").write_text('{"adapter')
    elif fault == "digests.json empty":
        (newest / "digests.json").write_text("{}")  # lists nothing, which is not the same as nothing wrong
    elif fault == "digests.json deep":
        (newest / "digests.json").write_text("[" * 9000)
    elif fault == "digests.json a folder":
        (newest / "digests.json").unlink()
        (newest / "digests.json").mkdir()
    else:
        (newest / "state.json").unlink()
        (newest / "state.json").mkdir()
    before = tree(newest)
    train(recipe_with(**RECIPE), begun, base)
    assert "going on from step-000003" in capsys.readouterr().err
    (kept,) = begun.checkpoints.glob(".damaged-step-000004-*")
    assert tree(kept) == before
    same_adapters(begun, whole)


def test_checkpoints_are_numbers_and_what_is_not_ours_is_never_deleted(begun, base, capsys):
    mine = begun.checkpoints / "step-000001"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    (begun.checkpoints / "step-000002" / "notes.txt").write_text("mine")
    shutil.copytree(begun.checkpoints / "step-000004", begun.checkpoints / "step-999999")  # as text it is the last
    million = begun.checkpoints / "step-1000000"
    shutil.copytree(begun.checkpoints / "step-000004", million)
    assert [p.name for p in checkpoint_folders(begun.checkpoints)][-1] == "step-1000000"
    assert not is_own(mine) and is_own(million) and not is_own(begun.checkpoints / "step-000002")
    record, _ = train(recipe_with(**RECIPE), begun, base)
    said = capsys.readouterr().err
    assert said.index("step-1000000 is passed over") < said.index("step-999999 is passed over: state.json is not as")
    assert record.counts["interruptions"] == 1
    assert (mine / "notes.txt").exists() and (begun.checkpoints / "step-000002" / "notes.txt").exists()
    assert not (begun.checkpoints / "step-000003").exists()


def test_a_folder_of_the_users_at_the_name_of_a_checkpoint_is_not_replaced(begun, base):
    for step in range(5, 30):
        (begun.checkpoints / f"step-{step:06d}" / "mine").mkdir(parents=True)
        (begun.checkpoints / f"step-{step:06d}" / "mine" / "a.txt").write_text("mine")
    assert damage(begun.checkpoints / "step-000005") == "digests.json is missing"
    before = {name: text for name, text in tree(begun.checkpoints).items() if "mine" in name}
    train(recipe_with(**RECIPE), begun, base)  # they are newer than the good one, so put aside
    after = {Path(name).name: text for name, text in tree(begun.checkpoints).items() if "mine" in name}
    assert len(list(begun.checkpoints.glob(".damaged-*"))) == len(before) == 25 and set(after.values()) == {b"mine"}


def out_of_memory_at(monkeypatch, call, error):
    real, calls = loop.hidden_states, 0

    def hidden_states(*args):
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return real(*args)

    monkeypatch.setattr(loop, "hidden_states", hidden_states)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(FULL),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    ],
    ids=["cuda", "python", "cublas", "cpu"],
)
def test_where_memory_is_full_the_state_is_saved_first_and_then_said(
    whole, base, prepared, tmp_path, monkeypatch, error
):
    run = copied(prepared, tmp_path)
    out_of_memory_at(monkeypatch, 7, error)  # the second micro-batch of a step
    recipe = recipe_with(**RECIPE, every="50 steps")  # so that nothing but the error saves these steps
    with pytest.raises(ResourceError, match=r"memory is full at step \d+") as caught:
        train(recipe, run, base)
    newest = checkpoint_folders(run.checkpoints)[-1]
    assert f"the state is saved as {newest.name}" in caught.value.what and damage(newest) == ""
    step = json.loads((newest / "state.json").read_text())["progress"]["step"]
    assert step == losses(run)[-1] >= 2 and f"at step {step + 1}:" in caught.value.what
    assert caught.value.fix == "type the same with --set train.recompute=on: the run goes on with it"  # one row a batch
    monkeypatch.undo()
    train(recipe, run, base)
    same_adapters(run, whole)


def test_where_the_state_cannot_be_saved_that_is_said_and_what_is_on_disk(begun, base, monkeypatch):
    out_of_memory_at(monkeypatch, 4, torch.OutOfMemoryError(FULL))
    full_disk = ResourceError("the disk is full: step-000005 could not be written", fix="free some")

    def save(*_):
        raise full_disk

    monkeypatch.setattr(saver, "save_checkpoint", save)
    with pytest.raises(ResourceError, match="memory is full") as caught:
        train(recipe_with(**RECIPE, every="50 steps"), begun, base)
    assert "the state after step 5 could not be saved: the disk is full" in caught.value.what
    assert "the run goes on from step-000004" in caught.value.what and "is saved as" not in caught.value.what


def test_where_nothing_was_ever_saved_that_is_said(prepared, base, tmp_path, monkeypatch):
    run = copied(prepared, tmp_path)
    out_of_memory_at(monkeypatch, 2, torch.OutOfMemoryError(FULL))

    def save(*_):
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(saver, "save_checkpoint", save)
    with pytest.raises(ResourceError, match=r"could not be saved: .*CUDA out of memory.*nothing of this"):
        train(recipe_with(**RECIPE), run, base)
    assert checkpoint_folders(run.checkpoints) == []


def test_memory_that_is_full_before_the_first_step_is_named_too(begun, base, monkeypatch):
    def load(*_, **__):
        raise torch.OutOfMemoryError(FULL)

    monkeypatch.setattr(verb, "load_base", load)
    before = tree(begun.checkpoints)
    with pytest.raises(ResourceError, match="memory is full before the first step: CUDA out of memory") as caught:
        train(recipe_with(**RECIPE, micro_batch_tokens=4000), begun, base)
    assert "--set train.micro_batch_tokens=2000" in caught.value.fix and tree(begun.checkpoints) == before


def test_other_errors_are_not_taken_for_full_memory(begun, base, monkeypatch):
    out_of_memory_at(monkeypatch, 2, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train(recipe_with(**RECIPE), begun, base)
    assert memory.full_memory(RuntimeError("shape mismatch")) == "" and memory.full_memory(MemoryError())
    torchs = f"{FULL} GPU 0 has a total capacity of 79.18 GiB of which 78.21 GiB is free. Including non-PyTorch memory,"
    assert memory.full_memory(torch.OutOfMemoryError(f"{torchs} and so on\nmore")) == FULL


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]


def test_signals_are_heeded_where_the_command_line_asks_for_it_and_nowhere_else():
    before = handlers()
    with StopWatch(None):
        assert handlers() == before
    with signals_heeded():
        with StopWatch(None) as watch:
            assert all(heard != was for heard, was in zip(handlers(), before, strict=True))
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(StopRequested):
                watch.check()
            assert watch.exit_code == 128 + signal.SIGHUP
        assert handlers() == before
    with StopWatch(None):
        assert handlers() == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals_heeded(), StopWatch(None) as watch:
            assert signal.getsignal(number) is signal.SIG_IGN
            os.kill(os.getpid(), number)
            watch.check()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_training_in_another_thread_sets_no_handlers_and_does_not_crash(begun, base):
    before, found = handlers(), []

    def work():
        with signals_heeded():
            found.append(train(recipe_with(**RECIPE), begun, base))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found and found[0][1] and handlers() == before


def test_a_signal_after_the_last_step_is_not_lost(begun, whole, base, monkeypatch):
    real = verb.fit

    def fit(job, state, watch, saver, sampler):
        real(job, state, watch, saver)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(verb, "fit", fit)
    with pytest.raises(Paused) as paused, signals_heeded():
        train(recipe_with(**RECIPE), begun, base)
    assert paused.value.exit_code == 128 + signal.SIGTERM and not begun.adapter.exists()
    monkeypatch.undo()
    train(recipe_with(**RECIPE), begun, base)
    same_adapters(begun, whole)
