"""The notebook for Colab, executed: the machine is killed as it trains, and on a new one the same cells go on.

The Drive is a folder, the base a tiny one, and tunesmith is what pip installs from its wheel.
"""

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from rented import SECRET, adapter_of, filled_in, machine, project, uninterrupted, wait_for_a_checkpoint, wheel_in

from tunesmith.recipe_file import read_recipe

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "finetome_colab.ipynb"
RECIPE = "%%writefile /content/recipe.yaml\n"
TRAINS = "tunesmith.run("
NAME = "finetome-llama-3.2-1b"


def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def recipe_text():
    (text,) = [cell.source for cell in notebook().cells if cell.source.startswith(RECIPE)]
    return text.removeprefix(RECIPE)


def put(content, small, wheel):
    """The notebook, its places in `content`, with a small recipe under the name and the mirror of its own."""
    own, small = yaml.safe_load(recipe_text()), yaml.safe_load(small.read_text())
    small["checkpoint"] = own["checkpoint"] | {"every": "5 steps", "overhead": None}
    small["train"]["stop_after"] = own["train"]["stop_after"]
    small["checkpoint"]["mirror"] = small["checkpoint"]["mirror"].replace("/content", str(content))
    book = notebook()
    for cell in book.cells:
        text = cell.source.replace("/content", str(content))
        if cell.source.startswith(RECIPE):
            text = text.splitlines()[0] + "\n" + json.dumps(small | {"name": own["name"]})
        cell.source = f"INSTALL = {wheel!r}" if text.startswith("INSTALL = ") else text
    book.cells.append(nbformat.v4.new_code_cell("print(tunesmith.__file__)"))
    return book


def taken_away_as_it_trains(client, content):
    """Kill the kernel, as where the machine is gone, once the Drive has a checkpoint."""
    there = content / "drive" / "MyDrive" / "tunesmith" / NAME / "checkpoints"
    wait_for_a_checkpoint(there)
    client.km.provisioner.process.kill()


@pytest.fixture(scope="module")
def executed(tmp_path_factory, tiny_base):
    """The notebook after all of it was executed on a second machine; what the first run had, and the folder."""
    folder = tmp_path_factory.mktemp("colab")
    content, kernel = folder / "content", {"env": machine(folder)}
    content.mkdir()
    small = project(content, tiny_base, 12, export="{gguf: [Q8_0, F16], positions: 4}")
    wheel = wheel_in(content)
    first = put(content, small, wheel)
    last = next(number for number, cell in enumerate(first.cells) if TRAINS in cell.source)
    first.cells = [cell for cell in first.cells[: last + 1] if "doctor" not in cell.source]  # it takes 10 s
    client = NotebookClient(first, timeout=120, kernel_name="python3")
    killer = threading.Thread(target=taken_away_as_it_trains, args=(client, content))
    killer.start()
    with pytest.raises(DeadKernelError):
        client.execute(**kernel)
    killer.join()
    before = [path.name for path in (content / "runs" / NAME).iterdir()]
    shutil.rmtree(content / "runs")
    second = put(content, small, wheel)
    NotebookClient(second, timeout=120, kernel_name="python3").execute(**kernel)
    return second, before, content


def shown(book, cell_with):
    """What the one cell that has this text shows: its text, and how many pictures."""
    (cell,) = [cell for cell in book.cells if cell.cell_type == "code" and cell_with in cell.source]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(texts), sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_on_a_new_machine_the_same_cells_go_on_from_the_drive(executed):
    book, before, content = executed
    assert "metrics.jsonl" in before and "adapter" not in before, "it was killed too late"
    run = content / "runs" / NAME
    said, _ = shown(book, TRAINS)
    assert re.search(r"mirror: fetched data .*step-\d+ .*recipe\.yaml", said) and "train: going on from step-" in said
    assert f"{NAME} is ready:" in said and "F16 = merged" in said
    assert adapter_of(run) == uninterrupted(content / "recipe.yaml", content / "whole")


def test_every_cell_does_what_the_text_says(executed):
    book, _, content = executed
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")
    assert shown(book, "tunesmith.__file__")[0] == f"{content.parent}/site/tunesmith/__init__.py\n"  # from the wheel
    assert shown(book, "drive.mount")[0] == f"Mounted at {content}/drive\n"
    doctor, _ = shown(book, "doctor")
    assert f"recipe {NAME} can run here" in doctor, doctor
    text, pictures = shown(book, "samples")
    samples = [json.loads(line) for line in (content / "runs" / NAME / "samples.jsonl").read_text().splitlines()]
    told = [f"step {sample['step']}: {sample['answer'].strip()}" for sample in samples]
    assert pictures == 1 and told and text.endswith("\n\n".join(told) + "\n\n")
    assert "held-out loss" in shown(book, "compare")[0]
    kept = ["adapter", f"{NAME}-Q8_0.gguf", "report.html"]
    assert shown(book, "copytree")[0] == repr(kept)
    drive = content / "drive" / "MyDrive" / "tunesmith" / f"{NAME}-result"
    assert sorted(path.name for path in drive.iterdir()) == kept
    assert adapter_of(drive) == adapter_of(content / "runs" / NAME)
    published, _ = shown(book, "tunesmith publish")
    assert "nothing is sent" in published and "USER/Llama-3.2-1B-FineTome-GGUF (private)" in published


def test_colabs_proxy_gets_to_the_chat(executed):
    said, _ = shown(executed[0], "serve_kernel_port_as_iframe")
    assert said.startswith("page 200, in a frame of Colab's: True, answer 200, 700 high\n")
    assert f"{NAME} answers at http://127.0.0.1:" in said


def test_the_token_is_nowhere(executed):
    book, _, content = executed
    assert SECRET not in json.dumps(book) and "\x1b[" not in "".join(shown(book, TRAINS)[0])
    assert not [path for path in content.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(("file", "runs"), [("colab.py", "content/runs"), ("kaggle.py", "kaggle/working/runs")])
def test_the_one_cell_of_the_launch_files_finds_that_all_is_done(executed, file, runs):
    folder = executed[2].parent
    env = machine(folder / file.partition(".")[0])
    one = filled_in(file, folder, folder / "content" / "recipe.yaml", wheel_in(folder))
    if not (folder / runs).exists():
        shutil.copytree(folder / "content" / "runs", folder / runs)
    done = subprocess.run([sys.executable, one], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr.count("already done") == 5, done.stderr
    assert f"{NAME} is ready:" in done.stdout and SECRET not in done.stdout + done.stderr


def test_its_recipe_is_that_of_the_repository_with_two_lines_more(tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe_text())
    changes = ["checkpoint.mirror=/content/drive/MyDrive/tunesmith", "train.stop_after=10h"]
    assert read_recipe(tmp_path / "recipe.yaml") == read_recipe(ROOT / "recipes" / f"{NAME}.yaml", changes)


def test_nothing_is_committed_that_was_not_shown_on_colab():
    cells = [cell for cell in notebook().cells if cell.cell_type == "code"]
    assert len(cells) > 10 and not [cell for cell in cells if cell.outputs or cell.execution_count]
