"""A lost connection: the terminal of a real training is taken away. It saves and stops; under nohup it goes on."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import forked
from tiny import write_rows

from tunesmith.pipeline import run_stages
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import Run, checkpoint_folders
from tunesmith.stages import STAGES
from tunesmith.training.saved import damage

LIMIT_S = 240


def lead(terminal, way, arguments):
    """Let this process lead a session of its own with that terminal; disowned, or under nohup, if so asked."""
    os.setsid()
    slave = os.open(terminal, os.O_RDWR)  # the leader's first terminal is the session's
    for number in range(3):
        os.dup2(slave, number)
    if way == "disowned":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if way == "nohup":
        os.execvp(way, [way, sys.executable, "-c", "from tunesmith.cli import main; main()", *arguments])


@pytest.fixture(scope="module")
def prepared(tiny_base, tmp_path_factory):
    """A recipe of a few hundred short steps, and its run with the data made."""
    folder = tmp_path_factory.mktemp("hangup")
    write_rows(folder / "rows.jsonl", [(f"question {i}", f"answer {i}") for i in range(24)])
    train = "{epochs: 30, tokens_per_step: 200, max_length: 200, precision: fp32, evaluate_every: 50 steps"
    (folder / "recipe.yaml").write_text(
        f"name: small\nbase: {tiny_base}\ndata:\n  sources: [{{path: rows.jsonl}}]\n  held_out: 0.25\n"
        f"lora: {{rank: 2}}\ntrain: {train}, early_stopping: null}}\ncheckpoint: {{every: 9h}}\n"
    )
    run_stages(read_recipe(folder / "recipe.yaml"), Run(folder / "prepared"), STAGES[:1])
    return folder


def steps(run):
    if not run.metrics.exists():
        return 0
    return sum('"loss"' in line for line in run.metrics.read_text().splitlines()[:-1])


def hung_up_while_training(prepared, run, way=""):
    """Train on a terminal of its own, take that away in the middle; the exit code, and the steps done till then."""
    run.path.mkdir()
    for path in (Run(prepared / "prepared").data, Run(prepared / "prepared").recipe):
        subprocess.run(["cp", "-r", str(path), str(run.path)], check=True)
    master, slave = pty.openpty()
    arguments = ("train", str(prepared / "recipe.yaml"), "--run-dir", str(run.path))
    given = (os.ttyname(slave), way, arguments)
    with forked(run.path.parent / "output", *arguments, before=lead, given=given) as child:
        shown, deadline = b"", time.monotonic() + LIMIT_S
        while steps(run) < 3:
            assert child.process.is_alive() and time.monotonic() < deadline, f"it did not train: {shown.decode()}"
            time.sleep(0.02)
            if select.select([master], [], [], 0)[0]:  # a terminal that nobody reads is full soon
                with contextlib.suppress(OSError):  # under nohup nobody holds the other end
                    shown += os.read(master, 1 << 16)
        os.close(slave)
        os.close(master)  # what a lost ssh does: SIGHUP to the leader, and the terminal can no longer be written
        if way:
            child.send_signal(signal.SIGHUP)  # and once more, to be sure that it came
        done = steps(run)
        return child.wait(LIMIT_S), done


def test_a_hang_up_saves_the_state_and_stops(prepared, tmp_path):
    run = Run(tmp_path / "run")
    code, before = hung_up_while_training(prepared, run)
    assert code == 129, code
    newest = checkpoint_folders(run.checkpoints)[-1]
    step = json.loads((newest / "state.json").read_text())["progress"]["step"]
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert step == sum("loss" in line for line in lines) >= before >= 3  # no step that was done is lost
    assert damage(newest) == "" and run.loss_plot.exists() and not run.adapter.exists()


@pytest.mark.parametrize("way", ["nohup", "disowned"])
def test_under_nohup_it_goes_on_to_the_end_also_where_its_terminal_is_gone(prepared, tmp_path, way):
    run = Run(tmp_path / "run")
    code, done = hung_up_while_training(prepared, run, way)
    record = read_record(run.adapter)
    assert code == 0 and record is not None
    assert record.counts["steps"] == record.counts["planned_steps"] > done + 20, "it was over before the hang-up"
    assert record.counts["interruptions"] == 0
    assert way != "nohup" or "going on" not in Path("nohup.out").read_text()
