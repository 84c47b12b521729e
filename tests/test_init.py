"""`init`: a recipe that fits the data, whatever is typed; nothing typed is lost, nothing is overwritten."""

import os
import shlex
import subprocess
import sys

import pytest
from forked import completed as tunesmith
from tiny import save_base, write_rows

from tunesmith.errors import RecipeError, ResourceError
from tunesmith.pipeline import run_stages
from tunesmith.planning.fit import fit, unfitted
from tunesmith.planning.look import Look
from tunesmith.planning.starter import SMALL, Answers, write_starter
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import Run
from tunesmith.stages import STAGES
from tunesmith.tokens.rows import load_rows
from tunesmith.training.train import _plan as steps_in_training

CODE = "from tunesmith.cli import main; main()"
NOT_SEEN = unfitted("nobody looked")
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture
def chats(tmp_path):
    return write_rows(tmp_path / "chats.jsonl", [(f"What is {i}?", f"It is {i} and no more.") for i in range(60)])


def test_sixty_conversations_make_a_recipe_of_enough_steps_that_passes_check(tmp_path, chats, tiny_base):
    done = tunesmith("init", "chats.jsonl", "--base", str(tiny_base), "--yes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recipe, lines = read_recipe(tmp_path / "recipe.yaml"), done.stdout.splitlines()
    assert (recipe.name, recipe.base) == ("chats", str(tiny_base))
    assert lines[0] == "rows: 60 in chats.jsonl; 54 to train on, 6 held out"
    steps = int(lines[2].removeprefix("steps: about ").split()[0])
    assert 30 <= steps <= 60 and (recipe.train.lr, recipe.lora.rank) == (3e-3, 32) and recipe.data.held_out == 0.1
    assert lines[3].startswith("time: about 1 min of training at ") and lines[3].endswith(
        "as one pass took on this machine"
    )
    assert lines[-1] == "next: tunesmith run recipe.yaml" and recipe.chat.temperature == 0.2
    before = (tmp_path / "recipe.yaml").read_text()
    assert f"makes {steps} steps" in before and "The data" not in done.stderr
    checked = tunesmith("check", "recipe.yaml", cwd=tmp_path)
    assert f"# steps: about {steps} of" in checked.stdout and "as one pass took on this machine" in checked.stdout
    again = tunesmith("init", "chats.jsonl", "--yes", cwd=tmp_path)
    assert again.returncode == 2 and "is not overwritten" in again.stderr
    assert (tmp_path / "recipe.yaml").read_text() == before


@pytest.mark.parametrize(
    ("rows", "length", "width", "lr"),
    [(8, 12, 576, 3e-3), (60, 70, 576, 3e-3), (496, 90, 576, 3e-3), (20_000, 200, 576, 1e-3), (3000, 300, 2048, 4e-4),
     (100_000, 450, 3072, 2e-4), (9, 5000, 2048, 4e-4), (2_000_000, 800, 2048, 2e-4), (40, 300, None, 4e-4)],
)  # fmt: skip
def test_every_size_of_data_gets_steps_to_learn_in(rows, length, width, lr):
    seen = min(rows, 2000)
    look = Look("a", read=seen, rows=rows, exact=rows == seen, lengths=[length - i % 5 for i in range(seen)])
    found = fit([look], {"hidden_size": width, "max_position_embeddings": 8192} if width else {})
    longest = min(length, 2048)
    assert found.tokens_per_step >= found.max_length >= longest and found.lr == lr
    assert found.rank == (32 if lr == 3e-3 else 16) and found.temperature == (0.2 if width == 576 else 0.7)
    assert found.steps >= 30 or found.epochs == 10, found  # a handful of rows is few, however often they are read
    assert found.steps >= 60 or found.tokens_per_step <= 512 or found.tokens_per_step == found.max_length, found
    assert 1 <= found.evaluate_every <= 200 and 0.01 <= found.held_out <= max(0.1, 1 / rows + 0.01)
    assert rows * found.held_out >= 1


def test_init_refuses_a_place_before_it_asks(tmp_path, chats, tiny_base):
    (tmp_path / "my recipe.yaml").write_text("mine")
    done = tunesmith("init", "my recipe.yaml", cwd=tmp_path)  # a recipe's name, as version 0.1 took it
    assert done.returncode == 2 and "exists already" in done.stderr and "Conversations" not in done.stdout
    assert (tmp_path / "my recipe.yaml").read_text() == "mine"
    done = tunesmith("init", "chats.jsonl", "--to", "x y.yaml", "--base", str(tiny_base), "--yes", cwd=tmp_path)
    assert done.stdout.endswith("next: tunesmith run 'x y.yaml'\n")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("someone/chats\nno/base\n\n", ("chats", "no/base", "someone/chats")),
        ("it's #1.jsonl\nC:\\models: x\n7b\n", ("7b", "C:\\models: x", "it's #1.jsonl")),
        ("d\x85\u00a0e.jsonl\n\u00e9t\u00e9\nb\n", ("b", "\u00e9t\u00e9", "d\x85\u00a0e.jsonl")),
        ('  a \U0001f600\u2028"b\\.jsonl\t\n no/base  \n b \n', ("b", "no/base", 'a \U0001f600\u2028"b\\.jsonl')),
    ],
)
def test_what_is_typed_is_what_the_recipe_says(tmp_path, typed, expected):
    name, base, data = expected
    if "/" not in data:
        write_rows(tmp_path / data, [("a question", "an answer")] * 3)
    if "/" not in base:  # can be no id on the Hub
        (tmp_path / base).mkdir()
    done = tunesmith("init", "--to", "mine.yaml", cwd=tmp_path, typed=typed, **OFFLINE)
    assert done.returncode == 0, done.stderr
    recipe = read_recipe(tmp_path / "mine.yaml")
    assert recipe.name == name and recipe.base in (base, str(tmp_path / base))
    assert recipe.data.sources[0].path in (data, str(tmp_path / data))


UTF8, ESCAPED = "utf-8", "utf-8:surrogateescape"


@pytest.mark.parametrize(
    ("encoding", "typed", "said"),
    [
        (UTF8, b"a/b\nc/d\nmy model\n\xff\ne\n", ['name is "my model" and may', r'name: it holds "\udcff"']),
        (ESCAPED, b"a/b\n\xff\n./gone\nc/d\ne\n", [r'base: it holds "\udcff"', "there is no base ./gone"]),
        (UTF8, b"\0\n\xff\na/b\nc/d\ne\n", [r'data: it holds "\u0000"', r'data: it holds "\udcff"']),
        (ESCAPED, b"gone.jsonl\n\ngone\na/b\nc/d\ne\n",
         ["there is no file gone.jsonl", "there is no file gone; did you mean gona?\n  fix: check the name; init"]),
        (UTF8, b"a/b\nb@@d b\nbase\nc/d\ne\n",
         ["there is no base b@@d b: no folder or file of this name is here, and an id on the Hub would be owner/name",
          "there is no base base: no folder"]),
    ],
)  # fmt: skip
def test_init_asks_again_for_an_answer_that_no_recipe_can_hold(tmp_path, encoding, typed, said):
    (tmp_path / "gona").mkdir()
    command = [sys.executable, "-c", CODE, "init"]
    surroundings = os.environ | OFFLINE | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path, input=typed, env=surroundings)
    assert done.returncode == 0 and all(f"Error: {one}" in done.stdout.decode() for one in said), done
    assert "the settings are defaults" in done.stderr.decode() and "Traceback" not in done.stderr.decode()
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert (recipe.name, recipe.base, recipe.data.sources[0].path) == ("e", "c/d", "a/b")
    assert "the default: the data could not be looked at" in (tmp_path / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["--yes"], "init needs conversations", 2),
        (
            ["gone.jsonl", "--yes"],
            "there is no file gone.jsonl\n  fix: check the name; init takes a file, a pattern",
            3,
        ),
        (["a/b", "--base", "./gone", "--yes"], "there is no base ./gone", 4),
        (["a/b", "--name", "my model", "--yes"], 'name is "my model" and may hold only', 2),
    ],
)
def test_what_is_wrong_on_the_command_line_is_refused_before_anything_is_written(tmp_path, arguments, said, code):
    done = tunesmith("init", *arguments, cwd=tmp_path)
    assert done.returncode == code and said in done.stderr and "fix: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_elsewhere_finds_its_data(tmp_path, chats, tiny_base):
    (tmp_path / "recipes").mkdir()
    arguments = ["chats.jsonl", "--to", "recipes/a.yaml", "--base", str(tiny_base), "--yes"]
    assert tunesmith("init", *arguments, cwd=tmp_path).returncode == 0
    assert "path: '../chats.jsonl'" in (tmp_path / "recipes" / "a.yaml").read_text()
    assert read_recipe(tmp_path / "recipes" / "a.yaml").data.sources[0].path == str(chats)


def test_answers_that_no_recipe_can_hold_leave_no_file(tmp_path):
    with pytest.raises(RecipeError, match=r'^name is "my model"'):
        write_starter(tmp_path / "recipe.yaml", Answers(data="a/b", name="my model"), NOT_SEEN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["my recipe.yaml", "a\nb: c.yaml", "a\u2028b: c.yml"])
def test_init_with_a_file_of_any_name(tmp_path, name):
    write_starter(tmp_path / name, Answers(data="a/b", name="n"), NOT_SEEN)
    recipe = read_recipe(tmp_path / name)
    assert (recipe.name, recipe.base) == ("n", SMALL)
    lines = (tmp_path / name).read_text().splitlines()
    shown = shlex.quote(str(tmp_path / name)) if name.isprintable() else "RECIPE"
    assert lines[1].startswith(f"# `tunesmith run {shown}` does") and lines[2].startswith("name: ")


@pytest.mark.parametrize(
    ("name", "error"), [("new/", RecipeError), ("recipe", RecipeError), ("\udcff.yaml", ResourceError)]
)
def test_init_with_a_file_that_no_recipe_can_be(tmp_path, name, error):
    with pytest.raises(error, match=r"name (of a recipe|in UTF-8)"):
        write_starter(tmp_path / name, Answers(data="a/b", name="n"), NOT_SEEN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rows", "context"), [(2, 2048), (5, 2048), (9, 2048), (40, 1024), (11, 256)])
def test_what_init_writes_can_be_prepared_and_makes_the_steps_it_says(tmp_path, rows, context):
    base = save_base(tmp_path / "base", max_position_embeddings=context)
    write_rows(tmp_path / "few.jsonl", [(f"What is {i}?", f"It is {i} and no more.") for i in range(rows)])
    done = tunesmith("init", "few.jsonl", "--base", str(base), "--yes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recipe, run = read_recipe(tmp_path / "recipe.yaml"), Run(tmp_path / "run")
    run_stages(recipe, run, STAGES[:1])
    counts, (train_rows, _) = read_record(run.data).counts, load_rows(run.data)
    assert f"{counts['train_rows']} to train on, {counts['held_out_rows']} held out" in done.stdout
    said = int(done.stdout.split("steps: about ")[1].split()[0])
    assert abs(said - len(steps_in_training(train_rows, recipe.train, recipe.seed))) <= recipe.train.epochs / 2
