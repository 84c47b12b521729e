"""Resume is exact: told to stop at any moment, the run ends with the same bits. Killed: test_crash.py."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from training_runs import RECIPE, prepare_rows, recipe_with, same_adapters

from tunesmith.runs import Run
from tunesmith.training import loop
from tunesmith.training.metrics import Metrics
from tunesmith.training.state import Progress
from tunesmith.training.stop import Paused, signals_heeded
from tunesmith.training.train import train
from tunesmith.weights.locate import LocatedBase


@pytest.fixture(scope="module")
def base(tiny_base):
    return LocatedBase("tiny", tiny_base, "digest", None, None)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The run that nothing interrupts."""
    run = prepare_rows(tmp_path_factory.mktemp("whole") / "run", base.folder)
    train(recipe_with(**RECIPE), run, base)
    return run


def same(run, whole):
    """Equal adapters, equal last optimizer state, equal history of losses."""
    same_adapters(run, whole)
    last = sorted(whole.checkpoints.iterdir())[-1].name
    ours, theirs = (load_file(r.checkpoints / last / "optimizer.safetensors") for r in (run, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert history(run) == history(whole)
    ours, theirs = (digests(r) for r in (run, whole))
    assert len(ours.keys() & theirs.keys()) >= 2 and all(ours[step] == theirs[step] for step in ours.keys() & theirs)


def digests(run):
    """Of the adapter, after the steps that somebody may run again."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {line["step"]: line["adapter_sha256"] for line in lines if "adapter_sha256" in line}


def history(run):
    timing = {"seconds", "tokens_per_s", "memory_gb", "adapter_sha256"}
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_stop_inside_accumulation(base, whole, tmp_path, monkeypatch, number):
    run = prepare_rows(tmp_path / "run", base.folder)
    real, calls = loop.hidden_states, 0

    def hidden_states(*args):
        nonlocal calls
        calls += 1
        if calls == 8:  # the second micro-batch of a step: the first three calls are the self-test and step 0's
            os.kill(os.getpid(), number)
        return real(*args)

    monkeypatch.setattr(loop, "hidden_states", hidden_states)
    with pytest.raises(Paused) as paused, signals_heeded():
        train(recipe_with(**RECIPE), run, base)
    assert paused.value.exit_code == 128 + number
    newest = sorted(run.checkpoints.iterdir())[-1]
    step = json.loads((newest / "state.json").read_text())["progress"]["step"]
    assert step == len([line for line in history(run) if "loss" in line]) > 0
    assert not run.adapter.exists() and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    monkeypatch.undo()
    train(recipe_with(**RECIPE), run, base)
    same(run, whole)


BAD_LINES = [b"\xff\x00 bytes", b"[]", b'{"loss": 2.0}', b'{"step": "2"}', b'{"step": 2, "loss": "low"}', b"[" * 9000]


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_damaged_metrics_line_is_named_and_the_others_are_kept(base, whole, tmp_path, capsys, bad):
    run = Run(tmp_path / "run")
    run.path.mkdir()
    lines = whole.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.write_bytes(damaged := b"".join([*lines[:2], bad + b"\n", *lines[2:], b'{"step"']))
    Metrics(run.metrics).cut_back(Progress(step=10**6, evaluated_step=10**6))
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    [aside] = run.path.glob(".damaged-metrics.jsonl-*")
    said = capsys.readouterr().err
    assert aside.read_bytes() == damaged and "metrics.jsonl: line 3 is damaged" in said and aside.name in said


def test_torn_newest_checkpoint_falls_back(base, whole, tmp_path, capsys):
    run = prepare_rows(tmp_path / "run", base.folder)
    with pytest.raises(Paused):
        train(recipe_with(**RECIPE, stop_after="5 steps"), run, base)
    torn = run.checkpoints / "step-000005"
    weights = torn / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    (run.checkpoints / "step-000004" / "adapter.safetensors").unlink()
    train(recipe_with(**RECIPE), run, base)
    output = capsys.readouterr().err
    assert "step-000005 is passed over: it is damaged, optimizer.safetensors has" in output
    assert "step-000004 is passed over: it is damaged, adapter.safetensors is missing" in output
    assert "going on from step-000003" in output
    same(run, whole)


def test_early_stopping_counts_on_across_a_resume(base, tmp_path):
    rule = {"patience": 2, "min_gain": 0.0}
    settings = {"epochs": 60, "lr": 0.3, "evaluate_every": "2 steps", "early_stopping": rule}
    one, two = (prepare_rows(tmp_path / name, base.folder) for name in ("one", "two"))
    record, _ = train(recipe_with(**settings), one, base)
    for _ in range(record.counts["steps"] - 1):
        with pytest.raises(Paused):
            train(recipe_with(**settings, stop_after="1 steps"), two, base)
    resumed, _ = train(recipe_with(**settings), two, base)
    assert resumed.counts["stopped_early"] and resumed.counts["best_step"] == record.counts["best_step"]
    assert history(one) == history(two)


def test_what_a_killed_save_left_is_cleared_or_put_back(base, whole, tmp_path):
    run = prepare_rows(tmp_path / "run", base.folder)
    with pytest.raises(Paused):
        train(recipe_with(**RECIPE, stop_after="4 steps"), run, base)
    (run.checkpoints / "step-000004").rename(run.checkpoints / ".step-000004.old")  # killed between two renames
    (run.checkpoints / ".step-000009.draft").mkdir()
    train(recipe_with(**RECIPE), run, base)
    assert not list(run.checkpoints.glob(".*")) and history(run)[-1] == history(whole)[-1]
    same(run, whole)


def test_half_a_metrics_line_is_dropped(base, whole, tmp_path):
    run = Run(prepare_rows(tmp_path / "run", base.folder).path)
    with pytest.raises(Paused):
        train(recipe_with(**RECIPE, stop_after="4 steps"), run, base)
    with run.metrics.open("a") as file:
        file.write('{"step": 5, "lo')
    train(recipe_with(**RECIPE), run, base)
    same(run, whole)
