"""The plan of `check`: what it says is what prepare and train then do; what it cannot know it does not say."""

import json

import pytest
from forked import completed as tunesmith
from small_project import write_project
from tiny import write_rows

from tunesmith.errors import BaseError, DataError
from tunesmith.gguf.read import convert
from tunesmith.machine import training_device
from tunesmith.planning import look
from tunesmith.planning.check import check_plan
from tunesmith.planning.plan import look_at_data, plan_of
from tunesmith.planning.speed import known_speed, time_one_pass
from tunesmith.planning.tokens import tokens_of
from tunesmith.recipe import DataConfig
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import Run
from tunesmith.tokens.prepare import prepare
from tunesmith.tokens.rows import load_rows
from tunesmith.training.train import _plan as steps_in_training
from tunesmith.weights.locate import locate_base


def planned(path, most=2000, changes=()):
    recipe = read_recipe(path, changes)
    tokens = tokens_of(recipe)
    return plan_of(recipe, Run(path.parent / "runs" / recipe.name), tokens, *look_at_data(recipe, tokens, most))


def write_mixed(folder):
    """Rows of which some are long, some the same, one has no answer and one is damaged."""
    rows = [(f"question {i}", "answer " * (1 + i % 9)) for i in range(120)]
    path = write_rows(folder / "rows.jsonl", [*rows, rows[0], rows[1], ("only a question",)])
    path.write_text(path.read_text() + "{broken\n")
    return path


@pytest.mark.parametrize("held_out", ["0.1", "{path: held.jsonl}"])
def test_the_plan_is_what_prepare_and_train_do(tmp_path, tiny_base, held_out):
    write_rows(tmp_path / "held.jsonl", [(f"held {i}", "yes") for i in range(7)])
    data = f"{{sources: [{{path: rows.jsonl}}], held_out: {held_out}}}"
    path = write_project(tmp_path, tiny_base, data=data)
    write_mixed(tmp_path)
    plan, recipe, run = planned(path), read_recipe(path), Run(tmp_path / "run")
    prepare(recipe, run, locate_base(str(tiny_base), convert))
    counts, (rows, _) = read_record(run.data).counts, load_rows(run.data)
    assert (plan.train_rows, plan.held_out_rows) == (counts["train_rows"], counts["held_out_rows"])
    assert plan.exact and plan.looks[0].rows == 124 and plan.longest == counts["longest"]
    exact = len(steps_in_training(rows, recipe.train, recipe.seed))
    assert abs(plan.steps - exact) <= 3 and abs(plan.tokens - rows.lengths_N.sum()) < 0.05 * plan.tokens
    reasons = {reason: len(where) for reason, where in plan.looks[0].dropped.items()}
    assert reasons.pop("says the same as an earlier row") == 2 and len(reasons) == 2
    said = "\n".join(check_plan(recipe, run))
    assert "dropped: 4 of the" in said and "rows.jsonl:123" in said and "rows: 124 in rows.jsonl" in said


def test_what_was_not_looked_at_is_extrapolated_and_said(tmp_path, tiny_base, monkeypatch):
    path = write_project(tmp_path, tiny_base)
    write_rows(tmp_path / "rows.jsonl", [(f"question {i}", "answer " * (1 + i % 9)) for i in range(3000)])
    whole, part = planned(path, 5000), planned(path, 100)
    assert part.looks[0].rows == 3000 and not part.exact and whole.exact  # counted, though not all were looked at
    assert abs(part.steps - whole.steps) < 0.1 * whole.steps
    monkeypatch.setattr(look, "COUNTING_S", 0)
    guess = planned(path, 100)
    assert not guess.looks[0].exact and 2000 < guess.looks[0].rows < 9000
    assert planned(path, 100, ["data.sources.0.limit=200"]).looks[0].rows == 200
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n{line[:-2]}\n{line[:-2]}\n" for line in lines))
    assert planned(path, 100).looks[0].rows < 30_000  # of 9,000: one that cannot be read is as long as another
    monkeypatch.setattr(look, "MOST_ROWS", 100)
    monkeypatch.setattr("tunesmith.planning.plan.MOST_ROWS", 100)
    lines = list(check_plan(read_recipe(path), Run(tmp_path / "run")))
    assert lines[0].startswith("rows: about ")


def test_without_the_tokenizer_tokens_are_a_guess(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = write_project(tmp_path, "no-such/base")
    lines = list(check_plan(read_recipe(path), Run(tmp_path / "run")))
    assert "(a guess, letters / 4: no-such/base is not on this machine" in lines[1]
    assert any(line.startswith("time: not known") for line in lines)
    assert "disk: not known: the base's weights are not on this machine" in lines


def test_few_steps_and_long_rows_are_said(tmp_path, tiny_base):
    path = write_project(tmp_path, tiny_base)
    write_mixed(tmp_path)
    said = "\n".join(check_plan(read_recipe(path, ["train.epochs=0.1", "train.max_length=20"]), Run(tmp_path / "run")))
    assert "too few steps: " in said and "rows have more than train.max_length 20 tokens" in said


def test_what_is_missing_is_named_with_exit_code_2(tmp_path, tiny_base):
    path = write_project(tmp_path, "./gone", evaluate="{prompts: gone.yaml}")
    done = tunesmith("check", str(path), "--set", "data.sources.0.path=gone.jsonl")
    assert done.returncode == 2 and done.stdout.startswith("# yaml-language-server")
    assert all(f"{name} does not exist" in done.stderr for name in ("gone.jsonl", "gone.yaml", "./gone"))


def test_check_prints_what_differs_or_every_setting(tmp_path, tiny_base):
    path = write_project(tmp_path, tiny_base)
    short, full = tunesmith("check", str(path)), tunesmith("check", str(path), "--full")
    assert short.returncode == full.returncode == 0 and short.stderr == full.stderr == ""
    assert "weight_decay" in full.stdout and "weight_decay" not in short.stdout and "rank: 4" in short.stdout
    for done, name in ((short, "short"), (full, "full")):  # what it prints is the recipe, the plan as comments
        (tmp_path / f"{name}.yaml").write_text(done.stdout)
        assert read_recipe(tmp_path / f"{name}.yaml") == read_recipe(path)
        assert done.stdout.splitlines()[-1] == "# disk: 0.0 GB at its fullest" or "# too few steps" in done.stdout


def test_no_row_that_can_be_used_and_a_base_that_cannot_are_errors(tmp_path, tiny_base):
    path = write_project(tmp_path, tiny_base)
    write_rows(tmp_path / "rows.jsonl", [("only a question",)] * 3)
    with pytest.raises(DataError, match=r"none of the 3 rows looked at can be used\. no assistant turn: 3 \(rows"):
        list(check_plan(read_recipe(path), Run(tmp_path / "run")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseError, match="no model folder"):
        list(check_plan(read_recipe(path, [f"base={tmp_path / 'empty'}"]), Run(tmp_path / "run")))


def test_speed_is_an_earlier_runs_or_one_timed_pass_and_never_guessed(tmp_path, tiny_base, own_cache):
    base, runs = locate_base(str(tiny_base), convert), tmp_path / "runs"
    run = Run(runs / "next")  # runs are looked for beside it, wherever that is
    assert known_speed(base, run) is None
    timed = time_one_pass(base, [30, 50])
    assert timed.tokens_per_s > 10 and known_speed(base, run).tokens_per_s == pytest.approx(timed.tokens_per_s, abs=1)
    for name, digest, device, speed in (
        ("mine", base.digest, training_device(), 123.0), ("other", "x", training_device(), 1.0),
        ("gpu", base.digest, "NVIDIA H100", 9e4),
    ):  # fmt: skip
        (runs / name / "adapter").mkdir(parents=True)
        record = {
            "stage": "adapter", "fingerprint": "", "settings": {}, "inputs": {"base": digest}, "outputs": {},
            "versions": {"tunesmith": "0.2.0"}, "counts": {"device": device, "tokens_per_s": speed}, "seconds": 1,
            "proofs": [],
        }  # fmt: skip
        (runs / name / "adapter" / "record.json").write_text(json.dumps(record))
    (runs / "damaged" / "adapter").mkdir(parents=True)
    (runs / "damaged" / "adapter" / "record.json").write_text("{")
    assert known_speed(base, run).tokens_per_s == 123 and "mine" in known_speed(base, run).source
    recipe = read_recipe(write_project(tmp_path, tiny_base))
    assert any("time: " in line and "mine had on this machine" in line for line in check_plan(recipe, run))


def test_check_knows_who_speaks(tmp_path):
    """Named speakers were rows that would be dropped, where prepare uses them."""
    rows = [{"messages": [{"role": "Ann", "content": f"q{n}"}, {"role": "Bob", "content": f"a{n}"}]} for n in range(3)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"path": str(tmp_path / "x.jsonl")}]
    data = DataConfig.model_validate({"sources": sources, "roles": {"Ann": "user", "Bob": "assistant"}})
    found = look.look_at(data.sources[0], lambda rows: [len(row.turns) for row in rows], data, set())
    assert (found.lengths, found.dropped) == ([2, 2, 2], {})
