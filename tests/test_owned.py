"""What the user owns is never deleted or replaced: folders, recipes, reports, hidden files; each is refused by name."""

import json
import os
import shutil
from pathlib import Path

import pytest
from forked import completed as tunesmith
from forked import forked
from tiny import write_rows

from tunesmith import past
from tunesmith.decides import data_needs_now, sources_of
from tunesmith.errors import RecipeError, ResumeError
from tunesmith.files import DRAFT, GONE, OLD, RECORD, commit_folder, sweep, write_user_file
from tunesmith.lock import locked
from tunesmith.pipeline import run_stages
from tunesmith.planning.fit import unfitted
from tunesmith.planning.starter import Answers, write_starter
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import MADE_BY, Run, checkpoint_folders, commit_stage, write_manifest
from tunesmith.stages import STAGES
from tunesmith.stale import keep_rows_of_checkpoints
from tunesmith.study.compare import compare
from tunesmith.study.report_file import HEAD_BYTES, MARK
from tunesmith.tokens.prepare import prepare
from tunesmith.training.metrics import Metrics
from tunesmith.training.state import Progress

CLUTTER = (".DS_Store", "desktop.ini", "Thumbs.db", "._notes", ".ipynb_checkpoints/a-checkpoint.txt")
MADE_BY_0_1 = Path(__file__).parent / "data" / "version-0.1"


def tree(folder):
    """Every file's bytes, and every folder, below `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def put(folder, *names, text="the user's own"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def project(tmp_path, tiny_base):
    """A folder as users have them: a recipe, training data in data/, models, notes."""
    folder = tmp_path / "project"
    put(folder, "notes.txt", "model/weights.bin", "gguf/mine-Q5_K_M.gguf", "checkpoints/step-000001/mine.bin")
    put(folder, "data/record.json", text='{"my": "own record"}')
    write_rows(folder / "data" / "rows.jsonl", [(f"question {i}", f"answer {i}") for i in range(8)])
    recipe = f"name: small\nbase: {tiny_base}\ndata:\n  sources: [{{path: data/rows.jsonl}}]\n  held_out: 0.25\n"
    put(folder, "recipe.yaml", text=recipe)
    return folder


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["prepare", "recipe.yaml", "--run-dir", "."], "tunesmith did not make its recipe.yaml"),
        (["run", ".", "--set", "train.lr=1e-3"], "tunesmith did not make its recipe.yaml"),
        (["prepare", "recipe.yaml", "--run-dir", "data"], "holds record.json, rows.jsonl"),
        (["prepare", "recipe.yaml", "--run-dir", "notes.txt"], "is a file"),
    ],
)
def test_a_folder_of_the_user_is_no_run_folder_and_keeps_every_byte(project, arguments, named):
    before = tree(project)
    done = tunesmith(*arguments, cwd=project)
    assert done.returncode == 5 and named in done.stderr and "--run-dir" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and tree(project) == before


def test_nor_is_one_without_a_recipe_whose_data_folder_was_lost_before(project):
    (project / "recipe.yaml").rename(project.parent / "recipe.yaml")
    (project / "data" / "rows.jsonl").rename(project.parent / "rows.jsonl")
    before = tree(project)
    recipe = project.parent / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("data/rows", "rows"))
    done = tunesmith("prepare", recipe, "--run-dir", ".", cwd=project)
    assert done.returncode == 5 and "and holds checkpoints, data, gguf and 2 more" in done.stderr, done.stderr
    assert tree(project) == before


def test_a_run_in_a_folder_of_its_own_leaves_the_project_as_it_is(project, tmp_path, monkeypatch):
    before = tree(project)
    monkeypatch.chdir(project)
    with forked(tmp_path / "output", "prepare", "recipe.yaml") as process:
        assert process.wait() == 0, process.stderr
    assert read_record(project / "runs" / "small" / "data").counts["read"] == 8
    assert (project / "runs" / "small" / "recipe.yaml").read_text().startswith(MADE_BY)
    shutil.rmtree(project / "runs")
    assert tree(project) == before


def made(run):
    """A stage of ours in a run."""
    commit_stage(run.data, {"a": 1}, {}, lambda draft: {"n": (draft / "rows").write_text("rows")})


def test_what_counts_as_an_empty_folder(tmp_path):
    run = Run(tmp_path / "run")
    run.refuse_strangers()  # not there
    run.path.mkdir()
    put(run.path, *CLUTTER, ".data.draft/half", ".model.gone/half", ".recipe.yaml.draft")
    put(run.path, ".lock", text="4711")
    with locked(run):
        assert sorted(path.name for path in run.path.iterdir()) == sorted(
            {name.split("/")[0] for name in CLUTTER} | {".lock"}
        )
    write_manifest(run)  # as after a prepare that failed
    run.refuse_strangers()
    made(run)  # killed before its recipe.yaml
    put(run.path, "metrics.jsonl", "checkpoints/step-000001/state.json")
    run.refuse_strangers()
    put(run.path, "notes.txt")
    with pytest.raises(ResumeError, match=r"and holds notes\.txt"):
        run.refuse_strangers()


@pytest.mark.parametrize(
    "names",
    [["manifest.json"], ["a.txt"], [".hidden"], [".other.draft"], ["model/a.bin"], ["data/record.json"], [".lock"]],
)
def test_what_does_not(tmp_path, names):
    put(tmp_path, *names, text='{"files": ["the user\'s"]}')
    before = tree(tmp_path)
    with pytest.raises(ResumeError, match="is no run folder"), locked(Run(tmp_path)):
        raise AssertionError("taken")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("beside", [".lock", "manifest.json"])
def test_nor_does_what_we_write_beside_a_recipe_that_somebody_wrote(tmp_path, beside):
    put(tmp_path, "recipe.yaml", text="# my note\nname: a\nbase: b\n")
    put(tmp_path, beside, text="" if beside == ".lock" else '{"files": {}}')
    with pytest.raises(ResumeError, match=r"tunesmith did not make its recipe\.yaml"):
        Run(tmp_path).refuse_strangers()
    (tmp_path / "recipe.yaml").unlink()
    if beside == "manifest.json":
        with pytest.raises(ResumeError, match=r"and holds manifest\.json"):
            Run(tmp_path).refuse_strangers()


@pytest.mark.parametrize("name", ["finished", "half"])
def test_runs_of_version_0_1_are_run_folders_and_a_recipe_alone_is_none(tmp_path, name):
    run = Run(shutil.copytree(MADE_BY_0_1 / name, tmp_path / "run"))
    assert not run.recipe.read_text().startswith(MADE_BY)
    run.refuse_strangers()
    for beside in (
        ["manifest.json"],
        ["data"],
        [".lock"],
    ):  # each of them is enough
        alone = Run(tmp_path / beside[0].strip("."))
        alone.path.mkdir()
        for what in ("recipe.yaml", *beside):
            if (run.path / what).is_dir():
                shutil.copytree(run.path / what, alone.path / what)
            elif what == ".lock":
                alone.lock.write_text("4711")
            else:
                shutil.copy(run.path / what, alone.path / what)
        alone.refuse_strangers()
    bare = Run(tmp_path / "bare")
    put(bare.path, "recipe.yaml", text=run.recipe.read_text())
    with pytest.raises(ResumeError, match=r"did not make its recipe\.yaml"):
        bare.refuse_strangers()


def test_a_recipe_of_the_user_is_not_replaced_by_a_stage_that_is_called_alone(project):
    recipe = read_recipe(project / "recipe.yaml")
    with pytest.raises(ResumeError, match=r"recipe\.yaml was not made by tunesmith"):
        Run(project).keep_recipe(recipe)
    assert (
        read_recipe(project / "recipe.yaml") == recipe and "# The recipe" not in (project / "recipe.yaml").read_text()
    )


@pytest.mark.parametrize("record", [None, "{}", '["data"]', "no JSON", "other stage"])
def test_a_folder_that_no_stage_made_is_not_replaced_and_nothing_is_worked_for_it(tmp_path, record):
    folder = tmp_path / "data"
    made(Run(tmp_path / "elsewhere"))
    put(folder, "mine.txt")
    if record == "other stage":
        record = (tmp_path / "elsewhere" / "data" / RECORD).read_text().replace('"stage": "data"', '"stage": "model"')
    if record:
        put(folder, RECORD, text=record)
    before = tree(tmp_path)

    def work(draft):
        raise AssertionError("worked")

    with pytest.raises(ResumeError, match=r"not replaced|is damaged") as caught:
        commit_stage(folder, {"a": 2}, {}, work)
    assert "move it" in caught.value.fix and tree(tmp_path) == before


def test_nor_is_one_of_ours_that_holds_a_file_of_the_users_but_clutter_is_no_file(tmp_path):
    run = Run(tmp_path)
    made(run)
    put(run.data, *CLUTTER, ".cache/huggingface/a")
    commit_stage(run.data, {"a": 2}, {}, lambda draft: {"n": (draft / "rows").write_text("others")})
    assert (run.data / "rows").read_text() == "others" and not (run.data / ".DS_Store").exists()
    put(run.data, "sub/notes.txt")
    with pytest.raises(ResumeError, match=r"holds what tunesmith did not make: sub/notes\.txt"):
        commit_stage(run.data, {"a": 3}, {}, lambda draft: {})
    assert (run.data / "sub" / "notes.txt").exists() and (run.data / "rows").read_text() == "others"


@pytest.mark.parametrize("stands", ["folder", "file", "link", "dead link"])
def test_a_folder_of_the_cache_is_never_replaced(tmp_path, stands):
    target, other = tmp_path / "entry", tmp_path / "other"
    put(other, "a")
    if stands == "folder":
        target.mkdir()
    elif stands == "file":
        target.write_text("a")
    else:
        target.symlink_to(other if stands == "link" else tmp_path / "nowhere")
    with pytest.raises(ResumeError, match="is there already"):
        commit_folder(target, lambda draft: put(draft, "b"))
    assert os.path.lexists(target) and tree(other) == {"a": b"the user's own"}


def test_a_stage_folder_that_is_a_link_is_replaced_by_name_and_what_it_points_to_stays(tmp_path):
    elsewhere, run = Run(tmp_path / "elsewhere"), Run(tmp_path / "run")
    made(elsewhere)
    run.path.mkdir()
    run.data.symlink_to(elsewhere.data)
    before = tree(elsewhere.path)
    commit_stage(run.data, {"a": 2}, {}, lambda draft: {"n": (draft / "rows").write_text("others")})
    assert not run.data.is_symlink() and tree(elsewhere.path) == before and not list(run.path.glob(".data*"))


def test_sweeping_clears_our_names_only(tmp_path):
    run = Run(tmp_path)
    made(run)
    mine = [".notes.draft", ".thesis.old/a", ".model.old/not-ours", ".stuff.gone", "checkpoints/.mine.draft"]
    mine += ["checkpoints/.step-000001.zip.old/a", "checkpoints/.damaged-step-000001-5/state.json"]
    put(tmp_path, *mine)
    ours = [f".data.{DRAFT}/half", f".gguf.{GONE}/half", f".loss.png.{DRAFT}", f"data/.{RECORD}.{DRAFT}"]
    ours += [f"checkpoints/.step-000009.{DRAFT}/half", f"checkpoints/.step-1000000.{GONE}/half", f".proof.{DRAFT}/F16"]
    put(tmp_path, *ours)
    run.sweep()
    assert all((tmp_path / name).exists() for name in mine)
    assert not any((tmp_path / name).exists() for name in ours) and read_record(run.data)


def test_a_folder_that_was_moved_aside_is_put_back_or_cleared(tmp_path):
    run = Run(tmp_path)
    made(run)
    run.data.rename(tmp_path / f".data.{OLD}")
    sweep([run.data])
    assert [path.name for path in tmp_path.iterdir()] == ["data"] and read_record(run.data)
    shutil.copytree(run.data, tmp_path / f".data.{OLD}")
    sweep([run.data])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_in_the_way_of_a_later_stage_is_named_before_the_first(project, tmp_path):
    recipe, run = read_recipe(project / "recipe.yaml"), Run(tmp_path / "run")
    run_stages(recipe, run, STAGES[:1])
    put(run.path, "model/mine.bin")
    with pytest.raises(ResumeError, match=r"model is not replaced: tunesmith did not make it"):
        run_stages(recipe, run, STAGES, lambda stage: pytest.fail(f"{stage.verb} was begun"))
    assert (run.model / "mine.bin").exists()


def test_names_that_are_no_checkpoints_do_not_keep_the_data(project, tmp_path):
    recipe, run = read_recipe(project / "recipe.yaml"), Run(tmp_path / "run")
    base = type("Base", (), {"digest": "d", "folder": Path(recipe.base), "name": "tiny"})()
    prepare(recipe, run, base, [])
    put(run.checkpoints, "step-000001.zip", "step-000040 (1)/state.json", "step-", "step-x/a", "step-000002")
    assert checkpoint_folders(run.checkpoints) == []
    longer = recipe.model_copy(update={"seed": 5})
    assert prepare(longer, run, base, [])[1]
    put(run.checkpoints, "step-1000000/state.json", "step-999999/state.json", "step-000040/state.json")
    assert [p.name for p in checkpoint_folders(run.checkpoints)] == ["step-000040", "step-999999", "step-1000000"]
    with pytest.raises(ResumeError, match="trained on other data"):
        keep_rows_of_checkpoints(run, data_needs_now(recipe, "d"), sources_of(recipe))


@pytest.mark.parametrize("name", ["thesis.html", "folder"])
def test_a_report_does_not_replace_a_file_of_the_users(tmp_path, name):
    put(tmp_path, "thesis.html", "folder/a", text="<title>thesis</title>")
    before = tree(tmp_path)
    with pytest.raises(RecipeError, match=r"is no report|is a folder") as caught:
        compare(["run"], tmp_path / name)
    assert "--report" in caught.value.fix and tree(tmp_path) == before
    put(tmp_path, "report.html", text="<title>a, b: tunesmith report</title>")
    with pytest.raises(ResumeError, match="is no run folder"):  # one of ours is made again
        compare(["run"], tmp_path / "report.html")


def test_a_report_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "report.html")
    with open(os.open(tmp_path / "report.html", os.O_RDWR), "wb", buffering=0) as pipe:
        pipe.write(MARK.ljust(HEAD_BYTES))  # or one who reads it would wait for ever
        with pytest.raises(RecipeError, match="is no report"):
            compare(["run"], tmp_path / "report.html")


def test_what_is_kept_of_damaged_metrics_does_not_make_a_run_folder_strange(tmp_path):
    run = Run(tmp_path / "run")
    commit_stage(run.data, {}, {}, lambda draft: {})
    run.metrics.write_text("no line\n")
    Metrics(run.metrics).cut_back(Progress())
    run.refuse_strangers()
    put(run.path, ".damaged-notes.txt")
    with pytest.raises(ResumeError, match=r"holds .damaged-notes.txt"):
        run.refuse_strangers()


def test_a_report_below_a_file_is_refused_at_once(tmp_path):
    put(tmp_path, "thesis.html")
    with pytest.raises(RecipeError, match=r"cannot be written: .*thesis.html is no folder"):
        compare(["run"], tmp_path / "thesis.html" / "more" / "report.html")


@pytest.mark.parametrize("stands", [False, True])
def test_what_is_written_among_files_of_the_users_touches_no_other_and_leaves_a_link_one(tmp_path, stands):
    put(tmp_path, ".recipe.yaml.draft", ".schema.json.draft", "elsewhere/.real.html.draft")
    write_user_file(tmp_path / ("n" * 255), "a name as long as one may be")
    (tmp_path / "page.html").symlink_to(tmp_path / "elsewhere" / "real.html")
    (tmp_path / "schema.json").symlink_to(tmp_path / "elsewhere" / "schema.json")
    if stands:
        put(tmp_path, "elsewhere/real.html", text="old")
    before = tree(tmp_path)
    write_user_file(tmp_path / "page.html", "new")
    assert write_starter(tmp_path / "recipe.yaml", Answers("a/b", "n"), unfitted("nobody looked")) == [
        tmp_path / "recipe.yaml"
    ]
    after = tree(tmp_path)
    made = {name: found for name, found in after.items() if found != before.get(name)}
    assert (tmp_path / "page.html").is_symlink() and made.pop("page.html") == made.pop("elsewhere/real.html") == b"new"
    assert list(made) == ["recipe.yaml"] and (tmp_path / "schema.json").is_symlink() and before.keys() <= after.keys()


def test_a_proof_that_is_done_later_in_a_run_of_version_0_1_is_remembered(tmp_path):
    raw = json.loads((MADE_BY_0_1 / "finished" / "model" / RECORD).read_text())
    skipped = past.record_as_now(raw | {"counts": {"proof": None}})
    assert [proof["skipped_because"] is None for proof in skipped["proofs"]] == [False]
    done = [{**proof, "value": 0.0, "positions": 9, "skipped_because": None} for proof in skipped["proofs"]]
    assert past.record_as_now(skipped | {"proofs": done})["proofs"] == done
