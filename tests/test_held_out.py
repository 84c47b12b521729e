"""Held-out questions end a run and stand in its report; prompts that training has seen are marked, and lock nothing."""

import json
import re
import shutil

import pyarrow.parquet
import pytest
import yaml
from rich.cells import cell_len
from small_project import write_project

from tunesmith.api import EXAMPLES, to_serve
from tunesmith.ending import ending, told
from tunesmith.errors import RecipeError
from tunesmith.evaluation.evaluate import answer_prompts
from tunesmith.evaluation.rows import Asked, pick_asked, seen_in_training
from tunesmith.evaluation.speeds import SPEEDS
from tunesmith.evaluation.worker import ROOM
from tunesmith.inference.engine import Engine
from tunesmith.pipeline import run_stages
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import Run
from tunesmith.stages import STAGES
from tunesmith.study.asked import held_out_rows, remarks, seen
from tunesmith.study.compare import compare
from tunesmith.study.models import BASE_COLOUR, Model


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_base):
    """Recipe file and run of a small project."""
    folder = tmp_path_factory.mktemp("held-out")
    path = write_project(folder, tiny_base)
    run = Run(folder / "run")
    run_stages(read_recipe(path), run, STAGES)
    return path, run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(run, split):
    rows = pyarrow.parquet.read_table(run.data / "rows.parquet", filters=[("split", "=", split)])
    return [[message["content"] for message in messages] for messages in rows["messages"].to_pylist()]


def test_the_chat_offers_questions_of_the_data_to_who_has_them_alone(finished):
    path, run = finished
    asked = [row.question for row in pick_asked(run.data)]
    default = ("evaluate.prompts=default",)
    assert to_serve(run.path, None, default).examples == tuple(dict.fromkeys(asked))[: len(EXAMPLES)]
    assert to_serve(run.path, None, default, alone=False).examples == EXAMPLES
    prompts = path.parent / "two.yaml"
    prompts.write_text("- How?\n- Why?\n")
    named = (f"evaluate.prompts={prompts}",)
    assert all(to_serve(run.path, None, named, alone=alone).examples == ("How?", "Why?") for alone in (True, False))


def test_held_out_rows_are_asked_of_both_models_and_are_not_timed(finished):
    _, run = finished
    asked, held_out = pick_asked(run.data), texts(run, "held_out")
    assert [[row.question, row.expected] for row in asked] == [row[:2] for row in held_out]
    for prefix in ("", "base-"):
        found = lines(run.evaluation / f"{prefix}held-out.jsonl")
        assert [line["question"] for line in found] == [row.question for row in asked]
        assert all(line["text"] is not None and line["tokens"] <= 8 for line in found)
        assert json.loads((run.evaluation / f"{prefix}scores.json").read_text())["answers"] == 2
        assert len(lines(run.evaluation / f"{prefix}answers.jsonl")) == 2


def test_a_run_ends_in_three_questions_with_what_data_base_and_tuned_say(finished, monkeypatch, tmp_path):
    path, run = finished[0], Run(shutil.copytree(finished[1].path, tmp_path / "run"))
    for prefix, text in (("", "ours"), ("base-", "theirs")):
        file = run.evaluation / f"{prefix}held-out.jsonl"
        file.write_text("".join(json.dumps(line | {"text": text}) + "\n" for line in lines(file)))
    monkeypatch.setenv("COLUMNS", "60")
    said = ending(read_recipe(path), run).splitlines()
    assert said[0] == "3 held-out questions, which nobody trained on:"
    assert max(map(len, said[: said.index("small is ready:")])) <= 60
    for who in ("the data:", "base:", "tuned:"):
        assert sum(line.startswith(f"    {who}") for line in said) == 3
    assert [sum(re.fullmatch(f"    {who}: +{text}( ...)?", line) is not None for line in said) for who, text in (
        ("base", "theirs"), ("tuned", "ours"))] == [3, 3]  # fmt: skip
    question = pick_asked(run.data)[0].question
    assert "".join(question.split())[:40] in "".join("".join(said).split())


def test_a_long_question_ends_no_run_and_answers_end_near_the_datas(finished, tmp_path, capfd):
    path, run = finished
    recipe = read_recipe(path, ["evaluate.max_tokens=100"])
    said = [("Why?", "Because."), ("long " * 5000, "No."), ("And now?", "step " * 30)]
    asked = [Asked(f"r:{n}", [{"role": "user", "content": q}], a) for n, (q, a) in enumerate(said)]
    answer_prompts(recipe, run.gguf_file("small", "Q8_0"), tmp_path, asked)
    found, scores = lines(tmp_path / "held-out.jsonl"), json.loads((tmp_path / "scores.json").read_text())
    assert [(line["where"], line["question"], line["expected"]) for line in found] == [
        ("r:0", *said[0]), ("r:2", *said[2])
    ]  # fmt: skip
    with Engine(run.gguf_file("small", "Q8_0"), threads=1, context=512) as engine:
        most = [len(engine.tokenize(answer, special=False)) + ROOM for _, answer in (said[0], said[2])]
    assert most[0] < 50 < most[1]
    assert all(line["tokens"] == min(100, limit) or line["stopped"] for line, limit in zip(found, most, strict=True))
    assert scores["answers"] == 2 and scores["held_out_s"] > 0  # what is timed are the prompts
    assert "2 held-out questions answered in " in (err := capfd.readouterr().err)
    assert "1 longer than the context left out" in err


@pytest.mark.parametrize(("text", "first", "count"), [
    ("学习" * 200, "学习学习学习学习学习学习学", 24), ("ab " * 200, "ab ab ab ab ab ab ab ab ab", 12),
    ("x\x1b[2Jy\r", "x\ufffd[2Jy", 1), ("", "(nothing)", 1),
])  # fmt: skip
def test_a_text_is_folded_to_the_columns_it_takes_and_steers_no_terminal(monkeypatch, text, first, count):
    monkeypatch.setenv("COLUMNS", "40")
    found = told("base:", text).split("\n")
    assert found[0] == f"    base:     {first}" and len(found) == count
    assert max(map(cell_len, found)) <= 40


def test_ten_rows_are_spread_over_all(tmp_path):
    rows = [{"where": f"r:{i}", "split": "held_out", "messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": f"q{i}"},
        {"role": "assistant", "content": f"a{i}"}, {"role": "user", "content": "more"},
        {"role": "assistant", "content": "yes"}]} for i in range(41)]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    asked = pick_asked(tmp_path)
    assert [row.question for row in asked][::9] == ["q0", "q40"] and len(asked) == 10
    assert asked[0].messages[0]["content"] == "Be kind." and asked[0].expected == "a0"
    assert pick_asked(tmp_path / "none") == []


def test_prompts_named_later_redo_evaluate_alone_and_what_training_saw_is_marked(finished, tmp_path, capfd):
    path, run = finished
    (run.evaluation / "held-out.jsonl").read_text()
    before = {folder: read_record(folder) for folder in run.stage_folders[:-1]}
    known, question = "What is\u2028new, \x9b2J?", texts(run, "train")[0][0]
    prompts = tmp_path / "mine.yaml"
    prompts.write_text(yaml.safe_dump([known, f"  {question}\n"]))
    recipe = read_recipe(path, [f"evaluate.prompts={prompts}"])
    run_stages(recipe, run, STAGES)
    said = capfd.readouterr().err
    assert {folder: read_record(folder) for folder in run.stage_folders[:-1]} == before
    assert "evaluate  done" in said and "1 prompt is asked in training too: " in said
    for prefix in ("", "base-"):
        first, second = lines(run.evaluation / f"{prefix}answers.jsonl")
        assert "seen" not in first and second["seen"].startswith("rows.jsonl:")
        assert "is\\u2028new, \\u009b2J" in (run.evaluation / f"{prefix}answers.jsonl").read_text("utf-8")
        scores = json.loads((run.evaluation / f"{prefix}scores.json").read_text())
        assert scores["seen_in_training"] == scores["unseen"]["answers"] == 1 and "tokens_per_s" in scores["unseen"]
    assert seen_in_training(run.data, [question.upper()], "exact") == {}
    twins = [question.upper(), f"{question.lower()}?", "?!"]
    assert list(seen_in_training(run.data, twins, "words")) == twins[:2]
    page = compare([str(run.path), "base"], tmp_path / "page.html").read_text()
    assert "seen in training: rows.jsonl:" in page and "Held-out questions" in page and "expected: " in page
    remark = "run: 1 of 2 prompts was seen in training, so that the answer shows memory. All: 0 of 2 ended by"
    assert page.count(remark) == " ".join(capfd.readouterr().out.split()).count(remark) == 1
    prompts.unlink()  # all that stands needs it no more
    run_stages(recipe, run, STAGES)
    assert capfd.readouterr().err.count("already done") == 5
    with pytest.raises(RecipeError, match=r"mine\.yaml cannot be read"):
        run_stages(read_recipe(path, [f"evaluate.prompts={prompts}", "evaluate.max_tokens=9"]), run, STAGES)
    assert "still falling" in page or "later no better" in page or "never better" in page


def model(name, prompts, rows=(), colour="#3457d5"):
    speeds = dict.fromkeys(SPEEDS, 1.0)
    answers = [speeds | {"prompt": p, "text": "t", "stopped": True} | ({"seen": w} if w else {}) for p, w in prompts]
    held_out = [{"question": q, "expected": e, "text": f"{name} to {q}"} for q, e in rows]
    return Model(name, "base", colour, {}, answers, held_out, {}, "fp32")


def test_what_two_runs_were_asked_is_told_apart():
    one = model("one", [("p", "rows:3"), ("q", None)], [("Why?", "So."), ("Why?", "No."), ("How?", "Thus.")])
    two = model("two", [("p", None), ("r", "rows:4")], [("Why?", "No."), ("Who?", "She.")])
    base = model("base", [("p", "rows:3"), ("q", None)], colour=BASE_COLOUR)
    assert [(*row[:2], [found and found["text"] for found in row[2]]) for row in held_out_rows([one, two])] == [
        ("Why?", "So.", ["one to Why?", None]), ("Why?", "No.", ["one to Why?", "two to Why?"]),
        ("How?", "Thus.", ["one to How?", None]), ("Who?", "She.", [None, "two to Who?"]),
    ]  # fmt: skip
    assert seen([one, two, base]) == {"p": "rows:3 (one)", "r": "rows:4 (two)"}
    assert seen([one, base]) == {"p": "rows:3"}
    first, *others = remarks([one, two, base])
    assert first == "The prompts of these runs differ: 1 was asked of all models, 2 of some only."
    assert [other[:3] for other in others] == ["one", "two"]  # the base was trained on none
    assert "Without it: 1 of 1 ended by themselves" in others[0] and not list(remarks([model("x", [("p", None)])]))


def test_a_run_of_an_earlier_version_has_no_such_answers_and_is_read(finished, tmp_path):
    path, run = finished
    for name in ("held-out.jsonl", "base-held-out.jsonl"):
        (run.evaluation / name).rename(tmp_path / name)
    record = json.loads((run.evaluation / "record.json").read_text())
    kept = {name: output for name, output in record["outputs"].items() if "held-out" not in name}
    (run.evaluation / "record.json").write_text(json.dumps(record | {"outputs": kept}))
    assert ending(read_recipe(path), run).startswith("small is ready:")
    page = compare([str(run.path)], tmp_path / "page.html").read_text()
    assert "Held-out questions" not in page and "Answers" in page
