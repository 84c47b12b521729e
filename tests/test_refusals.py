"""Forty ways to be wrong, through the real command line: each says what, where and the fix, and none is a traceback."""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from forked import completed
from small_project import write_project
from test_owned import tree

from tunesmith import boundary, cli, machine
from tunesmith.data.hub import resolve_commit
from tunesmith.decides import as_begun, kept_recipe
from tunesmith.errors import InternalError, ResourceError, ResumeError
from tunesmith.files import remove
from tunesmith.fresh import NewStart
from tunesmith.lock import locked
from tunesmith.pipeline import run_stages
from tunesmith.recipe import Source
from tunesmith.recipe_file import read_recipe
from tunesmith.record import output_digest, read_record
from tunesmith.runs import Run, checkpoint_folders
from tunesmith.stages import STAGES
from tunesmith.weights import builtin, hub

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_base):
    """A project whose run is finished."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = read_recipe(write_project(folder, tiny_base))
    run_stages(recipe, Run(folder / "runs" / "small"), STAGES)
    return folder


@pytest.fixture
def project(finished, tmp_path):
    """A copy of it, which a test may spoil; the run's own recipe names the copy's files."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    own = folder / "runs" / "small" / "recipe.yaml"
    own.write_text(own.read_text().replace(str(finished), str(folder)))
    return folder


def stages_of(run):
    """The folders of a run that selects no rows, and so has no scores."""
    return [folder for folder in run.stage_folders if folder != run.scores]


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def delete(name):
    def gone(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return gone


def rows(text):
    return write("rows.jsonl", text)


NEW_ROW = '{"conversations": [{"from": "human", "value": "A new one?"}, {"from": "gpt", "value": "Yes."}]}'
WRITTEN = (".lock", "manifest.json")
"""What also a run writes that does nothing."""
NEW = ("--run-dir", "new")
RUN = ("run", "recipe.yaml")
PREPARE = ("prepare", "recipe.yaml", *NEW)
CASES = {
    # what is wrong: (what is done before, arguments, exit code, what is said)
    "a base that is not built in": (
        None, ("check", "recipe.yaml", "--set", "base=builtin:llama"), 4, "there is no base builtin:llama"
    ),
    "a verb before its turn": (None, ("merge", "recipe.yaml", *NEW), 5, "type the same with `"),
    "one conversation": (
        write("one.jsonl", '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}'),
        ("init", "one.jsonl", "--to", "one.yaml", "--yes"), 3, "one row that can be used, and none to hold out",
    ),
    "a share that holds out none": (
        None, ("check", "recipe.yaml", "--set", "data.held_out=0.001"), 3, "none would be held out",
    ),
    "a recipe that is not there": (None, ("run", "none.yaml"), 2, "none.yaml cannot be read: No such file or dir"),
    "a recipe in another encoding": (
        write("r.yaml", b"name: a\nbase: \xff\n"), ("run", "r.yaml"), 2,
        "r.yaml cannot be read: line 2 holds what is no text in UTF-8\n  fix: save it as UTF-8",
    ),
    "data in a recipe's place": (None, ("run", "rows.jsonl"), 2, "rows.jsonl is data, and no recipe\n  fix: type `"),
    "compressed data in its place": (write("r.jsonl.gz", b"\x1f\x8b"), ("check", "r.jsonl.gz"), 2, "is data, and no"),
    "data that are YAML too in its place": (write("d.json", "[]"), ("run", "d.json"), 2, " init d.json`, which writes"),
    "a port that is none": (
        None, ("chat", "runs/small", "--port", "99999"), 2,
        "--port is '99999', and must be a whole number from 1 to 65535\n  fix: leave --port out",
    ),
    "no threads": (None, ("chat", "runs/small", "--threads", "0"), 2, "--threads is '0', and must be a whole number"),
    "threads that are no number": (None, ("chat", "runs/small", "--threads", "x"), 2, "--threads is 'x', and must be"),
    "a run where nothing can be made": (
        None, (*RUN, "--run-dir", "/proc/new"), 7, "nothing can be written in /proc: the system takes no new file",
    ),
    "a recipe where nothing can be made": (
        None, ("init", "rows.jsonl", "--to", "/proc/x.yaml", "--yes"), 7,
        "nothing can be written in /proc: the system takes no new file or folder there\n  fix: name another place",
    ),
    "a setting in a setting": (None, (*RUN, "--set", "data.sources.1.path=x"), 2, "check --fields` prints every key"),
    "a compressed file": (
        write("rows.jsonl.gz", b"\x1f\x8b"), (*PREPARE, "--set", "data.sources.0.path=rows.jsonl.gz"), 3,
        "rows.jsonl.gz is damaged or cut: nothing in it can be read",
    ),
    "rows by another name": (
        write("rows.tx", "{}"), (*PREPARE, "--set", "data.sources.0.path=rows.tx"), 3,
        "is of no known kind\n  fix: rename it if it is one of .json",
    ),
    "a folder of no run to clean": (None, ("clean", "."), 5, "\n  fix: name a run, such as runs/NAME; `"),
    "a run without a GGUF to chat with": (delete("runs/small/gguf"), ("chat", "runs/small"), 5, "\n  fix: type `"),
    "a recipe that is none": (
        None, ("run", "runs/small/gguf/small-Q8_0.gguf"), 2,
        "it is a GGUF file\n  fix: to chat with it, type `",
    ),
    "a folder that is no run": (None, ("run", "runs"), 2, "runs is no run folder"),
    "a day that is none": (None, (*RUN, "--set", "data.date=2026-02-30"), 2, "2026-02-30"),
    "a seed beyond its bounds": (None, (*RUN, "--set", "seed=8589934592"), 2, "must be less than 4294967296"),
    "a setting of another tool": (None, (*RUN, "--set", "learning_rate=1"), 2, "did you mean train.lr?"),
    "a setting at the wrong place": (None, (*RUN, "--set", "lr=3"), 2, "did you mean train.lr?"),
    "no value to set": (None, (*RUN, "--set", "train.lr"), 2, "not of the form a.b=value"),
    "a name that is no text": (None, ("check", "a\udcff.yaml"), 7, "no name in UTF-8"),
    "a file that is not there": (None, (*PREPARE, "--set", "data.sources.0.path=gone.jsonl"), 3, "no file gone.jsonl"),
    "a glob of nothing": (None, (*PREPARE, "--set", "data.sources.0.path=p/*.jsonl"), 3, "no file p/*.jsonl"),
    "a folder of files": (None, (*PREPARE, "--set", "data.sources.0.path=runs"), 3, "is a folder"),
    "neither a file nor on the Hub": (None, (*PREPARE, "--set", "data.sources.0.path=data/mine"), 3, "data/mine"),
    "held-out rows that are not there": (None, (*PREPARE, "--set", "data.held_out={path: h.csv}"), 3, "no file h.csv"),
    "prompts that are not there": (None, (*PREPARE, "--set", "evaluate.prompts=no.yaml"), 2, "no.yaml cannot be read"),
    "prompts that are no list": (write("prompts.yaml", "a: b\n"), PREPARE, 2, "not a list of prompts"),
    "a base that is not there": (None, (*PREPARE, "--set", "base=./gone"), 4, "there is no base ./gone"),
    "a GGUF that is not there": (None, (*PREPARE, "--set", "base=gone.gguf"), 4, "there is no base gone.gguf"),
    "a GGUF that is none": (write("x.gguf", "no GGUF"), (*PREPARE, "--set", "base=x.gguf"), 4, "x.gguf"),
    "a base of the Hub, offline": (None, (*PREPARE, "--set", "base=a/b"), 4, "a/b is not on this machine"),
    "a base whose config is damaged": (
        lambda folder: (
            (folder / "m").mkdir(),
            (folder / "m" / "config.json").write_text("{"),
            (folder / "m" / "tokenizer.json").write_text("{"),
        ),
        (*PREPARE, "--set", "base=m"),
        4,
        "config.json is no JSON object",
    ),
    "an empty file": (rows(""), PREPARE, 3, "holds no rows"),
    "rows of no known form": (rows('{"a": 1}\n'), PREPARE, 3, "has the columns a"),
    "rows that are all damaged": (rows("{broken\n{too\n"), PREPARE, 3, "rows.jsonl"),
    "values without end": (write("d.json", DEEP), (*PREPARE, "--set", "data.sources.0.path=d.json"), 3, "d.json"),
    "no UTF-8": (rows(b"\xff\xfe{\x00"), PREPARE, 3, "UTF-16"),
    "a damaged Parquet file": (
        write("rows.parquet", b"PAR1" + bytes(range(256)) + b"PAR1"),
        (*PREPARE, "--set", "data.sources.0.path=rows.parquet"),
        3,
        "not a whole Parquet file",
    ),
    "an open quote": (
        write("r.csv", 'prompt,completion\n"a,b\n'),
        (*PREPARE, "--set", "data.sources.0.path=r.csv"),
        3,
        "line 2",
    ),
    "a file where the run belongs": (None, (*RUN, "--run-dir", "rows.jsonl"), 5, "rows.jsonl is a file"),
    "a file above the run": (None, (*RUN, "--run-dir", "rows.jsonl/x"), 7, "a file stands where a folder belongs"),
    "a folder of the user's": (None, (*RUN, "--run-dir", "."), 5, "tunesmith did not make its recipe.yaml"),
    "another learning rate": (None, (*RUN, "--set", "train.lr=1e-3"), 5, "- train.lr: 0.01 -> 0.001"),
    "another learning rate of train alone": (None, ("train", "runs/small", "--set", "train.lr=1e-3"), 5, "--fresh"),
    "a damaged record": (write("runs/small/adapter/record.json", "{"), RUN, 5, "record.json"),
    "a damaged recipe": (write("runs/small/recipe.yaml", "a: ["), ("chat", "runs/small"), 5, "recipe is damaged"),
    "no GGUF to make": (None, ("export", "recipe.yaml", "--set", "export.gguf=[]"), 2, "no GGUF was asked for"),
    "no run to chat with": (None, ("chat", "runs/none"), 2, "there is no run and no file runs/none"),
    "`base` to chat with": (None, ("chat", "base"), 2, "`base` is a word of compare"),
    "a recipe to chat with": (None, ("chat", "recipe.yaml"), 2, "recipe.yaml is a recipe"),
    "a GGUF type that is none": (None, ("chat", "runs/small", "--gguf", "Q3"), 2, "Q3 is no type of GGUF file"),
    "a GGUF type that was not made": (None, ("chat", "runs/small", "--gguf", "F16"), 5, "this run has small-Q8_0.gguf"),
    "nothing but base to compare": (None, ("compare", "base"), 2, "`base` alone says nothing"),
    "no run to clean": (None, ("clean", "runs/none"), 5, "runs/none is no run folder: there is no such folder"),
    "no run to compare": (None, ("compare", "runs/none"), 5, "runs/none is no run folder: there is no such folder"),
    "a recipe to compare": (None, ("compare", "recipe.yaml"), 2, "recipe.yaml is a file, and runs are compared"),
    "questions without answers": (None, ("init", "rows.jsonl", "--to", "n.yaml"), 2, "standard input ended"),
    "rows of a kind that is not read": (None, (*PREPARE, "--set", "data.sources.0.path=a/b.txt"), 3, "no file a/b.txt"),
    "other rows under checkpoints": (None, (*RUN, "--set", "data.dedup=off"), 5, "- data.dedup: near -> off"),
    "a report onto a folder": (None, ("compare", "runs/small", "--report", "/"), 2, "/ is a folder"),
    "a report onto a folder to come": (None, ("compare", "runs/small", "--report", "new/"), 2, "new/ is a folder"),
    "a report onto a device": (None, ("compare", "runs/small", "--report", "/dev/null"), 2, "is there already"),
    "a report onto a file": (None, ("compare", "runs/small", "--report", "rows.jsonl"), 2, "it is not overwritten"),
    "a cache that is a file": (None, PREPARE, 7, "is a file", {"TUNESMITH_CACHE": "rows.jsonl"}),
    "a cache where none can be": (None, PREPARE, 7, "/proc/x, cannot be made", {"TUNESMITH_CACHE": "/proc/x"}),
    "a cache in a folder of the system": (
        None, PREPARE, 7, "TUNESMITH_CACHE is /proc/1\n  fix: set the environment variable TUNESMITH_CACHE",
        {"TUNESMITH_CACHE": "/proc/1"},
    ),
    "a cache in nobody's home": (None, PREPARE, 7, "there is no such home", {"TUNESMITH_CACHE": "~nobody-here/x"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said_with_the_fix_and_nothing_is_lost(case, project):
    before, arguments, code, said, *environment = CASES[case]
    if before:
        before(project)
    there = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    done = completed(*arguments, cwd=project, **(OFFLINE | (environment[0] if environment else {})))
    assert done.returncode == code and said in done.stderr, done.stderr
    assert "error: " in done.stderr and "\n  fix: " in done.stderr and "Traceback" not in done.stderr
    changed = [path for path, content in there.items() if not path.is_file() or path.read_bytes() != content]
    assert [path for path in changed if path.name not in (".lock", "manifest.json")] == []


def test_a_run_goes_on_without_the_files_its_rows_were_made_from(project):
    delete("rows.jsonl")(project)
    delete("prompts.yaml")(project)
    shutil.rmtree(project / "runs" / "small" / "gguf")
    done = completed("export", "recipe.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    write("prompts.yaml", "- Other?\n")(project)
    done = completed("run", "recipe.yaml", cwd=project)
    assert done.returncode == 0 and "prepare   already done (without " in done.stderr, done.stderr
    assert "rows.jsonl, not on this machine)" in done.stderr and "train     already done" in done.stderr
    assert read_recipe(project / "runs" / "small" / "recipe.yaml").data.sources[0].path == str(project / "rows.jsonl")
    alone = completed("prepare", "recipe.yaml", cwd=project)
    assert [line for line in done.stderr.splitlines() if line.startswith("prepare ")] == alone.stderr.splitlines()[1:]
    asked = (project / "runs" / "small" / "evaluation" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in asked] == ["Other?"]  # other prompts make evaluate anew, and no more
    done = completed("run", "recipe.yaml", "--set", "data.dedup=words", cwd=project)
    assert done.returncode == 3 and "there is no file" in done.stderr  # rows that must be made need it


def test_a_run_in_which_all_stands_needs_no_base(project):
    run = Run(project / "runs" / "small")
    for recipe, base in ((project / "recipe.yaml", "base"), (run.recipe, project / "base")):  # a folder that was there
        recipe.write_text(re.sub(r"(?m)^base: .*$", f"base: {base}", recipe.read_text()))
    done = completed("run", "recipe.yaml", cwd=project)
    assert done.returncode == 0 and done.stderr.count(" already done") == len(STAGES) - 1, done.stderr
    assert f"base {project / 'base'} is not on this machine, and nothing is to be made from it" in done.stderr
    assert kept_recipe(run).base == str(project / "base")
    for more in (("--fresh", "--yes"), ("--set", "evaluate.max_tokens=9"), ("--run-dir", "new")):
        done = completed("run", "recipe.yaml", *more, cwd=project)
        assert done.returncode == 4 and "there is no base" in done.stderr, done.stderr
    assert all(read_record(folder) for folder in stages_of(run)) and not (project / "new").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.lr=1e-3", "train.lr: 0.01 -> 0.001"), ("lora.alpha=1", "lora.alpha: 16.0 -> 1.0"),
        ("data.dedup=off", "data.dedup: near -> off"), ("seed=9", "seed: 0 -> 9"),
        ("train.max_length=150", "train.max_length: 200 -> 150"),
        ("data.sources.0.path=others.jsonl", "others.jsonl has other rows"),
    ],
)  # fmt: skip
def test_what_decides_training_is_refused_before_torch_is_loaded(project, change, said):
    shutil.copy(project / "rows.jsonl", project / "others.jsonl")
    with (project / "others.jsonl").open("a") as file:
        file.write((project / "rows.jsonl").read_text().splitlines()[0] + "\n")
    recipe, run = read_recipe(project / "recipe.yaml", [change]), Run(project / "runs" / "small")

    def load(stage):
        raise AssertionError(f"{stage.verb} was loaded")

    with pytest.raises(ResumeError) as caught:
        run_stages(recipe, run, STAGES, load)
    assert re.search(rf"\n  - (data: .*)?{re.escape(said)}", caught.value.what) and caught.value.fix.startswith(
        "set it back; "
    )
    assert "--run-dir" in caught.value.fix and "--fresh" in caught.value.fix


def test_an_auto_that_is_not_decided_and_a_field_of_a_later_version_are_no_other_settings(project):
    run = Run(project / "runs" / "small")
    run.recipe.unlink()
    shutil.rmtree(run.adapter)
    for file in run.checkpoints.glob("*/state.json"):
        state = json.loads(file.read_text())
        del state["decides"]["settings"]["train"]["clip"]  # as a version would have it that knew of no such field
        file.write_text(json.dumps(state))

    def load(stage):
        raise LookupError(stage.verb)

    with pytest.raises(LookupError, match="train"):
        run_stages(read_recipe(project / "recipe.yaml", ["train.precision=auto"]), run, STAGES, load)
    with pytest.raises(ResumeError, match=r"train\.clip: its default -> 0\.5"):
        run_stages(read_recipe(project / "recipe.yaml", ["train.clip=0.5"]), run, STAGES, load)


def test_fresh_asks_deletes_what_was_trained_and_trains_anew(project):
    changed = ("run", "recipe.yaml", "--fresh", "--set", "train.lr=1e-3", "--set", "train.epochs=1")
    run = Run(project / "runs" / "small")
    done = completed(*changed, cwd=project)
    assert done.returncode == 5 and "nobody can be asked" in done.stderr and "small/checkpoints\n" in done.stderr
    assert read_record(run.evaluation) and read_record(run.adapter)
    (run.model / "mine.txt").write_text("the user's")
    done = completed(*changed, "--yes", cwd=project)
    assert done.returncode == 5 and "mine.txt" in done.stderr and read_record(run.evaluation)
    (run.model / "mine.txt").unlink()
    made = read_record(run.data)
    done = completed(*changed, "--yes", "--set", "train.stop_after=1 steps", cwd=project)
    assert done.returncode == 0 and "goes on, without --fresh, which would delete it again" in done.stderr, done.stderr
    done = completed(*(word for word in changed if word != "--fresh"), cwd=project)
    assert done.returncode == 0, done.stderr
    assert read_record(run.adapter).settings["train"]["lr"] == 1e-3 and read_record(run.evaluation)
    assert read_record(run.data) == made
    steps = [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]
    assert max(steps) == read_record(run.adapter).counts["steps"]


def begin_anew(run, yes, ask, recipe):
    start = NewStart(run, yes, ask)
    start.agree()
    return start.delete(as_begun(recipe, run), recipe)


def test_fresh_is_not_begun_where_the_user_says_no(project, monkeypatch):
    run, recipe = Run(project / "runs" / "small"), read_recipe(project / "recipe.yaml")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(ResumeError, match="nothing was deleted"):
        begin_anew(run, False, lambda _: False, recipe)
    assert read_record(run.adapter)
    begin_anew(run, False, lambda _: True, recipe)
    assert not run.adapter.exists() and not run.metrics.exists() and read_record(run.data)
    assert (kept_recipe(run).train.precision, kept_recipe(run).train.recompute) == ("fp32", "auto")
    begin_anew(run, False, lambda _: False, recipe)  # nothing is left to ask about


@pytest.mark.parametrize(
    ("change", "said", "asked"),
    [
        ("base=./gone", "there is no base ./gone", False), ("train.max_length=4096", "4096", False),
        ("data.sources.0.path=gone.jsonl", "there is no file gone.jsonl on this machine", False),
        ("data.dedup=off", "rows.jsonl on this machine", False),
        ("lora.targets=[q_proj,qkv]", "lora.targets: qkv names no linear layer", False),
        ("data.held_out=0.001", "none would be held out", True),  # what only the rows show
    ],
)  # fmt: skip
def test_nothing_is_deleted_for_a_run_that_cannot_begin(project, change, said, asked):
    changes = ["--set", change, "--set", "train.tokens_per_step=4096"]
    if change == "data.dedup=off":  # rows that stand, and would have to be made anew
        delete("rows.jsonl")(project)
    run, before = Run(project / "runs" / "small"), tree(project)
    done = completed("run", "recipe.yaml", "--fresh", "--yes", *changes, cwd=project, **OFFLINE)
    assert done.returncode in (2, 3, 4) and said in done.stderr, done.stderr
    assert ("--fresh deletes" in done.stderr) == asked and "begun anew" not in done.stderr
    after = tree(project)
    changed = [name for name in before.keys() | after.keys() if before.get(name, "") != after.get(name, "")]
    assert not [name for name in changed if os.path.basename(name) not in WRITTEN]
    shutil.rmtree(run.data)
    done = completed("train", "recipe.yaml", "--fresh", "--yes", cwd=project)
    assert done.returncode == 5 and "`tunesmith prepare` makes" in done.stderr.replace("-m ", ""), done.stderr
    assert read_record(run.adapter)


def test_a_new_start_with_other_rows_makes_them_first_and_trains_on_them(project, monkeypatch):
    run = Run(project / "runs" / "small")
    before = read_record(run.data)
    with (project / "rows.jsonl").open("a") as file:
        file.write(f"{NEW_ROW}\n")
    said = []
    anew = NewStart(run, False, lambda question: not said.append((question, read_record(run.data))))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    result = run_stages(read_recipe(project / "recipe.yaml", ["train.epochs=1"]), run, STAGES[:3], anew=anew)
    assert said == [("Delete these?", before)] and result.done
    made = read_record(run.data)
    assert made != before and made.counts["read"] == before.counts["read"] + 1
    assert read_record(run.adapter).inputs["data"] == output_digest(made) and not run.evaluation.exists()
    assert kept_recipe(run).train.epochs == 1


def test_nothing_is_deleted_where_the_disk_is_too_small_for_what_is_to_come(project, monkeypatch):
    run = Run(project / "runs" / "small")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: SimpleNamespace(free=-(10**7)))
    with pytest.raises(ResourceError, match="merged model"):
        run_stages(read_recipe(project / "recipe.yaml"), run, STAGES, anew=NewStart(run, True, lambda _: True))
    assert all(map(read_record, stages_of(run))) and checkpoint_folders(run.checkpoints)


def test_a_kill_between_new_rows_and_the_deletion_loses_nothing(project, monkeypatch):
    run, rows = Run(project / "runs" / "small"), project / "rows.jsonl"
    before, old = {name: tree(project)[name] for name in tree(project) if "adapter/" in name}, rows.read_text()
    rows.write_text(f"{old}{NEW_ROW}\n")

    def killed(self, recipe, asked):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NewStart, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stages(read_recipe(project / "recipe.yaml"), run, STAGES, anew=NewStart(run, True, lambda _: True))
    assert {name: tree(project)[name] for name in before} == before
    done = completed("run", "recipe.yaml", cwd=project)  # the rows are new, and the checkpoints are of the old ones
    assert done.returncode == 5 and "other settings:\n  - data/: other rows" in done.stderr, done.stderr
    rows.write_text(old)
    done = completed("run", "recipe.yaml", "--fresh", "--yes", "--set", "train.epochs=1", cwd=project)
    assert done.returncode == 0 and read_record(run.adapter).settings["train"]["epochs"] == 1, done.stderr


def test_a_kill_at_any_moment_of_a_new_start_leaves_a_run_that_opens(project, tmp_path, monkeypatch):
    recipe = read_recipe(project / "recipe.yaml")
    killed = 0
    for moment in range(30):
        run, left = Run(shutil.copytree(project / "runs" / "small", tmp_path / f"{moment}")), [moment]

        def removed(path, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            remove(path)

        with monkeypatch.context() as patch:
            patch.setattr("tunesmith.files.remove", removed)
            patch.setattr("tunesmith.fresh.remove", removed)
            with contextlib.suppress(KeyboardInterrupt):
                begin_anew(run, True, lambda _: True, recipe)
                break
        killed += 1
        assert Run(run.path).refuse_strangers() is None
        with locked(run):
            assert not list(run.path.glob(".*.gone"))
        after = [folder for folder in run.stage_folders if folder.exists()]
        assert all(map(read_record, after)) and after == stages_of(run)[: len(after)]
        assert not run.checkpoints.exists() or (len(checkpoint_folders(run.checkpoints)) > 1 and run.metrics.exists())
        begin_anew(run, True, lambda _: True, recipe)
        kept = {".lock", "data", "data.html", "recipe.yaml", "manifest.json"}  # what tells of rows stays with them
        assert {path.name for path in run.path.iterdir()} <= kept
    assert killed >= 10


def test_a_disk_that_is_full_while_a_base_or_rows_are_fetched_is_not_the_network(monkeypatch, tmp_path):
    def full(*_, **__):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/hub/blobs/x")
        except OSError as error:
            raise RuntimeError("the download ended") from error

    for name in ("model_info", "dataset_info"):
        monkeypatch.setattr(huggingface_hub, name, full)
    for fetch in (
        lambda: hub.fetch_snapshot("a/b", None, weights=False), lambda: resolve_commit(Source(path="no/such-rows"))
    ):  # fmt: skip
        with pytest.raises(ResourceError, match=r"could not be fetched: /hub/blobs/x could not .* full") as caught:
            fetch()
        assert "HF_HOME" in caught.value.fix and caught.value.__suppress_context__
    ends = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    ended = subprocess.CompletedProcess([], 1, "", ends)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(ResourceError, match=r"the disk of .* is full"):
        builtin.fetch_builtin("builtin:smollm2-135m-instruct", tmp_path)


def test_a_standard_output_that_is_full_ends_with_its_reason_and_nothing_more(project):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tunesmith", "check", "--schema"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=project, check=False)
    assert done.returncode == 7 and "error: standard output could not be written: the disk is full" in done.stderr
    assert "send it elsewhere" in done.stderr and "--run-dir" not in done.stderr
    assert done.stderr.count("\n") == 2, done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 7, "memory is full"), (RecursionError(), 3, "nested too deeply"),
        (OSError(28, "No space left on device", "/x/y"), 7, "/x/y could not be written: the disk is full"),
        (OSError(errno.EDQUOT, "Kontingent", "/x/y"), 7, "/x/y could not be written: the disk is full"),
        (RuntimeError("write failed: No space left on device"), 7, "the disk is full"),
        (UnicodeEncodeError("ascii", "caf\xe9", 3, 4, "no"), 3, "cannot be written as ascii"),
        (ImportError("no torch here", name="torch"), 7, "torch cannot be loaded: no torch here"),
        (ZeroDivisionError("of ours"), 70, "a fault of tunesmith's own: ZeroDivisionError: of ours"),
    ],
)  # fmt: skip
def test_every_foreign_error_ends_with_what_and_fix(error, code, said, capsys, monkeypatch, own_cache):
    def raises():
        raise error

    monkeypatch.setattr(cli, "app", raises)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().err
    assert ended.value.code == code and said in printed and "\n  fix: " in printed and "Traceback" not in printed


def test_a_fault_of_ours_keeps_its_traceback_in_a_file_without_the_token(own_cache, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    try:
        raise KeyError("hf_secretsecret in https://me:password@host/")
    except KeyError as error:
        said = boundary.explained(error)
    assert isinstance(said, InternalError)
    (file,) = (own_cache / "faults").glob("*.txt")
    text = file.read_text()
    assert str(file) in said.fix and "Traceback" in text and "test_refusals.py" in text
    assert "secret" not in text and "password" not in text


def test_prompts_that_are_not_there_are_said_before_the_first_stage(project):
    shutil.rmtree(project / "runs" / "small" / "adapter")
    done = completed("run", "recipe.yaml", "--set", "evaluate.prompts=gone.yaml", cwd=project)
    assert done.returncode == 2 and "gone.yaml cannot be read: No such file or directory\n" in done.stderr
    assert "train" not in done.stderr.replace("trained", "")
