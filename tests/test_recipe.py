"""Recipes: every one validates, problems come all at once with file and line, YAML's traps are met."""

import json
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest
import yaml

from tunesmith.data.read import conversations
from tunesmith.decides import missing_files, read_prompts, source_files
from tunesmith.errors import RecipeError, TunesmithError
from tunesmith.files import DRAFT, beside
from tunesmith.recipe import LONGEST_NAME, GgufType, Recipe
from tunesmith.recipe_file import dump_recipe, read_recipe, schema_text
from tunesmith.recipe_problems import paths
from tunesmith.runs import Run
from tunesmith.values import cadence
from tunesmith.weights.locate import locate_base

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


@pytest.mark.parametrize("key", ["source", "share"])
def test_a_key_that_has_the_name_of_an_alternative_is_the_users_own(tmp_path, key):
    text = f"name: x\nbase: y\ndata:\n  {key}: x\n"
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    said = str(caught.value)
    assert f"data.{key} is no setting" in said and "data is no setting" not in said
    assert ("did you mean sources?" in said) == (key == "source")


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
        ("train: {stop_after: 0}", 'train.stop_after: "0" must be more than 0; write it as 200 steps'),
        ("train: {stop_after: -3}", '"-3" must be more than 0'),
        ("checkpoint: {every: 0s}", '"0s" must be more than 0'),
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


PEERS = {
    "learning_rate": "train.lr", "batch_size": "train.tokens_per_step", "lora_r": "lora.rank", "model": "base",
    "gradient_accumulation_steps": "train.tokens_per_step", "num_epochs": "train.epochs", "lr": "train.lr",
    "max_seq_length": "train.max_length", "load_best": "", "held_out": "data.held_out", "learnin_rate": "train.lr",
}  # fmt: skip
"""What the peers' users type -> the setting that is meant."""


@pytest.mark.parametrize(("key", "meant"), PEERS.items())
def test_the_names_of_other_tools_lead_to_the_setting(tmp_path, key, meant):
    said = rf"did you mean {meant}( \(a step is counted in tokens|\?)" if meant else "known here: name, base, data"
    with pytest.raises(RecipeError, match=rf"- {key} is no setting; {said}"):
        read(tmp_path, MINIMAL + f"{key}: 3\n")
    with pytest.raises(RecipeError, match=rf"(?s)- {key} is no setting; {said}.*\(--set {key}=3\)"):
        read(tmp_path, MINIMAL, f"{key}=3")


PEERS_ONLY = {
    "template": "the base's own", "sample_packing": "always packed", "load_in_4bit": "cannot be trained yet",
    "load_in_4_bit": "cannot be trained yet", "optim": "always AdamW", "finetuning_type": "a LoRA adapter",
    "flash_attn": "FlashAttention is used by itself", "logging_steps": "every step", "wandb_project": "nothing is sent",
    "gpu_memory_utilization": "train.micro_batch_tokens",
}  # fmt: skip
"""What only the peers have a setting for -> why none is needed here."""


@pytest.mark.parametrize(("key", "reason"), PEERS_ONLY.items())
def test_a_setting_that_only_others_need_is_to_be_left_out(tmp_path, key, reason):
    for said in (key, f"train.{key}"):
        with pytest.raises(RecipeError, match=rf"- {said} is no setting; leave it out: .*{reason}"):
            read(tmp_path, MINIMAL, f"{said}=x")


def test_what_is_said_by_another_name_is_not_missing_too(tmp_path):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, "model: b\ndataset: rows.jsonl\nrun_name: a\n")
    assert "3 problems" in caught.value.what and "is missing" not in caught.value.what
    with pytest.raises(RecipeError, match=r"(?s)data is missing.*val_set_size is no setting"):
        read(tmp_path, "name: a\nbase: b\nval_set_size: 0.1\n")


def test_wrong_values_are_said_in_our_own_words(tmp_path):
    """Of every setting, with values of every kind: none of pydantic's sentences, which nobody here wrote."""
    values = ["", "x", -1, 0, 1.5, "9" * 300, [], ["x"], {}, {"x": 1}, None, True, 2**60]
    foreign, refused = re.compile(r"(?i)\b(input|should|string|valid|type=|got|pydantic|ctx)\b"), 0
    for path, _ in paths():
        for value in values:
            try:
                read(tmp_path, MINIMAL, f"{path}={yaml.safe_dump(value, default_flow_style=True)}")
            except RecipeError as error:
                refused += 1
                said = str(error).replace("--set", "").split(" (--set")[0]
                assert not foreign.search(said), f"{path}={value!r}: {error}"
    assert refused > 350


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


NO_VALUES = {
    "2026-02-30": "2026-02-30 cannot be read",
    "9" * 5000: "a number of 5,000 digits",
    "0x" + "f" * 5000: "a number of 5,002 digits",
    "&a [*a]": "in themselves",
    "&a {b: *a}": "in themselves",
    "&a {<<: *a}": "in themselves",
    "[" * 3000: "more than 50 deep",
    "{a: " * 3000: "more than 50 deep",
    "{? [a] : b}": "the key that is a list or mapping is no name",
    "{1: x}": 'the key "1" is no name',
    "{null: x}": 'the key "null" is no name',
    '{"\\uD800": x}': r'the key "\\ud800" is no name',
    "!!set {F16, Q8_0}": "a value of the type set",
    "!!binary YQ==": "a value of the type binary",
    "!!python/name:os.system": "a value of the type os.system",
    "!!int ''": "cannot be read",
    "!!bool maybe": "cannot be read",
    "!!timestamp soon": "cannot be read",
    "2026-01-01T00:00:00+99:99": "cannot be read",
    "a\x07b": r'it holds "\\u0007"',
}
"""What YAML or Python cannot make a value of, or a recipe cannot hold, and what is said of it."""


@pytest.mark.parametrize(("value", "problem"), NO_VALUES.items())
def test_what_no_recipe_can_hold_is_named_with_its_line_wherever_it_is_said(tmp_path, value, problem):
    with pytest.raises(RecipeError, match=rf"(?s)recipe is not valid YAML: .*{problem}.*recipe\.yaml, line 4\)"):
        read(tmp_path, f"{MINIMAL}chat: {value}\n")
    with pytest.raises(RecipeError, match=rf"(?s)^--set .*{problem}"):
        read(tmp_path, MINIMAL, f"chat={value}")
    path = tmp_path / "prompts.yaml"
    path.write_text(f"- Why?\n- {value}\n")
    with pytest.raises(
        RecipeError, match=rf"(?s)^evaluate\.prompts is not valid YAML: .*{problem}.*prompts\.yaml, line 2\)"
    ):
        read_prompts(read(tmp_path, MINIMAL, f"evaluate.prompts={path}"))


@pytest.mark.parametrize("levels", [6, 12])
def test_aliases_of_aliases_end_at_once(tmp_path, levels):
    laughs = "".join(f"x{n}: &x{n} [{f'*x{n - 1}, ' * 9}]\n" for n in range(1, levels))
    with pytest.raises(RecipeError, match="more than 100,000 values"):
        read(tmp_path, f"{MINIMAL}x0: &x0 [a]\n{laughs}")
    assert read(tmp_path, "name: &n a\nbase: *n\ndata: {sources: [{path: x}]}\n").base == "a"


def test_a_day_that_is_none_is_no_matter_of_spaces(tmp_path):
    with pytest.raises(RecipeError, match="write a value that there is") as caught:
        read(tmp_path, MINIMAL + "seed: 2026-02-30\n")
    assert "indent" not in caught.value.fix and caught.value.where.endswith("line 4")


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(MINIMAL.encode() + b"chat: {system: \xff}\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml cannot be read"):
        read_recipe(path)


@pytest.mark.parametrize("letter", ["\ud800", "\udfff", "\0"])
@pytest.mark.parametrize(
    "key", ["name", "base", "chat.system", "data.sources.0.path", "data.sources.0.columns.input", "lora.targets.0"]
)
def test_what_is_no_character_is_refused_in_every_text(tmp_path, key, letter):
    text = MINIMAL + "lora: {targets: [q_proj]}\n"
    escaped = json.dumps("a" + letter)
    with pytest.raises(RecipeError, match="which is no character of a text") as caught:
        read(tmp_path, text, f"{key}={escaped}")
    assert key.removesuffix(".0") in str(caught.value) and str(caught.value).encode()
    with pytest.raises(RecipeError, match="holds what is no character"):
        read(tmp_path, text, f"{key}=a{letter}")


def test_what_is_no_character_is_refused_in_a_prompt(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text('- Why?\n- "a\\uD800"\n')
    with pytest.raises(RecipeError, match=r'prompt 2 holds "\\ud800"(?s:.*)prompts\.yaml, line 2'):
        read_prompts(read(tmp_path, MINIMAL, f"evaluate.prompts={path}"))


def test_prompts_that_are_gone_are_named_with_how_to_name_others(tmp_path):
    with pytest.raises(RecipeError, match=r"gone\.yaml cannot be read: (?s:.*)--set evaluate\.prompts=PATH"):
        read_prompts(read(tmp_path, MINIMAL, f"evaluate.prompts={tmp_path / 'gone.yaml'}"))


def test_a_name_leaves_room_for_all_that_is_made_of_it(tmp_path):
    longest = "n" * LONGEST_NAME
    name = read(tmp_path, MINIMAL, f"name={longest}").name
    files = [beside(Run(tmp_path).gguf_file(name, kind), DRAFT) for kind in get_args(GgufType)]
    files.append(beside(Run(tmp_path).adapter_gguf(name), DRAFT))
    for file in [*files, beside(Path(name), DRAFT)]:
        (tmp_path / file.name).touch()
    assert max(len(file.name) for file in files) == 255
    with pytest.raises(RecipeError, match=rf"name is .*at most {LONGEST_NAME} characters"):
        read(tmp_path, MINIMAL, f"name={longest}n")


@pytest.mark.parametrize(
    "key", ["data.sources.0.limit", "train.max_length", "evaluate.max_tokens", "lora.rank", "chat.slots"]
)
def test_a_whole_number_that_no_counter_holds_is_refused(tmp_path, key):
    with pytest.raises(RecipeError, match=rf"{key}: it is more than 9,007,199,254,740,992"):
        read(tmp_path, MINIMAL, f"{key}={2**53 + 1}")


@pytest.mark.parametrize("seed", [2**32, 2**53])
def test_a_seed_that_torch_cannot_take_is_refused(tmp_path, seed):
    assert read(tmp_path, MINIMAL, f"seed={2**32 - 1}").seed == 2**32 - 1
    with pytest.raises(RecipeError, match=r"seed is .*less than 4294967296"):
        read(tmp_path, MINIMAL, f"seed={seed}")


@pytest.mark.parametrize("key", ["data.sources.0.path", "base", "evaluate.prompts"])
@pytest.mark.parametrize("letter", ["x", "/x", "x/", "./x"])
def test_a_path_that_no_file_system_can_hold_is_missing(tmp_path, key, letter):
    recipe = read(tmp_path, MINIMAL, f"{key}={letter * 3000}")
    assert len(missing_files(recipe)) == 1 + (key != "data.sources.0.path") - (key == "base" and letter[0] == "x")
    with pytest.raises(RecipeError if key == "evaluate.prompts" else TunesmithError):
        if key == "base":
            locate_base(recipe.base, unpack=shutil.copy)
        elif key == "evaluate.prompts":
            read_prompts(recipe)
        else:
            list(conversations(recipe.data.sources[0]))


@pytest.mark.parametrize("item", ["²", "9" * 5000])
def test_a_number_that_is_none_is_no_item(tmp_path, item):
    with pytest.raises(RecipeError, match="holds no settings"):
        read(tmp_path, MINIMAL, f"data.sources.{item}.limit=3")


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
    chosen = read_recipe(path, ["data.select={by: likeness, like: gone.jsonl}"])
    assert [name.endswith("gone.jsonl does not exist") for name in missing_files(chosen)] == [True]


@pytest.mark.parametrize(
    ("base", "taken"),
    [
        ("mybase", "{beside}/mybase"),
        ("./mybase", "{beside}/mybase"),
        ("org/mybase", "{beside}/org/mybase"),
        ("my.gguf", "{beside}/my.gguf"),
        ("~/mybase", "{home}/mybase"),
        ("~/none", "{home}/none"),
        ("org/name@main", "org/name@main"),
        ("only-here", "only-here"),
        ("builtin:smollm2-135m-instruct", "builtin:smollm2-135m-instruct"),
    ],
)
def test_a_base_beside_the_recipe_is_taken_as_data_are(tmp_path, monkeypatch, base, taken):
    beside, here = (tmp_path / name for name in ("beside", "here"))
    for folder in (beside / "mybase", beside / "org" / "mybase", here / "mybase", here / "only-here"):
        folder.mkdir(parents=True)
    (beside / "my.gguf").touch()
    (beside / "r.yaml").write_text(f"name: x\nbase: {base}\ndata: {{sources: [{{path: ~/rows.jsonl}}]}}\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe = read_recipe(beside / "r.yaml")
    assert recipe.base == taken.format(beside=beside.resolve(), home=tmp_path / "home")
    assert recipe.data.sources[0].path == f"{tmp_path}/home/rows.jsonl"


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
