"""The documentation is executed: every ```console block, word for word, in a copy of the repository.

A line that starts with `$ ` is typed; the lines below it are what must be printed, where `...` stands for anything.
The first page trains with recipes/smoke.yaml, in a minute at most; the pages after it use that run.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.errors import TunesmithError

ROOT = Path(__file__).parents[1]
FIRST = ROOT / "docs" / "first-run.md"
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p != FIRST)]
VERBS = [
    "run",
    "prepare",
    "data",
    "train",
    "merge",
    "export",
    "evaluate",
    "chat",
    "compare",
    "publish",
    "space",
    "check",
    "init",
    "list",
    "clean",
    "doctor",
    "verify",
]
SMOKE_LIMIT_S, CORES = 60.0, 2
IMPORTS = "import torch, transformers.modeling_utils"
IMPORTS_S = 7.0  # of a core, at most, on the machines that the minute is said of (docs/log.md)


def commands(page):
    """(command, expected lines) of a page, in order."""
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *expected = part.splitlines()
            yield command, expected


def matches(expected, printed):
    lines = [re.escape(line).replace(r"\.\.\.", ".*") for line in expected]
    pattern = "".join(r"(?:.*\n)*?" if line == ".*" else line + r"\n" for line in lines)
    return re.fullmatch(pattern, printed) is not None


def execute(page, folder):
    """Type every command of a page; returns how many. The first that fails or prints something else is shown."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    typed = list(commands(page))
    for command, expected in typed:
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=os.environ | {"PATH": path, "COLUMNS": "120"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{page.name}: $ {command}\nended with {done.returncode}:\n{done.stdout}"
        if expected:
            wanted = "\n".join(expected)
            assert matches(expected, done.stdout), f"{page.name}: $ {command}\nprinted\n{done.stdout}\nnot\n{wanted}"
    return len(typed)


@pytest.fixture(scope="module")
def copy(tmp_path_factory, builtin_base):
    """A copy of what a user has, after docs/first-run.md, and the processor's seconds (the base is already fetched):
    of that page, and of imports as a yardstick.
    """
    folder = tmp_path_factory.mktemp("docs") / "tunesmith"
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    times = [processor_s()]
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    times.append(processor_s())
    assert execute(FIRST, folder) >= 4
    times.append(processor_s())
    return folder, times[2] - times[1], times[1] - times[0]


def processor_s():
    """What ended children have used; other work on the machine counts less than on a clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_first_run_works_within_a_minute(copy):
    """On a machine where imports take longer than on those that the minute is said of, it may take as much longer."""
    folder, used_s, imports_s = copy
    assert (folder / "runs" / "smoke" / "gguf" / "smoke-Q8_0.gguf").exists()
    limit_s = SMOKE_LIMIT_S * CORES * max(1.0, imports_s / IMPORTS_S)
    assert used_s <= limit_s, f"docs/first-run.md took {used_s:.0f} s of the processor, limit {limit_s:.0f}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_the_page_does_what_it_says(page, copy):
    execute(page, copy[0])


def test_every_verb_has_a_page_with_an_executed_example():
    for verb in VERBS:
        assert any(f"tunesmith {verb}" in command for command, _ in commands(ROOT / "docs" / f"{verb}.md")), verb


@pytest.mark.parametrize("page", ["run", "remote"])
def test_every_exit_code_is_in_the_tables(page):
    rows = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE)
    codes = {int(code) for row in rows for code in row.split(",")}
    raised = {kind.exit_code for kind in TunesmithError.__subclasses__()}
    assert len(raised) > 7 and raised <= codes


def test_the_check_looks():
    assert matches(["a ... c", "...", "z"], "a b c\nanything\nat all\nz\n")
    assert not matches(["a"], "a\nb\n") and not matches(["a", "b"], "a\n")
    assert sum(len(list(commands(page))) for page in [FIRST, *PAGES]) >= 20
