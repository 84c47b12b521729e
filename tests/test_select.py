"""Which rows are trained on: each rule alone, the stage that scores, and a run from rows to adapter."""

import json

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet
import pytest
import torch
from small_project import write_project
from tiny import write_rows
from training_runs import conversations, prepare_rows, recipe_with, same_adapters

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.data.select import (
    alike_rows,
    difficult_rows,
    kept_count,
    log_weights,
    longest_rows,
    random_rows,
    repeated,
)
from tunesmith.decides import data_settings, trained_settings
from tunesmith.errors import DataError, RecipeError, ResumeError
from tunesmith.fresh import NewStart
from tunesmith.inventory import standing_of
from tunesmith.model.base import head, hidden_states, load_base
from tunesmith.model.batch import Batching
from tunesmith.model.loss import loss_sum
from tunesmith.pipeline import run_stages
from tunesmith.recipe import SelectConfig
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import Run
from tunesmith.stages import STAGES, stage_of
from tunesmith.stale import needs_differ
from tunesmith.tokens.mask import encode
from tunesmith.tokens.rows import RowWriter, load_rows, map_rows
from tunesmith.tokens.selected import selected_rows
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.training.score import answers_alone, difficulty, opening_ids

CPU = torch.device("cpu")


def test_a_random_share_is_exact_and_the_same_each_time():
    kept = random_rows(1000, 500, seed=3)
    assert len(kept) == len(set(kept.tolist())) == 500 and (np.diff(kept) > 0).all()
    assert kept.tolist() == random_rows(1000, 500, seed=3).tolist() != random_rows(1000, 500, seed=4).tolist()
    assert random_rows(10, 4, seed=0).tolist() == PINNED  # of no version of numpy: this is written in runs
    assert abs(kept.mean() - 499.5) < 40  # from everywhere: one standard error is 9


PINNED = [1, 2, 3, 4]


def test_the_longest_answers_are_kept_and_of_two_alike_the_first():
    assert longest_rows(np.array([5, 9, 9, 1, 9]), 2).tolist() == [1, 2]


def test_a_share_is_of_rows_and_a_number_is_a_number():
    assert [kept_count(keep, 100) for keep in (0.29, 1.0, 0.001, 7, 700)] == [29, 100, 1, 7, 100]


def test_the_most_difficult_are_kept_and_misled_ones_are_not():
    found = np.array([0.5, 1.2, 0.9, 1.0, np.nan, 0.9, 0.99])
    assert difficult_rows(found, 3).tolist() == [2, 5, 6]
    assert difficult_rows(found, 6).tolist() == [0, 2, 5, 6]


def test_weights_repeat_rows_and_take_an_exact_part():
    times = np.array([2.0] * 4 + [0.5] * 100 + [1.0] * 3 + [2.5] * 2)
    found = repeated(np.arange(len(times)), times, seed=1)
    each = np.bincount(found, minlength=len(times))
    assert each[:4].tolist() == [2] * 4 and each[4:104].sum() == 50 and each[4:104].max() == 1
    assert each[104:107].tolist() == [1] * 3 and sorted(each[107:]) == [2, 3]
    assert repeated(np.array([0, 5, 7]), np.full(9, 2.0), seed=1).tolist() == [0, 0, 5, 5, 7, 7]


COOKING = "boil the pasta in salted water then fry garlic in oil and add the sauce with {} spoons of salt"
LAW = "the tenant shall pay rent to the landlord under clause {} of the lease and give notice before leaving"


def test_rows_like_the_examples_are_drawn_out_of_a_mixed_set():
    texts = [(COOKING if number % 4 == 0 else LAW).format(number) for number in range(200)]
    examples = [f"fry the {what} in oil with garlic and salt, then boil water" for what in ("fish", "onion", "egg")]
    weights = log_weights(lambda: texts, examples)
    assert set(alike_rows(weights, 50, seed=0).tolist()) == set(range(0, 200, 4))
    more = alike_rows(weights, 60, seed=0)
    assert set(range(0, 200, 4)) < set(more.tolist())
    assert more.tolist() == alike_rows(weights, 60, seed=0).tolist()
    level = np.zeros(200)  # nothing to choose by: chance alone, and another one with another seed
    assert alike_rows(level, 50, 0).tolist() != alike_rows(level, 50, 1).tolist()
    assert abs(alike_rows(level, 100, 0).mean() - 99.5) < 15


def test_an_answer_alone_comes_after_the_templates_opening(tiny_base, tmp_path):
    rows = load_rows(prepare_rows(tmp_path / "run", tiny_base, rows=5, held_out=1).data)[0]
    alone, row_of = answers_alone(rows, [7, 8])
    answers = [sum(turn.role == "assistant" for turn in row.turns) for row in conversations(5)]
    assert np.bincount(row_of).tolist() == answers and max(answers) > 1
    assert alone.supervised_T.sum() == rows.supervised_N.sum() == len(alone.tokens_T) - 2 * len(alone)
    assert alone.tokens_T[alone.supervised_T].tolist() == (
        rows.tokens_T[: rows.offsets_N1[-1]][rows.supervised_T[: rows.offsets_N1[-1]]].tolist()
    )
    assert all(alone.tokens_T[start : start + 2].tolist() == [7, 8] for start in alone.offsets_N1[:-1])


COLOURS = {"Blood is": "red", "Grass is": "green", "The sea is": "blue", "Coal is": "black", "Snow is": "white"}
PAIRS = list(COLOURS.items())


def rows_from(folder, tokenizer, pairs):
    folder.mkdir()
    with RowWriter(folder) as writer:
        for question, answer in pairs:
            row = Conversation((Turn("user", question), Turn("assistant", answer)), "")
            encoded = encode(tokenizer, row, system=None, date="2026-01-01")
            writer.add(encoded.ids, encoded.supervised, encoded.answer_bytes)
    return map_rows(folder)


def test_an_answer_that_follows_from_its_question_is_easier_than_one_that_does_not(tiny_base, tmp_path):
    """A tiny base that has learned five answers: with their questions they are likely, with others' they are not."""
    model, tokenizer = load_base(tiny_base, precision="fp32", device=CPU), load_tokenizer(tiny_base)
    batching = Batching(400, 100, CPU, kernel=False, static=False)
    rows = rows_from(tmp_path / "right", tokenizer, PAIRS)
    batch = next(batching.micro_batches(rows, range(len(rows))))
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
        loss = loss_sum(hidden_TD[batch.at_S], head(model), batch.targets_S) / len(batch.at_S)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    others = [(question, PAIRS[number - 1][1]) for number, (question, _) in enumerate(PAIRS)]
    mixed = rows_from(tmp_path / "mixed", tokenizer, PAIRS + others)
    recipe = recipe_with()
    opening = opening_ids(tokenizer, recipe, mixed)
    assert tokenizer.decode(opening).endswith("<|im_start|>assistant\n")
    found = difficulty(model, mixed, opening, batching)
    right, wrong = found[:5], found[5:]
    assert right.max() < 0.7 and wrong.min() > 0.9, found
    packed_alone = [difficulty(model, mixed.slice(row, row + 1), opening, batching)[0] for row in range(10)]
    assert np.allclose(found, packed_alone, atol=1e-4)


def project(folder, base, select, **more):
    data = f"{{sources: [{{path: rows.jsonl}}], held_out: 0.25, select: {select}}}"
    return write_project(folder, base, data=data, export="{gguf: []}", **more)


def test_a_run_trains_on_the_rows_that_are_hardest_for_its_base(tiny_base, tmp_path, capsys):
    path, run = project(tmp_path, tiny_base, "{by: difficulty, keep: 0.9}"), Run(tmp_path / "run")
    recipe = read_recipe(path)
    run_stages(recipe, run, STAGES[:3])
    rows, scores = load_rows(run.data)[0], np.load(run.scores / "scores.npy")
    wanted = difficult_rows(scores, kept_count(0.9, len(rows)))
    assert 2 <= len(wanted) < len(rows) and selected_rows(recipe, run, rows).tolist() == wanted.tolist()
    said = read_record(run.adapter).counts["selected"]
    assert (said["rows"], said["of"], said["by"]) == (len(wanted), len(rows), "difficulty")
    tokens = sum(line.get("tokens", 0) for line in map(json.loads, run.metrics.read_text().splitlines()))
    assert tokens == 3 * rows.lengths_N[wanted].sum() == 3 * said["tokens_an_epoch"]  # of three epochs
    assert "scores/scores.npy" in json.loads(run.manifest.read_text())["files"]
    before = {folder: read_record(folder) for folder in (run.data, run.scores)}
    capsys.readouterr()
    run_stages(recipe, run, STAGES[:3])
    assert "score     already done" in capsys.readouterr().err
    fewer = read_recipe(path, ["data.select.keep=2"])
    with pytest.raises(ResumeError, match=r"data\.select\.keep: 0\.9 -> 2"):
        run_stages(fewer, run, STAGES[:3])
    assert standing_of(run).says == "train is done, merge comes next"
    run_stages(fewer, run, STAGES[:3], anew=NewStart(run, True, lambda _: True))
    assert read_record(run.adapter).counts["selected"]["rows"] == 2
    assert before == {folder: read_record(folder) for folder in (run.data, run.scores)}
    with pytest.raises(ResumeError, match=r"data\.select\.by: difficulty -> likeness"):  # before anything is scored
        like = ["data.select={by: likeness, keep: 2, like: rows.jsonl}"]
        run_stages(read_recipe(path, like), run, STAGES[:3], lambda stage: pytest.fail(stage.verb))


def test_a_killed_run_goes_on_without_scoring_again(tiny_base, tmp_path):
    write_rows(tmp_path / "like.jsonl", [["a gradient is the slope of the loss", "and a step follows it"]])
    path = project(tmp_path, tiny_base, "{by: likeness, keep: 6, like: like.jsonl}", checkpoint="{every: 1 steps}")
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    run_stages(read_recipe(path), whole, STAGES[:3])
    assert read_record(whole.scores).counts["examples"] == 1 and "like" in read_record(whole.scores).inputs
    assert run_stages(read_recipe(path, ["train.stop_after=1 steps"]), cut, STAGES[:3]).paused
    scored = read_record(cut.scores)
    (tmp_path / "like.jsonl").unlink()  # what was scored with is not needed any more
    assert run_stages(read_recipe(path), cut, STAGES[:3]).done
    same_adapters(whole, cut)
    assert read_record(cut.scores) == scored
    assert read_record(cut.adapter).counts["selected"] == read_record(whole.adapter).counts["selected"]


def test_examples_without_a_word_are_none(tiny_base, tmp_path):
    """The scores were no numbers, and the stage was done."""
    (tmp_path / "like.jsonl").write_text('{"question": " ", "answer": ""}\n')
    path = project(tmp_path, tiny_base, "{by: likeness, keep: 6, like: like.jsonl}")
    with pytest.raises(DataError, match=r"data\.select\.like: no row of .*like\.jsonl is a conversation"):
        run_stages(read_recipe(path), Run(tmp_path / "run"), STAGES[:2])


def test_a_source_is_trained_on_as_often_as_it_weighs(tiny_base, tmp_path):
    write_project(tmp_path, tiny_base)
    write_rows(tmp_path / "more.jsonl", [[f"What is {word} twice?", f"It is {word} {word}."] for _, word in PAIRS])
    path, run = tmp_path / "recipe.yaml", Run(tmp_path / "run")
    changes = [
        "data.sources=[{path: rows.jsonl, weight: 0.5}, {path: more.jsonl, weight: 2}]", "data.held_out=0.1",
        "data.select={by: longest, keep: 1.0}",
    ]  # fmt: skip
    recipe = read_recipe(path, changes)
    run_stages(recipe, run, STAGES[:1])
    rows = load_rows(run.data)[0]
    of = pyarrow.parquet.read_table(run.data / "rows.parquet").filter(pc.field("split") == "train")["source"].to_numpy()
    each = np.bincount(selected_rows(recipe, run, rows), minlength=len(rows))
    assert set(each[of == 1]) == {2} and each[of == 0].sum() == round((of == 0).sum() / 2) and each[of == 0].max() == 1
    heavier = read_recipe(path, [changes[0].replace("2", "3"), changes[1]])
    assert data_settings(heavier) == data_settings(recipe) == data_settings(read_recipe(path, changes[:2]))
    assert "data.sources[].weight" in " ".join(
        needs_differ((trained_settings(recipe), {}), (trained_settings(heavier), {}))
    )


def test_a_selection_is_asked_for_in_full(tiny_base, tmp_path):
    for wrong in ("{by: likeness}", "{by: random, like: rows.jsonl}"):
        with pytest.raises(RecipeError, match="likeness, and nothing else, takes one"):
            read_recipe(project(tmp_path, tiny_base, wrong))
    with pytest.raises(RecipeError, match="asks for no scores"):
        run_stages(
            read_recipe(project(tmp_path, tiny_base, "{by: random}")), Run(tmp_path / "run"), [stage_of("score")]
        )


@pytest.mark.parametrize("keep", ["true", "0", "1.5", "-2", ".inf", "many"])
def test_what_is_no_share_and_no_number_of_rows_is_said_once_in_words(tmp_path, keep):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: a\nbase: builtin:smollm2-135m-instruct\n"
        f"data: {{sources: [{{path: a.jsonl}}], select: {{by: random, keep: {keep}}}}}\n"
    )
    with pytest.raises(RecipeError, match="neither a share up to 1") as error:
        read_recipe(recipe)
    assert "has a problem:" in str(error.value) and "constrained" not in str(error.value)


def test_a_share_and_a_number_of_rows_in_quotes_are_read():
    assert [SelectConfig(by="random", keep=keep).keep for keep in ("0.5", "7", 7.0, 1)] == [0.5, 7, 7, 1]
