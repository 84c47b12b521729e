"""What keeps a house in order: list, clean, the page of fields, commands as typed, a first line at once."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from forked import completed
from study_runs import change, finished_run
from training_runs import recipe_with

from tunesmith import command
from tunesmith.errors import ResumeError
from tunesmith.fields import fields_text
from tunesmith.files import DIGESTS, beside, digest_folder
from tunesmith.inventory import as_table, runs_in
from tunesmith.lock import locked
from tunesmith.recipe import Recipe
from tunesmith.record import read_record
from tunesmith.runs import MADE_BY, Run, commit_stage
from tunesmith.tidy import clean, spare

ROOT = Path(__file__).parents[1]
STEPS = (2, 4, 6, 8)


@pytest.fixture
def run(tiny_base, tmp_path):
    """A finished run with four checkpoints, the second of which was the best."""
    path = finished_run(tmp_path / "runs" / "good", tiny_base, recipe_with(), best_step=4)
    run = Run(path)
    run.recipe.write_text(MADE_BY + "0.2.0\n" + run.recipe.read_text())
    for step in STEPS:
        folder = run.checkpoints / f"step-{step:06d}"
        folder.mkdir(parents=True)
        for name in ("adapter.safetensors", "optimizer.safetensors", "state.json"):
            (folder / name).write_text("{}" if name == "state.json" else "x" * 1000)
        (folder / DIGESTS).write_text(json.dumps(digest_folder(folder)))
    return run


def listed(run):
    (found,), _ = runs_in([run.path.parent])
    return found


def test_list_tells_how_a_run_stands_and_names_foreign_folders(run):
    (run.path.parent / "notes").mkdir()
    (run.path.parent / "notes" / "mine.txt").write_text("mine")
    found, foreign = runs_in([run.path.parent])
    assert [(each.state, each.held_out_loss, each.base) for each in found] == [("finished", 2.0, recipe_with().base)]
    assert [path.name for path in foreign] == ["notes"] and found[0].bytes > 4000
    table = as_table(found, foreign)
    assert (
        all(len(line) <= 80 for line in table.splitlines() if "/runs/" not in line)
        and "2.000" in table
        and "notes" in table
    )
    (run.evaluation / "record.json").unlink()
    assert listed(run).says == "export is done, evaluate comes next"
    (run.adapter / "record.json").unlink()
    (run.checkpoints / "step-000008" / "state.json").write_text('{"planned_steps": 12}')
    assert listed(run).says.startswith("paused at step 8 of 12")


def test_list_names_the_run_that_a_fork_began_with(run):
    assert listed(run).fork_of is None
    about = {"run": "/elsewhere/first-try", "step": 4}
    change(run.adapter, lambda record: {"counts": record["counts"] | {"ancestor": about}})
    assert listed(run).fork_of == "first-try" and "finished, fork of first-try" in as_table([listed(run)], [])
    for folder in (run.adapter, run.model, run.gguf, run.evaluation):
        shutil.rmtree(folder)
    assert listed(run).fork_of is None
    commit_stage(run.ancestor, {}, {}, lambda _: about)  # which stands before the training ends
    assert listed(run).fork_of == "first-try"


def test_list_survives_every_kind_of_damage(run):
    whole = (run.adapter / "record.json").read_text()
    for text in ("", "[]", "{", whole.replace('"counts": {', '"counts": 3, "x": {'), "\0" * 50):
        (run.adapter / "record.json").write_text(text)
        assert listed(run).state == "damaged", text[:20]
    (run.adapter / "record.json").write_text(whole)
    (run.adapter / "weights").write_text("another size")
    assert listed(run).says == "damaged: a file of adapter/ is missing or cut"


def test_list_tells_of_a_changed_recipe_and_of_a_process_at_work(run):
    run.recipe.write_text(run.recipe.read_text().replace("alpha: ", "alpha: 1"))
    assert listed(run).state == "old" and "lora.alpha" in listed(run).says
    with run.lock.open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert listed(run).says == "running now (process 4711)"
        with pytest.raises(ResumeError, match="process 4711"):
            clean(run)
    assert listed(run).state == "old" and spare(run) == []  # its training may be asked for again


def test_a_look_by_list_refuses_no_run_that_starts_meanwhile(run):
    with run.lock.open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)  # as list does, for an instant
        end = threading.Timer(0.1, fcntl.flock, (looking, fcntl.LOCK_UN))
        end.start()
        with locked(run):
            assert listed(run).says == f"running now (process {os.getpid()} on {os.uname().nodename})"
        end.join()


def test_list_names_a_folder_that_is_not_there_and_a_lock_alone_is_no_run(run, tmp_path):
    for name, said in (("nowhere", "there is no folder nowhere"), ("file", "file is a file")):
        (tmp_path / "file").write_text("")
        done = completed("list", "runs", name, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and done.stdout == "", done
    assert completed("list", cwd=run.path).stdout == "no runs here\n"  # runs/ need not be there
    begun = Run(tmp_path / "new" / "begun")
    begun.path.mkdir(parents=True)
    begun.lock.write_text("4711")
    assert runs_in([tmp_path / "new"]) == ([], [begun.path])
    with locked(begun):
        assert listed(begun).state == "running" and listed(begun).changed > 1e9
    beside(begun.data, "draft").mkdir()
    assert listed(begun).says == "nothing is done yet" and listed(begun).changed > 1e9


def test_list_takes_the_width_of_the_terminal(run):
    run.path.rename(long := run.path.with_name("x" * 150))
    (long / "recipe.yaml").write_text((long / "recipe.yaml").read_text().replace("alpha: ", "alpha: 1"))
    lines = {columns: completed("list", long, COLUMNS=str(columns)).stdout.splitlines() for columns in (20, 80, 300)}
    assert {columns: len(found) for columns, found in lines.items()} == {20: 5, 80: 5, 300: 3}
    assert max(map(len, lines[80][3:])) <= 80 and lines[300][1].startswith(f"{long}  ")


@pytest.mark.parametrize("verb", ["list", "compare"])
def test_a_pipe_that_nobody_reads_ends_a_verb_quietly(run, verb):
    arguments = [run.path, "base"] if verb == "compare" else []
    read, write = os.pipe()
    os.close(read)
    code = "from tunesmith.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, verb, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    said = "compare: reading" if verb == "compare" else ""
    assert done.returncode == 141 and done.stderr.startswith(said) and len(done.stderr.splitlines()) <= 1, done


def test_clean_deletes_what_can_be_made_again_and_only_when_told(run):
    (run.path / ".damaged-metrics.jsonl-1").write_text("kept")
    before = set(run.path.rglob("*"))
    done = completed("clean", run.path, "--model")
    assert done.returncode == 0 and f"clean {run.path} --model --yes" in done.stdout, done.stderr
    assert ".damaged-metrics.jsonl-1, which was damaged" in done.stdout
    assert set(run.path.rglob("*")) == before
    assert [each.path.name for each in clean(run)] == ["step-000002", "step-000006"]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000004", "step-000008"]
    assert run.model.is_dir() and not spare(run)
    assert [each.path for each in clean(run, model=True)] == [run.model] and not run.model.exists()
    assert all(read_record(folder) for folder in run.stage_folders if folder not in (run.model, run.scores))
    assert listed(run).state == "finished"


def test_clean_keeps_what_the_user_owns_and_what_is_needed(run):
    (run.checkpoints / "step-000002" / "mine.txt").write_text("mine")
    (run.model / "mine.txt").write_text("mine")
    assert [each.path.name for each in spare(run)] == ["step-000006"]
    with pytest.raises(ResumeError, match=r"model is not deleted: it holds what tunesmith did not make: mine\.txt"):
        spare(run, model=True)
    (run.model / "mine.txt").unlink()
    (run.gguf / "record.json").unlink()
    with pytest.raises(ResumeError, match="there are no GGUF files"):
        clean(run, model=True)
    assert run.model.is_dir()
    (run.adapter / "record.json").unlink()
    assert spare(run) == []  # training has not ended: it goes on from a checkpoint


def test_a_clean_that_was_killed_left_nothing_half(run):
    gone = beside(run.checkpoints / "step-000002", "gone")
    (run.checkpoints / "step-000002").rename(gone)
    (gone / "adapter.safetensors").unlink()
    assert [each.path.name for each in clean(run)] == ["step-000006"] and not gone.exists()


def test_the_page_of_fields_is_current_and_has_every_field():
    page = (ROOT / "docs" / "recipe.md").read_text()
    assert page == fields_text(), "type: tunesmith check --fields > docs/recipe.md"
    schema = Recipe.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, field in section.get("properties", {}).items():
            assert (
                f"| `{name}` |" in page and " ".join(field.get("description", "").split()).replace("|", "\\|") in page
            )
    assert "| `lr` | number (above 0) | `0.0002` | Highest learning rate. |" in page


def test_a_command_is_printed_as_it_is_to_be_typed(tmp_path, monkeypatch):
    program = tmp_path / "bin dir" / "tunesmith"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "run"])
    monkeypatch.setenv("PATH", "/usr/bin")
    assert command.to_type("chat", "runs/a b") == f"'{program}' chat 'runs/a b'"
    assert command.as_typed("type `tunesmith run x` first") == f"type `'{program}' run x` first"
    monkeypatch.setenv("PATH", str(program.parent))
    assert command.to_type("chat") == "tunesmith chat"
    monkeypatch.setattr(sys, "argv", ["/usr/lib/ipykernel_launcher.py"])
    assert command.program() == "tunesmith"


def test_python_m_works_and_names_itself_in_a_fix(tmp_path):
    done = subprocess.run([sys.executable, "-m", "tunesmith", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"`{sys.executable} -m tunesmith check RECIPE`" in done.stderr


def test_h_is_help_for_every_verb():
    for verb in ((), ("run",), ("list",), ("clean",), ("chat",)):
        done = completed(*verb, "-h")
        assert done.returncode == 0 and done.stdout.startswith("Usage: "), verb


def test_a_line_is_on_the_screen_before_the_imports():
    code = "from tunesmith.cli import main; import sys; sys.argv = ['tunesmith', *sys.argv[1:]]; main()"
    for verb in ("train", "chat", "compare", "clean"):
        started = time.monotonic()
        with subprocess.Popen([sys.executable, "-c", code, verb, "x"], stderr=subprocess.PIPE, text=True) as process:
            line, after_s = process.stderr.readline(), time.monotonic() - started
            process.kill()
        assert re.match(rf"{verb}: (reading|opening) x\n", line) and after_s < 1.5, (line, after_s, os.getloadavg())
