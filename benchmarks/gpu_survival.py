"""Survival on a GPU: killed and resumed, told to stop within a long step, and what a checkpoint takes from training.

Prints a line for each. Usage: python benchmarks/gpu_survival.py [--quick | --told]
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import save_base
from training_runs import prepare_rows

from tunesmith.decides import adapter_needs
from tunesmith.lock import locked
from tunesmith.recipe import Recipe
from tunesmith.runs import Run
from tunesmith.training import loop
from tunesmith.training.stop import Paused, signals_heeded
from tunesmith.training.train import train
from tunesmith.weights.locate import LocatedBase

BUSY_S = 20  # what the GPU is given to compute in one micro-batch
LIMIT_S = 300


def recipe_for(deterministic: bool, every: str, tokens: int) -> Recipe:
    """A recipe of a few hundred small steps."""
    return Recipe(
        name="gpu", base="random", data={"sources": [{"path": "rows.jsonl"}]}, lora={"rank": 16, "dropout": 0.1},
        train={
            "tokens_per_step": tokens, "max_length": 200, "micro_batch_tokens": 2000 if deterministic else tokens,
            "lr": 1e-3, "precision": "bf16", "evaluate_every": "50 steps", "early_stopping": None, "epochs": 6,
            "deterministic": deterministic, "sample": False,
        },
        checkpoint={"every": every, "overhead": None},
    )  # fmt: skip


def busy_at(step: int) -> None:
    """Give the GPU BUSY_S seconds of work within one micro-batch of this step."""
    real, update, now = loop.hidden_states, loop.update, []
    loop.STEP_S = 0.0  # a step is long, so that the state is kept in main memory too

    def watched(job, state, *rest):
        now[:] = [state.progress.step]
        return update(job, state, *rest)

    def hidden_states(*args):
        found = real(*args)
        if now == [step]:
            now.clear()
            a = torch.randn(32768, 32768, device="cuda", dtype=torch.bfloat16)
            torch.cuda.synchronize()
            began = time.monotonic()
            for _ in range(5):
                a @ a
            torch.cuda.synchronize()
            each_s = (time.monotonic() - began) / 5
            for _ in range(int(BUSY_S / each_s)):
                a @ a
            print("the GPU is busy", file=sys.stderr, flush=True)
        return found

    loop.hidden_states, loop.update = hidden_states, watched


def child(run: str, base: str, way: str) -> None:
    """Train in this process; its exit code is the command line's."""
    if way == "busy":
        busy_at(6)
    recipe = recipe_for(way != "fast", "5 steps" if way != "fast" else "8 steps", 4000 if way != "fast" else 16000)
    place = Run(Path(run))
    try:
        with signals_heeded(), locked(place):
            place.keep_recipe(recipe)
            train(recipe, place, LocatedBase("random", Path(base), "digest", None, None))
    except Paused as paused:
        sys.exit(paused.exit_code)


def started(run: Path, base: Path, way: str) -> subprocess.Popen:
    """A child at work, whose words go to the run's log."""
    words = [sys.executable, __file__, "child", str(run), str(base), way]
    return subprocess.Popen(words, stderr=run.with_suffix(".log").open("ab"), env=dict(os.environ))


def steps_of(run: Path) -> int:
    """Steps that the run's metrics know."""
    path = run / "metrics.jsonl"
    return path.read_text().count('"grad_norm"') if path.exists() else 0


def result(run: Path) -> tuple:
    """(adapter, optimizer state, deterministic columns of the metrics) of a finished run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers = [(line["step"], line.get("loss"), line.get("grad_norm"), line.get("held_out_loss")) for line in lines]
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return (
        load_file(run / "adapter" / "adapter_model.safetensors"),
        load_file(newest / "optimizer.safetensors"),
        numbers,
    )


def equal(one: tuple, other: tuple) -> bool:
    """Whether two results have the same bits."""
    tensors = all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one[:2], other[:2], strict=True)
    )
    return tensors and one[2] == other[2]


def prepared(folder: Path, name: str, base: Path, rows: int) -> Path:
    """A run folder with rows."""
    return prepare_rows(folder / name, base, rows=rows, held_out=10).path


def killed_and_told(folder: Path, base: Path) -> None:
    """Deterministic kernels: SIGKILL, and SIGTERM while the GPU is busy, each resumed, against the whole run."""
    whole = prepared(folder, "whole", base, 200)
    assert started(whole, base, "plain").wait(LIMIT_S) == 0, whole.with_suffix(".log").read_text()
    expected = result(whole)
    print(f"whole run: {len(expected[2])} lines of metrics on {torch.cuda.get_device_name(0)}", flush=True)
    killed = prepared(folder, "killed", base, 200)
    kills = 0
    for at in (3, 9, 14, 22):
        process = started(killed, base, "plain")
        while steps_of(killed) < at and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert started(killed, base, "plain").wait(LIMIT_S) == 0, killed.with_suffix(".log").read_text()
    print(f"SIGKILL: {kills} kills, equal bits: {equal(result(killed), expected)}", flush=True)
    told = prepared(folder, "told", base, 200)
    process = started(told, base, "busy")
    while "the GPU is busy" not in told.with_suffix(".log").read_text() and process.poll() is None:
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait(LIMIT_S)
    took = time.monotonic() - began
    said = [line for line in told.with_suffix(".log").read_text().splitlines() if "long step" in line]
    assert started(told, base, "plain").wait(LIMIT_S) == 0, told.with_suffix(".log").read_text()
    print(
        f"SIGTERM with {BUSY_S} s of work on the GPU: exit {code} after {took:.1f} s ({said}), equal bits: "
        f"{equal(result(told), expected)}", flush=True,
    )  # fmt: skip
    settings, _ = adapter_needs(recipe_for(True, "5 steps", 4000), Run(whole), "digest")
    assert settings
    print("log of the rescued run:", told.with_suffix(".log").read_text()[-1500:], flush=True)


def cost(folder: Path, layers: int, width: int) -> None:
    """Fast kernels, compiled layers: the step after a checkpoint against the others."""
    base = save_base(folder / "large", layers=layers, width=width, num_attention_heads=16, num_key_value_heads=8)
    run = prepared(folder, "fast", base, 3000)
    process = started(run, base, "fast")
    while steps_of(run) < 60 and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    print("exit", process.wait(LIMIT_S), run.with_suffix(".log").read_text()[-600:], flush=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    per_token = {line["step"]: line["seconds"] / line["tokens"] for line in lines if "grad_norm" in line}
    after = [per_token[step] for step in per_token if step > 8 and step % 8 == 1]
    others = [per_token[step] for step in per_token if step > 8 and step % 8 not in (0, 1, 2)]
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    size = sum(path.stat().st_size for path in newest.iterdir())
    ratio = statistics.median(after) / statistics.median(others)
    step_s = statistics.median(line["seconds"] for line in lines if "grad_norm" in line)
    print(
        f"{layers} layers of {width}: a step {step_s:.3f} s, a checkpoint of {size / 1e6:.0f} MB; the step after one "
        f"takes {ratio:.3f} times the others' time a token ({len(after)} against {len(others)})", flush=True,
    )  # fmt: skip


def main() -> None:
    """Both, in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        base = save_base(Path(folder) / "base", layers=8, width=512)
        killed_and_told(Path(folder), base)
        if "--told" in sys.argv:
            return
        cost(Path(folder), *((8, 1024) if "--quick" in sys.argv else (16, 2048)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        main()
