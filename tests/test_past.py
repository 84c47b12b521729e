"""The past stays readable: what version 0.1 made is opened, continued and compared (tests/data/version-0.1)."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunesmith import console, past
from tunesmith.decides import as_begun, data_settings, trained_settings
from tunesmith.errors import RecipeError, ResumeError
from tunesmith.pipeline import run_stages
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import read_recipe
from tunesmith.record import made_from, read_record
from tunesmith.runs import MADE_BY, Run
from tunesmith.stages import STAGES, stage_of
from tunesmith.study.compare import compare
from tunesmith.tokens.order import rows_of_epoch
from tunesmith.tokens.rows import load_rows

MADE = Path(__file__).parent / "data" / "version-0.1"


def unpack(folder):
    """The project of version 0.1, moved to `folder`: base, rows, recipe, a finished and a half-done run."""
    shutil.copytree(MADE, folder)
    for name in ("finished", "half"):
        recipe = folder / name / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("{FOLDER}", str(folder)))
    return folder


@pytest.fixture
def made(tmp_path):
    """A project of version 0.1 of the test's own."""
    return unpack(tmp_path / "project")


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """One whose half-done run this version took to its end; with what was said."""
    folder = unpack(tmp_path_factory.mktemp("past") / "project")
    with pytest.MonkeyPatch.context() as patch, console.console.capture() as said:
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        assert run_stages(read_recipe(folder / "recipe.yaml"), Run(folder / "half")).done
    return folder, said.get()


def losses(run):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {(line["step"], key): line[key] for line in lines for key in ("loss", "held_out_loss") if key in line}


@pytest.mark.parametrize("by", ["recipe", "folder"])
def test_a_finished_run_stands_as_it_is(made, capsys, by):
    run = Run(made / "finished")
    before = {path: path.read_bytes() for folder in run.stage_folders for path in folder.rglob("*") if path.is_file()}
    result = run_stages(read_recipe(made / "recipe.yaml" if by == "recipe" else run.recipe), run)
    assert result.done and [line for line in capsys.readouterr().err.splitlines() if line.endswith("already done")] == [
        f"{stage.verb:<9} already done" for stage in STAGES if not stage.scores
    ]
    assert all(path.read_bytes() == text for path, text in before.items()) and len(before) > 20
    assert run.recipe.read_text().startswith(MADE_BY)
    assert read_recipe(run.recipe).data.dedup == "words"  # what 0.1 called exact
    assert run_stages(read_recipe(run.recipe), run).done


def test_a_half_done_run_goes_on_and_ends_where_the_finished_one_did(continued):
    made, said = continued
    run, finished = Run(made / "half"), Run(made / "finished")
    assert "prepare   already done" in said and "going on from step-000006" in said
    assert "versions.tunesmith: 0.1.0 -> " in said  # so it is said that the bits may differ
    ours, theirs = losses(run), losses(finished)
    assert ours.keys() == theirs.keys()
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-4)
    adapters = [load_file(r.adapter / "adapter_model.safetensors") for r in (run, finished)]
    assert adapters[0].keys() == adapters[1].keys()
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(tensor, adapters[1][name], rtol=1e-2, atol=1e-3)
    assert read_record(run.adapter).counts["interruptions"] == 1


def test_runs_of_both_versions_are_compared(continued):
    made, _ = continued
    page = compare([str(made / "finished"), str(made / "half"), "base"], made / "report.html").read_text()
    assert "finished" in page and "half" in page


def test_a_changed_recipe_is_still_refused_by_name(made):
    with pytest.raises(ResumeError, match=r"train\.lr: 0\.01 -> 0\.02"):
        run_stages(read_recipe(made / "recipe.yaml", ["train.lr=2e-2"]), Run(made / "half"))
    with pytest.raises(ResumeError, match=r"seed: 0 -> 7"):
        run_stages(read_recipe(made / "recipe.yaml", ["seed=7"]), Run(made / "half"))


def test_a_new_field_at_its_default_redoes_nothing_and_a_change_does(made):
    run, recipe = Run(made / "finished"), as_begun(read_recipe(made / "recipe.yaml"), Run(made / "finished"))
    for stage in filter(lambda stage: stage.is_wanted(recipe), STAGES):
        record = read_record(run.path / stage.folder)
        settings, inputs = stage.load_decides()(recipe, run, record.inputs.get("base", ""))
        assert made_from(record, settings, inputs), stage.verb
    record = read_record(run.adapter)
    settings, inputs = stage_of("train").load_decides()(recipe, run, record.inputs["base"])
    younger = {**settings, "train": {name: value for name, value in settings["train"].items() if name != "clip"}}
    assert made_from(record, younger, inputs)  # as if 0.1 had known a field that this version has at its default
    assert not made_from(record, {**settings, "train": settings["train"] | {"clip": 0.5}}, inputs)


@pytest.mark.parametrize("change", ["data.dedup=near", "data.decontaminate=true"])
def test_a_default_that_has_changed_is_what_it_was_in_runs_begun_before(made, change):
    """`exact`, and no check of leaks, of a run of the last version: neither refused nor made anew; asked for, it is."""
    record_file, recipe_file = made / "half" / "data" / "record.json", made / "half" / "recipe.yaml"
    raw = json.loads(record_file.read_text())
    raw["versions"]["tunesmith"] = "0.2.0"
    assert raw["settings"]["data"]["dedup"] == "exact" and "decontaminate" not in raw["settings"]["data"]
    record_file.write_text(json.dumps(raw | {"proofs": []}))
    text = recipe_file.read_text()
    assert "dedup: exact" in text and "decontaminate" not in text
    for path in (made / "recipe.yaml", recipe_file):
        now = as_begun(read_recipe(path), Run(made / "half"))
        assert (now.data.dedup, now.data.decontaminate) == ("exact", False)
    record, asked = read_record(made / "half" / "data"), read_recipe(made / "recipe.yaml")
    assert asked.data.dedup == "near" and asked.data.decontaminate
    assert made_from(record, data_settings(now), record.inputs)
    other = as_begun(read_recipe(made / "recipe.yaml", [change]), Run(made / "half"))
    assert not made_from(record, data_settings(other), record.inputs)
    assert as_begun(asked, Run(made / "none")) == asked


def test_a_run_begun_before_there_was_a_lookahead_keeps_the_order_of_its_rows(made):
    """Another order is refused by name, of what is half done and of what is finished; a new run has the new one."""
    half, finished, asked = Run(made / "half"), Run(made / "finished"), read_recipe(made / "recipe.yaml")
    assert "packing_lookahead" not in half.recipe.read_text() and asked.train.packing_lookahead == 64
    for path in (made / "recipe.yaml", half.recipe):
        assert as_begun(read_recipe(path), half).train.packing_lookahead == 0
    assert as_begun(asked, Run(made / "none")) == asked
    lengths = load_rows(half.data)[0].lengths_N.tolist()
    now, before = (rows_of_epoch(lengths, train, 0, 0) for train in (asked.train, as_begun(asked, half).train))
    assert now != before  # else nothing is shown by its going on as it began
    other = read_recipe(made / "recipe.yaml", ["train.packing_lookahead=64"])
    with pytest.raises(ResumeError, match=r"train\.packing_lookahead: 0 -> 64"):
        run_stages(other, half)
    record, settings = read_record(finished.adapter), trained_settings(as_begun(asked, finished))
    assert made_from(record, settings, record.inputs)
    assert not made_from(record, trained_settings(as_begun(other, finished)), record.inputs)


def test_a_state_of_another_shape_stays_as_it_is():
    for raw in ({}, {"decides": []}, {"decides": {"settings": None}}, {"decides": {"settings": {"train": 1}}}):
        assert past.state_as_now(raw) == raw


def test_a_field_taken_out_is_read_with_a_word_and_refused_where_it_asks_for_something(made, capsys):
    assert isinstance(read_recipe(made / "recipe.yaml"), Recipe)
    assert "trust_remote_code no longer counts" in capsys.readouterr().err
    with pytest.raises(RecipeError, match=r"trust_remote_code is True: code that comes with a base is never run"):
        read_recipe(made / "recipe.yaml", ["trust_remote_code=true"])


def test_the_prefixes_of_earlier_recipes_redo_nothing(made, tmp_path, capsys):
    """export.prefixes became export.positions: read with a word, whatever it says, and no part of what stands."""
    record = read_record(made / "finished" / "gguf")
    assert json.loads((MADE / "finished" / "gguf" / "record.json").read_text())["settings"]["export"]["prefixes"] == 8
    assert "prefixes" not in record.settings["export"]
    recipe = read_recipe(made / "recipe.yaml", ["export.prefixes=99"])
    assert "export.prefixes no longer counts; whole rows are compared" in " ".join(capsys.readouterr().err.split())
    assert (recipe.export.positions, recipe.export.gguf) == (2000, ("F16", "Q8_0"))
    younger = json.loads((MADE / "finished" / "gguf" / "record.json").read_text())
    younger["versions"]["tunesmith"] = "0.2.0"
    assert "prefixes" not in past.record_as_now(younger | {"proofs": []})["settings"]["export"]
    with pytest.raises(RecipeError, match=r"export\.prefix is no setting"):
        read_recipe(made / "recipe.yaml", ["export.prefix=99"])


def test_a_proof_that_0_1_left_out_is_known_as_skipped():
    raw = json.loads((MADE / "finished" / "model" / "record.json").read_text())
    (done,) = past.record_as_now(raw)["proofs"]
    assert done["skipped_because"] is None and done["value"] <= done["limit"] and done["positions"] > 100
    (skipped,) = past.record_as_now(raw | {"counts": {"proof": None}})["proofs"]
    assert skipped["value"] is None and re.search("too little memory", skipped["skipped_because"])
