"""The demo's conversations: enough of them, real turns, and nothing that is asked is in the training rows."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from tunesmith.runs import Run


def test_the_check_passes():
    script = Path(__file__).parents[1] / "benchmarks" / "check_demo_data.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_demo_ends_with_its_seconds_and_the_speed_of_its_training_steps(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    questions = importlib.import_module("demo_questions")
    run, record = Run(tmp_path), SimpleNamespace(counts={"tokens_per_s": 263.6})
    monkeypatch.setattr(questions, "read_record", lambda folder: record if folder == run.adapter else None)
    assert questions.duration(run, 533.7) == "demo: 534 s, trained at 264 tokens/s"
