"""The command line: wrong arguments, error texts and exit codes, what stands is skipped at once."""

import errno
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest
from forked import completed as tunesmith
from forked import forked
from small_project import write_project
from tiny import write_rows

from tunesmith import __version__, cli
from tunesmith.boundary import TELLING, told_as_ctrl_c
from tunesmith.decides import as_begun, stands
from tunesmith.errors import BaseError, DataError, ProofError, RecipeError, ResourceError, ResumeError
from tunesmith.gguf.read import convert
from tunesmith.lock import locked
from tunesmith.pipeline import run_stages
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import Run, commit_stage
from tunesmith.stages import STAGES, Stage
from tunesmith.training.stop import Paused
from tunesmith.weights.locate import locate_base

CODE = "from tunesmith.cli import main; main()"


@pytest.fixture
def recipe_path(tmp_path, tiny_base):
    write_rows(tmp_path / "rows.jsonl", [(f"question {i}", f"answer {i}") for i in range(8)])
    (tmp_path / "prompts.yaml").write_text("- Why is the sky blue?\n")
    lines = (
        "name: small",
        f"base: {tiny_base}",
        "seed: 1",
        "data:",
        "  sources: [{path: rows.jsonl}]",
        "  held_out: 0.25",
        "evaluate: {prompts: prompts.yaml}",
    )
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def works(log=None, pause=False):
    """A stand-in for the heavy verbs: commits a folder as they do. What they do is tested beside them."""

    def load(stage):
        def work(recipe, run, base):
            if log is not None:
                log.append(stage.verb)
            if pause and stage.verb == "train":
                raise Paused(3, 0)
            settings, inputs = stage.load_decides()(recipe, run, base.digest)
            return commit_stage(
                run.path / stage.folder,
                settings,
                inputs,
                lambda draft: {"n": (draft / "file").write_text(str(settings))},
            )

        return work

    return load


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runn"], "Did you mean 'run'?"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "a.yaml", "--sett", "a.b=c"], "No such option: --sett"),
        (["chat", "a.gguf", "--port", "70000"], "--port is '70000', and must be"),
        (["compare"], "Missing argument 'RUN'"),
        (["check"], "check needs a recipe"),
        (["compare", "base"], "`base` alone says nothing"),
        (["check", "nothing.yaml"], "recipe nothing.yaml cannot be read"),
    ],
)
def test_wrong_arguments_end_with_2_and_a_hint(arguments, said, tmp_path):
    done = tunesmith(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "may not be written"), (errno.ENOTDIR, "is in the way"), (errno.EISDIR, "is in the way"),
        (errno.EIO, "could not be written or read"), (errno.ENOTCONN, "could not be written or read"),
        (errno.EMFILE, "cannot be opened: too many"), (errno.ENOENT, "is not there"),
        (errno.ENAMETOOLONG, "has a name that is too long"), (errno.ELOOP, "is a link that leads back to itself"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_said_with_its_file(monkeypatch, capsys, number, said):
    def refused():
        raise OSError(number, os.strerror(number), "/drive/run/file")

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 7 and f"error: /drive/run/file {said}" in error and "\n  fix: " in error


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("opens", ["", "cli.app = lambda: open('own', 'w').fileno() > 2 or sys.exit(9);"])
def test_closed_streams_end_nothing_and_no_file_takes_their_place(recipe_path, tmp_path, closed, opens):
    code = f"import sys; from tunesmith import cli; {opens} cli.main()"
    command = f'{sys.executable} -c "{code}" check {recipe_path} {closed}'
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize("terminal", ["ascii", "latin-1"])
def test_a_locale_without_utf8_hides_no_file_and_no_letter(tmp_path, terminal):
    """Names in recipes are UTF-8 and so are those of files, whatever Python thinks; escaped is what cannot be shown."""
    write_rows(tmp_path / "donn\u00e9es.jsonl", [("question", "answer")])
    sources = "[{path: donn\u00e9es.jsonl}, {path: \u00e9t\u00e9.jsonl}]"
    (tmp_path / "r\u00e9.yaml").write_text(f"name: r\nbase: {tmp_path}\ndata: {{sources: {sources}}}\n", "utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": terminal}
    command = [sys.executable, "-c", CODE, "check", "r\u00e9.yaml", "--set", "chat.system=\u65e5"]
    done = subprocess.run(command, env=os.environ | locale, cwd=tmp_path, capture_output=True, check=False)
    encoding = terminal if terminal == "latin-1" else "utf-8"
    shown, said = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 2 and "not on this machine: \u00e9t\u00e9.jsonl does not exist\n" in said, said
    assert "donn\u00e9es.jsonl" in shown and ("\\u65e5" if terminal == "latin-1" else "\u65e5") in shown


def test_a_name_steers_no_terminal(tmp_path):
    (tmp_path / "a\x1b[2J\x9bb.gguf").write_text("none")
    done = tunesmith("chat", "a\x1b[2J\x9bb.gguf", cwd=tmp_path)
    assert (
        done.returncode == 4 and "chat: opening a\ufffd[2J\ufffdb.gguf\nerror: a\ufffd[2J\ufffdb.gguf is" in done.stderr
    )
    (tmp_path / "runs" / "c\x1b[2J").mkdir(parents=True)
    assert "runs/c\ufffd[2J\n" in tunesmith("list", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    "error", [RecipeError("what", fix="fix", where="where"), ResumeError("a", fix="b"), Paused(7, 130)]
)
def test_what_is_raised_can_go_from_process_to_process(error):
    error.add_note("printed before")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def test_version_and_every_verb_in_the_help():
    assert tunesmith("--version").stdout == f"tunesmith {__version__}\n"
    text = tunesmith("--help").stdout
    verbs = ["run", "prepare", "train", "merge", "export", "evaluate", "chat", "compare", "check", "init", "verify"]
    assert [v for v in verbs if f"\n  {v} " not in text] == []
    for verb in verbs:
        assert tunesmith(verb, "--help").returncode == 0


def test_check_reports_every_problem(recipe_path):
    recipe_path.write_text(recipe_path.read_text() + "lora: {rnk: 1}\ntrain: {lr: x}\nexport: {positions: 0}\n")
    done = tunesmith("check", recipe_path)
    assert done.returncode == 2 and "the recipe has 3 problems" in done.stderr
    assert all(f"line {line})" in done.stderr for line in (8, 9, 10))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.lr=x", 'train.lr is "x", which is no number (--set train.lr=x)'),
        ("train.lrr=1", "train.lrr is no setting; did you mean lr? (--set train.lrr=1)"),
        ("trian.lr=1", "trian is no setting; did you mean train? (--set trian.lr=1)"),
        ("export={gguf: [Q9]}", "(--set export={gguf: [Q9]})"),
        ("data.sources.0.limit=0", "(--set data.sources.0.limit=0)"),
        (
            "train.max_length=99999",
            "a step must hold the longest conversation (recipe.yaml, --set train.max_length=99999)",
        ),
        ("trust_remote_code=true", "(--set trust_remote_code=true)"),
    ],
)
def test_a_wrong_set_is_named_and_no_line_of_the_file(recipe_path, change, said):
    recipe_path.write_text(recipe_path.read_text() + "train:\n  epochs: 2\nexport:\n  positions: 4\n")
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe_path, [change])
    assert said in str(caught.value).replace(str(recipe_path), "recipe.yaml")
    assert ", line " not in str(caught.value)


def test_what_the_file_says_is_still_blamed_on_its_line(recipe_path):
    recipe_path.write_text(recipe_path.read_text() + "train:\n  epochs: 0\n")
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe_path, ["train.lr=x"])
    assert (
        "train.epochs" in str(caught.value)
        and "line 9)" in str(caught.value)
        and "(--set train.lr=x)" in str(caught.value)
    )
    assert "correct the recipe and --set" in caught.value.fix


def test_a_stage_without_the_one_before_names_it(recipe_path, tmp_path):
    done = tunesmith("merge", recipe_path, "--run-dir", tmp_path / "run")
    assert done.returncode == 5 and "`tunesmith train` makes" in done.stderr
    done = tunesmith("chat", tmp_path / "run")
    assert done.returncode == 2 and "is no run folder" in done.stderr  # nothing was done in it
    done = tunesmith("export", tmp_path)  # it has a recipe.yaml, but the user's
    assert done.returncode == 5 and "is no run folder: tunesmith did not make its recipe.yaml" in done.stderr


def test_a_folder_that_is_no_run_is_said(tmp_path):
    done = tunesmith("train", tmp_path)
    assert done.returncode == 2 and "is no run folder" in done.stderr


def test_a_base_that_does_not_exist_ends_with_4(recipe_path, tmp_path):
    done = tunesmith("run", recipe_path, "--set", "base=./nowhere", "--run-dir", tmp_path / "run")
    assert done.returncode == 4 and "nowhere" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_stages_run_in_order_once_and_again_from_what_changed(recipe_path, tmp_path):
    run, log = Run(tmp_path / "run"), []
    recipe = read_recipe(recipe_path)
    run_stages(recipe, run, STAGES, works(log=log))
    assert (
        log
        == [stage.verb for stage in STAGES if not stage.scores]
        == ["prepare", "train", "merge", "export", "evaluate"]
    )
    run_stages(recipe, run, STAGES, works(log=log))
    assert len(log) == 5
    changed = read_recipe(recipe_path, ["evaluate.max_tokens=5", "checkpoint.every=9 steps"])
    run_stages(changed, run, STAGES, works(log=log))
    assert log[5:] == ["evaluate"]
    assert read_recipe(run.recipe).checkpoint.every == "9 steps"
    (tmp_path / "rows.jsonl").write_text('{"other": "rows"}\n')
    run_stages(changed, run, STAGES[:1], works(log=log))
    assert log[6:] == ["prepare"]


def test_what_decides_a_stage(recipe_path, tmp_path):
    run = Run(tmp_path / "run")
    recipe = read_recipe(recipe_path)
    run_stages(recipe, run, STAGES, works())
    digest = locate_base(recipe.base, convert).digest
    for change, remade in {
        "train.lr=1e-3": {"train"},
        "train.stop_after=3 steps": set(),
        "train.recompute=on": set(),
        "checkpoint.keep.last=9": set(),
        "train.max_length=1024": {"prepare", "train"},
        "data.dedup=off": {"prepare"},
        "seed=9": {"prepare", "train", "export"},
        "chat.temperature=0": {"export"},
        "chat.slots=1": set(),
        "chat.system=Be kind.": {"prepare", "merge", "export", "evaluate"},
        "export.gguf=[Q8_0]": {"export"},
        "data.date=2026-02-02": {"prepare", "merge", "export"},
    }.items():
        changed = read_recipe(recipe_path, [change])
        wanted = [stage for stage in STAGES if stage.is_wanted(changed)]
        assert {stage.verb for stage in wanted if not stands(stage, changed, run, digest)} == remade, change


def test_the_same_rows_in_another_place_are_the_same_input(recipe_path, tmp_path):
    run = Run(tmp_path / "run")
    run_stages(read_recipe(recipe_path), run, STAGES[:1], works())
    (tmp_path / "rows.jsonl").rename(tmp_path / "moved.jsonl")
    moved = read_recipe(recipe_path, ["data.sources.0.path=moved.jsonl"])
    assert stands(STAGES[0], moved, run, locate_base(moved.base, convert).digest)


def test_a_pause_ends_the_run_without_the_later_stages(recipe_path, tmp_path):
    log = []
    result = run_stages(read_recipe(recipe_path), Run(tmp_path / "run"), STAGES, works(log, pause=True))
    assert not result.done and result.paused.step == 3 and "paused at step 3" in str(result)
    assert log == ["prepare", "train"] and (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize(
    "kind", [RecipeError, DataError, BaseError, ResumeError, ProofError, ResourceError, KeyboardInterrupt]
)
@pytest.mark.parametrize("change", ["train.lr=1", "seed=9", "data.dedup=off"])
def test_a_refused_recipe_does_not_replace_the_one_of_the_run(recipe_path, tmp_path, kind, change):
    run = Run(tmp_path / "run")
    run_stages(read_recipe(recipe_path), run, STAGES, works())
    before, adapter = run.recipe.read_text(), read_record(run.adapter)

    def refuses(stage):
        if stage.verb != "train":  # with another seed the rows are made anew first
            return works()(stage)
        raise kind("other recipe", fix="use the first") if kind is not KeyboardInterrupt else kind

    with pytest.raises(kind):
        run_stages(read_recipe(recipe_path, [change]), run, STAGES, refuses)
    assert run.recipe.read_text() == before and read_record(run.adapter) == adapter
    log = []
    run_stages(read_recipe(run.recipe), run, STAGES, works(log))  # and with the recipe of the run all is as it was
    assert log == ([] if change == "train.lr=1" else ["prepare"]) and run.recipe.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--set", "base=./nowhere"], 4),
        (["--set", "data.sources.0.path=gone.jsonl"], 3),
        (["--set", "train.lr=x"], 2),
        (["--set", "evaluate.prompts=gone.yaml"], 2),
    ],
)
def test_nor_does_one_that_is_refused_by_its_exit_code(recipe_path, tmp_path, arguments, code):
    run = Run(tmp_path / "run")
    run_stages(read_recipe(recipe_path), run, STAGES, works())
    before = run.recipe.read_text()
    with forked(tmp_path / "output", "run", recipe_path, "--run-dir", run.path, *arguments) as process:
        assert process.wait() == code and "Traceback" not in process.stderr, process.stderr
    assert run.recipe.read_text() == before


def test_nor_does_one_of_which_only_a_later_stage_was_done(recipe_path, tmp_path):
    run = Run(tmp_path / "run")
    run_stages(read_recipe(recipe_path), run, STAGES, works())
    before, log = run.recipe.read_text(), []
    changed = read_recipe(recipe_path, ["train.lr=1", "evaluate.max_tokens=5"])
    run_stages(changed, run, STAGES[5:], works(log))  # the adapter was made with another learning rate, and stays
    assert log == ["evaluate"] and run.recipe.read_text() == before
    run_stages(read_recipe(recipe_path, ["seed=9"]), run, STAGES[:1], works(log))  # rows that the adapter has not seen
    assert log == ["evaluate", "prepare"] and run.recipe.read_text() == before


def test_what_auto_was_decided_as_is_kept(recipe_path, tmp_path):
    run = Run(tmp_path / "run")
    run_stages(
        read_recipe(recipe_path, ["train.precision=bf16", "train.micro_batch_tokens=512"]), run, STAGES[:1], works()
    )
    kept = as_begun(read_recipe(recipe_path, ["train.micro_batch_tokens=256"]), run).train
    assert (kept.precision, kept.micro_batch_tokens, kept.recompute) == ("bf16", 256, "auto")


def test_two_processes_do_not_share_a_run(recipe_path, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        done = tunesmith("run", recipe_path, "--run-dir", run)
        assert done.returncode == 5 and "process 4711 is already working" in done.stderr
        fcntl.flock(file, fcntl.LOCK_SH)  # as verify has it
        done = tunesmith("run", recipe_path, "--run-dir", run)
        assert done.returncode == 5 and "another process reads this run folder" in done.stderr
        assert "4711" not in done.stderr
    assert tunesmith("merge", recipe_path, "--run-dir", run).returncode == 5  # the lock is free; merge lacks train
    assert "4711" not in (run / ".lock").read_text()


def test_a_run_where_all_stands_is_over_at_once_without_torch(recipe_path, tmp_path):
    run = Run(tmp_path / "run")
    run_stages(read_recipe(recipe_path), run, STAGES, works())
    code = (
        "import sys\nfrom tunesmith.cli import main\ntry: main()\n"
        "except SystemExit as end: sys.exit(end.code or ('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "run", recipe_path, "--run-dir", run.path],
        capture_output=True,
        text=True,
        check=False,
    )
    elapsed_s = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    said = [f"run: reading {recipe_path}", *(f"{stage.verb:<9} already done" for stage in STAGES if not stage.scores)]
    assert done.stderr.splitlines() == said
    assert "small is ready:" in done.stdout and f"tunesmith chat {run.path}" in done.stdout
    assert elapsed_s < 3, f"{elapsed_s:.1f} s"
    by_folder = tunesmith("evaluate", run.path)  # the run folder names its recipe as well
    assert by_folder.returncode == 0 and by_folder.stderr.splitlines()[1:] == ["evaluate  already done"]


def test_the_record_tells_what_the_stage_was_made_from(recipe_path, tmp_path):
    run = Run(tmp_path / "run")
    run_stages(read_recipe(recipe_path), run, STAGES[:1], works())
    record = read_record(run.data)
    assert record.settings["max_length"] == 2048 and set(record.inputs) == {"base", "prompts", "source_0"}


def test_exit_codes_of_pauses_and_a_pause_holds_for_its_call_only(tiny_base, tmp_path):
    recipe, run, output = write_project(tmp_path, tiny_base), Run(tmp_path / "run"), tmp_path / "output"
    where, long = ("--run-dir", run.path), ("--set", "train.epochs=200", "--set", "train.evaluate_every=9 steps")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with forked(output, "run", recipe, *where, *long) as process:
            process.wait_until_said("held-out loss")
            process.send_signal(number)
            assert process.wait() == code and "the same command goes on" in process.stderr
            assert "Traceback" not in process.stderr and not run.adapter.exists()
    for path in sorted(run.checkpoints.iterdir()):
        assert path.name.startswith("step-")
    short = tmp_path / "short"
    with forked(output, "run", recipe, "--run-dir", short, "--set", "train.stop_after=2 steps") as process:
        assert process.wait() == 0 and "stopped at step 2" in process.stderr, process.stderr
    assert not (short / "adapter").exists()
    with forked(output, "run", short) as process:  # nothing of stop_after is left
        assert process.wait() == 0 and "small is ready:" in process.stdout, process.stderr
    assert (short / "evaluation" / "scores.json").exists()


def told_at(verb, number, again, ignored):
    """In a process to be: it gets the signal, some times, as it loads what does a stage; where `ignored`, as nohup."""
    real = Stage.load_work
    if ignored:
        signal.signal(number, signal.SIG_IGN)

    def load_work(stage):
        if stage.verb == verb:
            try:
                os.kill(os.getpid(), number)
                time.sleep(0 if ignored else 60)
            finally:
                for _ in range(again):
                    os.kill(os.getpid(), number)
                print("cleaned up", flush=True)
        return real(stage)

    run_stages.__defaults__ = (STAGES, load_work, None)


@pytest.mark.parametrize(
    ("verb", "number", "code"),
    [("prepare", signal.SIGTERM, 143), ("prepare", signal.SIGHUP, 129), ("run", signal.SIGUSR1, 138)],
)
def test_a_signal_outside_training_ends_as_ctrl_c_with_its_own_code(recipe_path, tmp_path, verb, number, code):
    run = Run(tmp_path / "run")
    with forked(
        tmp_path / "out", verb, recipe_path, "--run-dir", run.path, before=told_at, given=("prepare", number, 2, False)
    ) as child:
        assert child.wait() == code, child.stderr
        assert "interrupted; the same command goes on from what is committed" in child.stderr
        assert child.stdout == "cleaned up\n" and "Traceback" not in child.stderr
    assert not run.data.exists() and run.manifest.exists()  # what is done at an end was done
    with locked(run):
        pass


def test_a_signal_that_nohup_ignores_ends_nothing(recipe_path, tmp_path):
    given = ("prepare", signal.SIGHUP, 0, True)
    with forked(
        tmp_path / "out", "prepare", recipe_path, "--run-dir", tmp_path / "run", before=told_at, given=given
    ) as child:
        assert child.wait() == 0, child.stderr


def test_handlers_are_only_set_where_nobody_has_one_and_put_back():
    def own(*_):
        raise AssertionError("told")

    before = {number: signal.getsignal(number) for number in TELLING}
    signal.signal(signal.SIGUSR1, own)
    try:
        with told_as_ctrl_c():
            assert signal.getsignal(signal.SIGUSR1) is own
            with pytest.raises(KeyboardInterrupt), told_as_ctrl_c():
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # the second of two
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with told_as_ctrl_c():
        assert all(signal.getsignal(number) is not before[number] for number in TELLING)
        found = []
        thread = threading.Thread(target=lambda: told_as_ctrl_c().__enter__() or found.append(1))
        thread.start()
        thread.join()
        assert found
    assert {number: signal.getsignal(number) for number in TELLING} == before
