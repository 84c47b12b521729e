"""The notebook is executed, cell by cell, in a copy of what a user has; what is committed is such an execution."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "first_run.ipynb"
API = ("load_recipe", "run", "chat", "compare")


def printed(notebook):
    """What a notebook shows as text, all cells together, and how many pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "".join(texts), sum("image/png" in output.get("data", {}) for output in outputs)


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory, tiny_base):
    """The notebook after its execution here, with a base that takes no time."""
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    recipe = folder / "recipes" / "smoke.yaml"
    text = re.sub(r"(?m)^base: .*", f"base: {tiny_base}", recipe.read_text())
    recipe.write_text(text.replace("max_length: 256", "max_length: 512"))
    (folder / "notebooks").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    where = {"metadata": {"path": str(folder / "notebooks")}}
    NotebookClient(notebook, timeout=570, kernel_name="python3", resources=where).execute()
    return notebook, folder


@pytest.mark.parametrize("which", ["here", "committed"])
def test_every_cell_does_what_the_text_says(which, request):
    notebook = request.getfixturevalue("executed")[0] if which == "here" else nbformat.read(NOTEBOOK, as_version=4)
    text, pictures = printed(notebook)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not [o for cell in notebook.cells for o in cell.get("outputs", ()) if o.output_type == "error"]
    for said in (
        r"train: stopped at step 2",
        r"notebook is paused at step 2; the same call goes on",
        r"train: going on from step-000002",
        r"notebook is ready:",
        r"notebook answers at http://127\.0\.0\.1:\d+ \(API: ",
        r"notebook is closed",
        r"held-out loss",
        r"PosixPath\('\.\./runs/notebook/report\.html'\)",
        r'train\.lr is "fast", which is no number \(--set train\.lr=fast\)',
    ):
        assert re.search(said, text), f"{said} is not in\n{text}"
    assert pictures == 1 and "\x1b[" not in text


def test_the_proofs_in_it_are_those_of_today(executed):
    proofs = r"(?m)^(\w+: .*): \S+ \((?:limit \S+, )?[\d,]+ positions\)$"
    here, committed = (printed(each)[0] for each in (executed[0], nbformat.read(NOTEBOOK, as_version=4)))
    assert set(re.findall(proofs, committed)) == set(re.findall(proofs, here)) and len(re.findall(proofs, here)) > 5


def test_it_leaves_no_engine_and_a_whole_run(executed):
    _, folder = executed
    assert (folder / "runs" / "notebook" / "report.html").exists()
    at_work = [
        path for path in map(working_folder, Path("/proc").glob("[0-9]*")) if path and path.is_relative_to(folder)
    ]
    assert at_work == []  # neither the kernel nor an engine


def working_folder(process):
    """Of one process; None if it is gone or another user's."""
    try:
        return (process / "cwd").readlink()
    except OSError:
        return None


def test_the_four_functions_are_all_shown():
    source = "\n".join(code(nbformat.read(NOTEBOOK, as_version=4)))
    assert [name for name in API if f"tunesmith.{name}(" not in source] == []
