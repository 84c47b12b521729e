"""Evaluation on a real tiny GGUF: answers, speeds and memory in a process of its own, and the base answered once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from training_runs import prepare_rows, recipe_with

from tunesmith.decides import DEFAULT_PROMPTS, read_prompts
from tunesmith.errors import BaseError, ResourceError
from tunesmith.evaluation.evaluate import answer_prompts, evaluate
from tunesmith.gguf.read import convert
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig
from tunesmith.runs import commit_stage
from tunesmith.weights.locate import locate_base

COUNTS = {"held_out_loss": 2.0, "base_held_out_loss": 3.0, "bits_per_byte": 0.7, "base_bits_per_byte": 1.1}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "prompts.yaml").write_text("- What is a step?\n- Name the capital of France.\n- Why?\n")
    config = {"prompts": str(tmp_path / "prompts.yaml"), "max_tokens": 12, "threads": 1}
    recipe = recipe_with()
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=config)})


@pytest.fixture
def run(tmp_path, tiny_base, recipe):
    """A run with data, an adapter's record and a GGUF."""
    run = prepare_rows(tmp_path / "run", tiny_base)
    commit_stage(run.adapter, {}, {}, lambda draft: COUNTS)
    about = About(recipe.name, "tiny", None, ChatConfig())

    def write(draft):
        return write_gguf(tiny_base, draft / run.gguf_file(recipe.name, "Q8_0").name, "Q8_0", about)

    commit_stage(run.gguf, {}, {}, write)
    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_and_scores_of_tuned_and_base(run, recipe, tiny_base, own_cache):
    record, done = evaluate(recipe, run, locate_base(str(tiny_base), convert))
    assert done and record.counts["tuned"]["held_out_loss"] == 2.0
    scores, base_scores = (json.loads((run.evaluation / f"{p}scores.json").read_text()) for p in ("", "base-"))
    assert (scores["held_out_loss"], scores["bits_per_byte"]) == (2.0, 0.7)
    assert (base_scores["held_out_loss"], base_scores["bits_per_byte"]) == (3.0, 1.1)
    gguf = run.gguf_file(recipe.name, "Q8_0")
    assert scores["file_bytes"] == gguf.stat().st_size and scores["answers"] == 3 and scores["gguf"] == "Q8_0"
    assert min(scores["first_token_s"], scores["prompt_per_s"], scores["tokens_per_s"]) > 0
    assert 20e6 < scores["peak_memory_bytes"] < 200e6  # the engine's alone: torch in this process needs more
    answers = lines(run.evaluation / "answers.jsonl")
    assert [answer["prompt"] for answer in answers] == read_prompts(recipe)
    with Engine(gguf, threads=1, context=512) as engine:
        for answer in answers:
            again = engine.chat([{"role": "user", "content": answer["prompt"]}], max_tokens=12)
            assert (again.text, again.tokens, again.stopped) == (answer["text"], answer["tokens"], answer["stopped"])
    assert [a["text"] for a in lines(run.evaluation / "base-answers.jsonl")] == [a["text"] for a in answers]


def test_a_second_time_stands_and_the_base_is_answered_once(run, recipe, tiny_base, own_cache):
    base = locate_base(str(tiny_base), convert)
    first, _ = evaluate(recipe, run, base)
    assert evaluate(recipe, run, base) == (first, False)
    shutil.rmtree(own_cache / "base-gguf")
    shutil.rmtree(run.evaluation)
    again, done = evaluate(recipe, run, base)
    assert done and again.counts["base"] == first.counts["base"]
    assert not (own_cache / "base-gguf").exists()  # the kept answers were enough
    other = recipe.model_copy(update={"chat": ChatConfig(system="Answer in one word.")})
    changed, done = evaluate(other, run, base)
    assert done and len(list((own_cache / "base-evaluation").iterdir())) == 2
    longer = [a["prompt_tokens"] for a in lines(run.evaluation / "base-answers.jsonl")]
    assert changed.fingerprint != first.fingerprint and min(longer) > 20


def test_a_damaged_file_is_named_and_nothing_is_committed(run, recipe, tiny_base, own_cache):
    gguf = run.gguf_file(recipe.name, "Q8_0")
    gguf.write_bytes(b"XXXX" + gguf.read_bytes()[4:])
    with pytest.raises(BaseError, match=r"tiny-Q8_0\.gguf is no GGUF file"):
        evaluate(recipe, run, locate_base(str(tiny_base), convert))
    assert not run.evaluation.exists()


def test_a_killed_worker_is_an_error_with_the_fix(run, recipe, tmp_path):
    long = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"max_tokens": 2000})})
    killer = threading.Thread(target=kill_worker)
    killer.start()
    with pytest.raises(ResourceError, match="ended with code -9") as caught:
        answer_prompts(long, run.gguf_file(recipe.name, "Q8_0"), tmp_path)
    killer.join()
    assert "memory" in caught.value.fix and not (tmp_path / "scores.json").exists()


def kill_worker():
    """SIGKILL to the worker that this process started, as the kernel does when memory is out."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for children in Path("/proc/self/task").glob("*/children"):
            for number in children.read_text().split():
                if b"tunesmith.evaluation.worker" in Path(f"/proc/{number}/cmdline").read_bytes():
                    os.kill(int(number), signal.SIGKILL)
                    return
        time.sleep(0.01)


def test_the_ten_prompts_word_for_word():
    prompts = read_prompts(recipe_with())
    assert DEFAULT_PROMPTS.name == "prompts.yaml" and len(prompts) == len(set(prompts)) == 10
    assert prompts[0] == "Explain quantum computing to a 10-year-old."
    assert prompts[4] == "Continue the Fibonacci sequence: 1, 1, 2, 3, 5, 8,"
    assert prompts[9] == "What are three tips for learning a new language?"


def test_worker_loads_no_torch():
    code = "import tunesmith.evaluation.worker, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
