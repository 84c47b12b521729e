"""Recipes: every one validates, problems come all at once with file and line, YAML's traps are met."""

from pathlib import Path

import pytest

from tunesmith.decides import missing_files, source_files
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe, cadence
from tunesmith.recipe_file import dump_recipe, read_recipe, schema_text

RECIPES = Path(__file__).parents[1] / "recipes"
MINIMAL = "name: a\nbase: b\ndata: {sources: [{path: rows.jsonl}]}\n"


def read(tmp_path, text, *changes):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return read_recipe(path, changes)


def test_every_recipe_validates_and_finds_its_files():
    paths = sorted(RECIPES.glob("*.yaml"))
    assert {"demo.yaml", "smoke.yaml", "finetome-llama-3.2-1b.yaml", "finetome-llama-3.2-3b.yaml"} <= {
        p.name for p in paths
    }
    for path in paths:
        assert missing_files(read_recipe(path)) == [], path
        assert path.read_text().startswith("# yaml-language-server: $schema=./schema.json\n"), path


def test_the_schema_is_current():
    assert (RECIPES / "schema.json").read_text() == schema_text(), (
        "type: tunesmith check --schema > recipes/schema.json"
    )


def test_every_field_is_explained():
    def unexplained(model):
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from unexplained(field.annotation)
            elif not (field.description or "").endswith("."):
                yield f"{model.__name__}.{name}"

    assert list(unexplained(Recipe)) == []


def test_three_mistakes_are_reported_at_once_with_file_and_line(tmp_path):
    text = MINIMAL + "lora:\n  rnak: 8\ntrain:\n  lr: fast\n  schedule: cosinus\n"
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    said = str(caught.value)
    assert caught.value.exit_code == 2 and "3 problems" in said
    assert "lora.rnak is no setting; did you mean rank?" in said and "recipe.yaml, line 5" in said
    assert 'train.lr is "fast", which is no number' in said and "recipe.yaml, line 7" in said
    assert "train.schedule" in said and "recipe.yaml, line 8" in said


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("train: {evaluate_every: 5min}", "counted in steps"),
        ("checkpoint: {every: soon}", "neither a number of steps nor a time"),
        ("data: {sources: []}", "data.sources"),
        ("train: {max_length: 4096, tokens_per_step: 1024}", "a step must hold the longest conversation"),
        ("evaluate: {gguf: F16}\nexport: {gguf: [Q8_0]}", "not in export.gguf"),
        ("export: {gguf: [Q3_K]}", "export.gguf.0"),
    ],
)
def test_one_mistake_is_named(tmp_path, line, problem):
    text = MINIMAL if not line.startswith("data") else MINIMAL.replace("data: {sources: [{path: rows.jsonl}]}\n", "")
    with pytest.raises(RecipeError, match=problem):
        read(tmp_path, text + line + "\n")


@pytest.mark.parametrize("text", ["", "- a\n", "name: [\n", "a: b: c\n"])
def test_what_is_no_recipe_is_said(tmp_path, text):
    with pytest.raises(RecipeError, match=r"not a mapping|not valid YAML"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "steps", "seconds"),
    [("200 steps", 200, None), ("1 step", 1, None), ("30s", None, 30), ("2.5min", None, 150), ("2 h", None, 7200)],
)
def test_a_cadence_is_steps_or_seconds(text, steps, seconds):
    assert cadence(text) == (steps, seconds)


@pytest.mark.parametrize("text", ["5", "0 steps", "1.5 steps", "-3min", "5 minutes", "0s", ""])
def test_what_is_no_cadence_is_refused(text):
    with pytest.raises(ValueError, match="steps"):
        cadence(text)


def test_yaml_traps(tmp_path):
    recipe = read(
        tmp_path, MINIMAL.replace("}]}", "}], dedup: off, date: 2026-02-03}") + "train: {lr: 2e-4, recompute: on}\n"
    )
    assert recipe.data.dedup == "off"  # YAML 1.1 reads it as false
    assert recipe.train.lr == 2e-4  # YAML 1.1 reads it as a text
    assert recipe.train.recompute == "on"  # YAML 1.1 reads it as true
    assert recipe.data.date == "2026-02-03"  # YAML reads it as a date
    with pytest.raises(RecipeError, match=r"data\.date"):
        read(tmp_path, MINIMAL, "data.date=yesterday")


def test_set_goes_through_the_same_checker(tmp_path):
    recipe = read(tmp_path, MINIMAL, "train.lr=1e-4", "data.sources.0.limit=3", "lora.targets=[q_proj, v_proj]")
    assert (recipe.train.lr, recipe.data.sources[0].limit) == (1e-4, 3)
    assert recipe.lora.targets == ("q_proj", "v_proj")
    for change, said in {
        "train.lrr=1": "did you mean lr",
        "train.lr": "not of the form a.b=value",
        "name.x=1": "holds no settings",
        "data.sources.4.limit=3": "holds no settings",
    }.items():
        with pytest.raises(RecipeError, match=said):
            read(tmp_path, MINIMAL, change)


def test_dumped_and_read_again_is_the_same(tmp_path):
    for path in RECIPES.glob("*.yaml"):
        recipe = read_recipe(path)
        assert read(tmp_path, dump_recipe(recipe)) == recipe


def test_paths_are_taken_from_the_recipes_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "rows.jsonl").write_text("{}\n")
    path = tmp_path / "sub" / "recipe.yaml"
    path.write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert read_recipe(path).data.sources[0].path == str((tmp_path / "sub" / "rows.jsonl").resolve())
    assert missing_files(read_recipe(path, ["data.sources.0.path=other.jsonl"])) == ["other.jsonl does not exist"]
    assert missing_files(read_recipe(path, ["data.sources.0.path=someone/chats"])) == []


def test_a_key_set_twice_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nbase: b\ndata:\n  sources: [{path: a}]\ntrain: {lr: 1e-4}\ntrain: {epochs: 2}\n")
    with pytest.raises(RecipeError, match="train is set twice, in lines 5 and 6"):
        read_recipe(path)


@pytest.mark.parametrize("line", ["train: {lr: .inf}", "train: {epochs: .nan}", "data: {sources: [{path: ''}]}"])
def test_what_is_no_number_or_no_path_is_refused(tmp_path, line):
    path = tmp_path / "r.yaml"
    data = "" if line.startswith("data") else "data: {sources: [{path: a}]}\n"
    path.write_text(f"name: x\nbase: b\n{data}{line}\n")
    with pytest.raises(RecipeError, match="line"):
        read_recipe(path)


def test_data_beside_a_recipe_in_a_folder_with_brackets_is_found(tmp_path):
    folder = tmp_path / "[1] my*data"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text("{}\n")
    path = folder / "r.yaml"
    path.write_text("name: x\nbase: b\ndata: {sources: [{path: a.jsonl}, {path: '*.jsonl'}]}\n")
    one, both = read_recipe(path).data.sources
    assert [p.name for p in source_files(one)] == ["a.jsonl"]
    assert [p.name for p in source_files(both)] == ["a.jsonl", "b.jsonl"]
