"""Evaluation on a real tiny GGUF: answers, speeds and memory in a process of its own, and the base answered once."""

import contextlib
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
from training_runs import prepare_rows, recipe_with, said_as_written

from tunesmith.decides import DEFAULT_PROMPTS, read_prompts
from tunesmith.errors import BaseError, ResourceError, ResumeError
from tunesmith.evaluation.evaluate import answer_prompts, evaluate
from tunesmith.evaluation.speeds import SPEEDS, quartiles
from tunesmith.gguf.read import convert
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference import threads
from tunesmith.inference.child import Child
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig
from tunesmith.recipe_file import dump_recipe
from tunesmith.runs import commit_stage
from tunesmith.study import measure
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
    scores, base_scores = (json.loads((run.evaluation / f"{p}scores.json").read_text()) for p in ("", "base-"))
    assert done and record.counts == {"tuned": scores, "base": base_scores}
    assert "held_out_loss" not in scores and "bits_per_byte" not in scores  # the training's are not the file's
    assert scores["session"] != base_scores["session"] and scores["measured_at"][:3] == "202"
    assert scores["threads"] == 1 and scores["processor"] and scores["xllamacpp"] == record.versions["xllamacpp"]
    gguf = run.gguf_file(recipe.name, "Q8_0")
    assert scores["file_bytes"] == gguf.stat().st_size and scores["answers"] == 3 and scores["gguf"] == "Q8_0"
    assert min(scores["first_token_s"], scores["prompt_per_s"], scores["tokens_per_s"]) > 0
    assert 20e6 < scores["peak_memory_bytes"] < 200e6  # the engine's alone: torch in this process needs more
    answers = lines(run.evaluation / "answers.jsonl")
    assert [answer["prompt"] for answer in answers] == read_prompts(recipe)
    for name in SPEEDS:
        assert scores["spread"][name] == [round(end, 3) for end in quartiles([a[name] for a in answers])]
        assert scores["spread"][name][0] <= scores[name] <= scores["spread"][name][1]
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
    asked = run.path.parent / "other.yaml"
    asked.write_text("- What is a step?\n")
    evaluate(recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"prompts": asked})}), run, base)
    assert [answer["prompt"] for answer in lines(run.evaluation / "base-answers.jsonl")] == ["What is a step?"]


def test_a_damaged_file_is_named_and_nothing_is_committed(run, recipe, tiny_base, own_cache):
    gguf = run.gguf_file(recipe.name, "Q8_0")
    gguf.write_bytes(b"XXXX" + gguf.read_bytes()[4:])
    said_as_written(run.gguf)
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


def test_a_prompt_that_is_too_long_is_named_and_what_helps(run, recipe, tmp_path):
    (tmp_path / "prompts.yaml").write_text(f"- Why?\n- {'long ' * 5000}\n")
    with pytest.raises(ResourceError, match=r"tokens, the context holds \d+: the prompt 'long long .*is too") as caught:
        answer_prompts(recipe, run.gguf_file(recipe.name, "Q8_0"), tmp_path)
    assert caught.value.fix == "shorten it in evaluate.prompts, or chat.system" and len(caught.value.what) < 200


def test_more_threads_than_cores_are_said_once(run, recipe, tiny_base, own_cache, capsys, monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    more = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"threads": 2})})
    evaluate(more, run, locate_base(str(tiny_base), convert))
    warned = "warning: evaluate.threads is 2, and 1 core can be used: answers will be slow; say 1\n"
    assert capsys.readouterr().err.count(warned) == 1


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


@pytest.fixture
def two_runs(run, recipe, tmp_path):
    """The run with its recipe, and a copy of it."""
    run.recipe.write_text(dump_recipe(recipe))
    shutil.copytree(run.path, tmp_path / "twin")
    return [str(run.path), str(tmp_path / "twin")]


def test_all_are_measured_in_turn_in_one_session(two_runs, monkeypatch):
    given = []
    monkeypatch.setattr(measure, "TOKENS", 5)
    give = Child.give_turn
    monkeypatch.setattr(Child, "give_turn", lambda self: (given.append(self.pid), give(self)))
    speeds = measure.measure_speeds([*two_runs, two_runs[0]])
    assert list(speeds) == two_runs and len({speed["session"] for speed in speeds.values()}) == 1
    for speed in speeds.values():
        assert min(speed[name] for name in SPEEDS) > 0 and 20e6 < speed["peak_memory_bytes"] < 200e6
        assert all(low <= high for low, high in speed["spread"].values()) and speed["rounds"] == measure.ROUNDS
    assert len(given) == measure.ROUNDS * 3 * 2  # three prompts, two candidates
    first, second = given[0], given[1]
    assert given[:6] == [first, second, second, first, first, second]  # who goes first changes
    assert len(set(given)) == measure.ROUNDS * 2  # new processes in each round
    assert not any(Path(f"/proc/{pid}").exists() for pid in given)


def test_the_base_is_measured_by_its_own_file(two_runs, tiny_base, own_cache, monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 1)
    recipe = Path(two_runs[0]) / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("base: tiny", f"base: {tiny_base}"))
    speeds = measure.measure_speeds([two_runs[0], "base"])
    assert set(speeds) == {two_runs[0], "base"} and len(list(own_cache.glob("base-gguf/*/*-Q8_0.gguf"))) == 1


def test_an_answer_that_is_timed_has_as_many_tokens_as_every_other(run, recipe):
    with Engine(run.gguf_file(recipe.name, "Q8_0"), threads=1, context=256) as engine:
        answer = engine.chat([{"role": "user", "content": "Why?"}], max_tokens=150, ignore_end=True)
        assert (answer.tokens, answer.stopped) == (150, False)


def test_what_cannot_be_measured_is_named(two_runs, run, recipe, monkeypatch):
    monkeypatch.setattr(measure, "free_memory_bytes", lambda: 500_000_000)
    with pytest.raises(ResourceError, match=r"2 models in turn needs 0\.6 GB of memory, 0\.5 are free"):
        measure.measure_speeds(two_runs)
    run.gguf_file(recipe.name, "Q8_0").unlink()
    with pytest.raises(ResumeError, match=r"there is no .*tiny-Q8_0\.gguf"):
        measure.measure_speeds(two_runs)
    with pytest.raises(ResumeError, match="is no run folder"):
        measure.measure_speeds(["nowhere"])


def test_a_worker_ends_with_its_parent(run, recipe, tmp_path):
    job = {"gguf": str(run.gguf_file(recipe.name, "Q8_0")), "prompts": ["Why?"] * 9, "system": None, "threads": 1,
           "max_tokens": 2000}  # fmt: skip
    code = (
        "import sys, json; from tunesmith.inference.child import Child\n"
        "child = Child('tunesmith.evaluation.worker', json.loads(sys.argv[1]), 'x')\n"
        "print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code, json.dumps(job)], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(1)
        parent.kill()
    deadline = time.monotonic() + 20
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone, maybe as we look
        while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
            assert time.monotonic() < deadline, "it goes on without its parent"
            time.sleep(0.05)


def test_an_error_of_a_child_is_the_same_error_here(tmp_path):
    job = {"gguf": str(tmp_path / "none.gguf"), "prompts": [], "system": None, "threads": 1, "max_tokens": 1}
    worker = Child("tunesmith.evaluation.worker", job, "none")
    with pytest.raises(BaseError, match=r"none\.gguf cannot be read") as caught:
        worker.read()
    assert "tunesmith export" in caught.value.fix and str(tmp_path) in caught.value.where
    worker.close()
    broken = Child("tunesmith.no_such_module", job, "none")
    broken.give_turn()
    with pytest.raises(ResourceError, match="ended with code 1"):
        broken.read()
    broken.close()
