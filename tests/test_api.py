"""The Python API as a script or a notebook has it: what it loads, returns, raises, and leaves alone."""

import contextlib
import gc
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from forked import forked
from small_project import write_project

import tunesmith
from tunesmith import machine
from tunesmith.errors import BaseError, RecipeError, ResourceError, ResumeError
from tunesmith.recipe import ChatConfig
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import MADE_BY, Run, commit_stage
from tunesmith.server.door import Door
from tunesmith.server.handle import Chat, Served

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def project(tiny_base, tmp_path_factory):
    """A recipe file and, beside it, its finished run."""
    folder = tmp_path_factory.mktemp("project")
    recipe = write_project(folder, tiny_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        result = tunesmith.run(recipe, folder / "run")
    return recipe, result


@pytest.fixture
def copied(project, tmp_path):
    """The finished run, for a test that changes it."""
    shutil.copytree(project[1], tmp_path / "run")
    return Run(tmp_path / "run")


def fresh(code, *arguments, **options):
    """The code in a Python of its own."""
    command = [sys.executable, "-c", code, *map(os.fspath, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def gone(pid, within_s=15):
    """Whether a process ends within some seconds. One that is dead and not yet waited for counts as ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):  # the second where it goes as it is read
            return True
        time.sleep(0.05)
    return False


def test_import_is_light_and_the_four_names_are_there():
    code = (
        "import sys, tunesmith; assert not {'pydantic', 'typer', 'numpy', 'torch', 'rich'} & set(sys.modules)\n"
        "names = {'__version__', 'load_recipe', 'run', 'chat', 'compare'}\n"
        "assert set(tunesmith.__all__) == names <= set(dir(tunesmith))\n"
        "tunesmith.load_recipe, tunesmith.run, tunesmith.chat, tunesmith.compare\n"
        "assert not {'numpy', 'torch', 'matplotlib', 'xllamacpp'} & set(sys.modules)\n"
        "import tunesmith.runs\n"
        "try: tunesmith.publish\n"
        "except AttributeError as error: print(error)\n"
    )
    done = fresh(code)
    assert (done.returncode, done.stdout) == (0, "module 'tunesmith' has no attribute 'publish'\n"), done.stderr


def test_a_recipe_by_its_file_by_its_run_and_with_changes(project):
    path, result = project
    assert tunesmith.load_recipe(path) == read_recipe(path)
    assert tunesmith.load_recipe(str(path), ["train.lr=1e-4", "seed=3"]).train.lr == 1e-4
    assert tunesmith.load_recipe(path, "train.lr=1e-4").train.lr == 1e-4  # one change, not its letters
    assert tunesmith.load_recipe(result).train.micro_batch_tokens == 400  # as the run resolved it
    with pytest.raises(RecipeError, match=r'train\.lr is "x", which is no number \(--set train\.lr=x\)'):
        tunesmith.load_recipe(path, ["train.lr=x"])
    with pytest.raises(RecipeError, match="is no run folder: it has no recipe"):
        tunesmith.load_recipe(path.parent / "cache")


def test_run_says_where_all_is_and_is_the_folder(project):
    path, result = project
    assert result.done and result.paused is None and os.fspath(result) == str(path.parent / "run")
    assert str(result) == repr(result) and "small is ready:" in repr(result) and "small-Q8_0.gguf" in repr(result)
    before = result.run.manifest.read_bytes()
    for named in (path, tunesmith.load_recipe(path)):
        assert tunesmith.run(named, result).done
    assert tunesmith.run(result).done and result.run.manifest.read_bytes() == before


def test_a_recipe_in_memory_takes_changes_and_goes_to_runs(project, monkeypatch, capsys):
    path, _ = project
    monkeypatch.chdir(path.parent)
    recipe = tunesmith.load_recipe(path, ["name=other"])
    result = tunesmith.run(recipe, changes=["train.stop_after=1 steps"])
    assert result.run.path == Path("runs/other") and result.paused.step == 1 and not result.done
    assert "other is paused at step 1; the same call goes on" in repr(result)
    assert read_recipe(result.run.recipe).train.stop_after is None
    with pytest.raises(RecipeError, match=r"train\.epochs"):
        tunesmith.run(recipe, changes=["train.epochs=-1"])
    shutil.rmtree("runs")


def test_a_pause_holds_for_its_call_only_and_signals_are_left_alone(tiny_base, tmp_path, own_cache):
    recipe = write_project(tmp_path, tiny_base)
    handlers = [signal.getsignal(number) for number in SIGNALS]
    paused = tunesmith.run(recipe, tmp_path / "run", ["train.stop_after=2 steps", "checkpoint.every=1 steps"])
    assert not paused.done and paused.paused.step == 2 and not paused.run.adapter.exists()
    kept = read_recipe(paused.run.recipe)
    assert (kept.train.stop_after, kept.checkpoint.every) == (None, "5min")
    done = tunesmith.run(paused)
    assert done.done and read_record(done.run.adapter).counts["steps"] > 2
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_run_works_where_no_handler_can_be_installed(tiny_base, tmp_path, own_cache):
    recipe, found = write_project(tmp_path, tiny_base), []
    thread = threading.Thread(target=lambda: found.append(tunesmith.run(recipe, tmp_path / "run")))
    thread.start()
    thread.join()
    assert found and found[0].done  # in a thread that is not the main one, signal.signal is an error


def test_errors_are_ours_and_the_interpreter_goes_on(project, tmp_path):
    path, _ = project
    with pytest.raises(BaseError, match="nowhere"):
        tunesmith.run(path, tmp_path / "run", ["base=./nowhere"])
    with pytest.raises(ResumeError, match="is no run folder"):
        tunesmith.compare([tmp_path / "run"])
    with pytest.raises(RecipeError, match="`base` alone says nothing"):
        tunesmith.compare("base")
    with pytest.raises(RecipeError, match="there is no run and no file") as caught:
        tunesmith.chat(tmp_path / "run")
    assert "runs/NAME" in caught.value.fix and "GGUF" in caught.value.fix


def test_compare_takes_results_and_returns_the_page(project, tmp_path, capsys):
    _, result = project
    page = tunesmith.compare([result, "base"], tmp_path / "page.html")
    assert page == tmp_path / "page.html" and "run against base" in page.read_text()
    assert tunesmith.compare(result) == result.run.report and result.run.report.exists()
    assert "held-out loss" in capsys.readouterr().out


def test_chat_answers_until_it_is_closed(project):
    _, result = project
    with tunesmith.chat(result, changes=["chat.temperature=0", "chat.context=512"]) as chat:
        assert get(f"{chat.url}/v1/models")["data"][0]["id"] == "small" and chat.url in repr(chat)
        asked = {"messages": [{"role": "user", "content": "What is a step?"}], "max_tokens": 4}
        request = urllib.request.Request(f"{chat.url}/v1/chat/completions", json.dumps(asked).encode())
        assert get(request)["usage"]["completion_tokens"] > 0
        pid, url = chat.pid, chat.url
    assert gone(pid) and repr(chat) == "small is closed"
    with pytest.raises(urllib.error.URLError):
        get(f"{url}/v1/models")
    chat.close()  # a second time is nothing
    assert chat.wait() is None


def test_chat_ends_while_an_answer_is_read(project):
    _, result = project
    chat = tunesmith.chat(result.run.gguf_file("small", "Q8_0"))
    asked = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 3000, "stream": True, "ignore_eos": True}
    request = urllib.request.Request(f"{chat.url}/v1/chat/completions", json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.readline().startswith(b"data:")
        started = time.monotonic()
        chat.close()
        assert time.monotonic() - started < 5 and gone(chat.pid)


def test_a_dropped_handle_ends_its_engine(project):
    chat = tunesmith.chat(project[1])
    pid = chat.pid
    del chat
    gc.collect()
    assert gone(pid)


SERVES = "import sys, time, tunesmith\nchat = tunesmith.chat(sys.argv[1])\nprint(chat.pid, flush=True)\n"


def test_the_interpreter_ends_its_engines(project):
    done = fresh(SERVES, project[1])
    assert done.returncode == 0 and done.stderr == "" and gone(int(done.stdout))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_killed_caller_ends_its_engines(project, number):
    command = [sys.executable, "-c", f"{SERVES}time.sleep(60)", os.fspath(project[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        pid = int(caller.stdout.readline())
        assert not gone(pid, within_s=1.5)  # it is no zombie either: it answers
        caller.send_signal(number)
    assert gone(pid)


def test_a_fork_of_the_caller_neither_ends_the_engine_nor_keeps_it(project):
    fork = "import os\nif os.fork() == 0:\n  del chat; time.sleep(20); os._exit(0)\n"
    command = [sys.executable, "-c", f"{SERVES}{fork}time.sleep(60)", os.fspath(project[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        pid = int(caller.stdout.readline())
        assert not gone(pid, within_s=1.5)  # the fork dropped its handle
        caller.kill()
        assert gone(pid, within_s=10)  # the fork holds the lifeline open, and is no parent


def test_errors_of_the_engine_are_raised_here(project, tmp_path):
    _, result = project
    (tmp_path / "notes.gguf").write_text("my notes")
    with pytest.raises(BaseError, match=r"notes\.gguf is no GGUF file"):
        tunesmith.chat(tmp_path / "notes.gguf")
    with tunesmith.chat(result) as chat:
        port = int(chat.url.rsplit(":", 1)[1])
        with pytest.raises(ResourceError, match=f"port {port} cannot be used"):
            tunesmith.chat(result, port)
        os.kill(chat.pid, signal.SIGKILL)
        with pytest.raises(ResourceError, match="ended with code -9"):
            chat.wait()
        assert repr(chat) == "small has ended (code -9)"
    assert repr(chat) == "small is closed"
    with pytest.raises(ResourceError, match="ended with code -9"):  # closed since, and not ended by that
        chat.wait()


def test_the_working_folder_is_not_imported_from(project, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('a json.py of the user')\n")
    done = fresh("import sys; sys.path.pop(0)\n" + SERVES, project[1], cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_what_is_named_wrongly_is_spoken_of_as_runs_and_files(project, tmp_path):
    path, result = project
    for named, said, fix in (
        (tmp_path / "none", "there is no run and no file", "runs/NAME, or a GGUF file"),
        (tmp_path, "is no run folder", "runs/NAME, or a GGUF file"),
        (path, "is a recipe: its run is what can be chatted with", "runs/NAME"),
        (result.run.gguf, "is no run folder", "small-Q8_0.gguf"),
    ):
        with pytest.raises(RecipeError, match=said) as caught:
            tunesmith.chat(named)
        assert fix in caught.value.fix
    with pytest.raises(ResumeError, match=r"this run has small-Q8_0\.gguf"):
        tunesmith.chat(result, gguf="F16")


@pytest.mark.parametrize(
    ("arguments", "said", "fix"),
    [
        ({"threads": 0}, "threads is 0, the chat needs at least 1", "threads=2"),
        ({"threads": -3}, "threads is -3", "threads=2"),
        ({"port": -1}, "port is -1, ports are 0 to 65535", "any free one"),
        ({"port": 65536}, "port is 65536, ports are 0 to 65535", "any free one"),
        (
            {"gguf": "Q9"},
            "Q9 is no type of GGUF file",
            "choose one of F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M",
        ),
        ({"gguf": ""}, "'' is no type", "choose one of F16"),
    ],
)
def test_arguments_of_chat_are_checked_here(project, arguments, said, fix):
    with pytest.raises(RecipeError, match=said) as caught:
        tunesmith.chat(project[1], **arguments)
    assert fix in caught.value.fix


def test_an_engine_that_aborts_is_an_error_of_ours(project):
    file = project[1].run.gguf_file("small", "Q8_0")
    with pytest.raises(ResourceError, match="that answers with small ended with code -6"):
        Chat(Served(file, "small", ChatConfig(context=256)), door=Door(), threads=0)


@pytest.mark.parametrize("name", ["new\nline", "quo\"te's", "spa ce", "[b]{x}*?", "\U0001f642", "back\\slash"])
def test_any_text_is_a_name_of_a_run(project, tmp_path, name, capsys):
    run = Path(shutil.copytree(project[1], tmp_path / name))
    done = tunesmith.run(run)
    assert done.done and f"next: tunesmith chat {shlex.quote(str(run))}\n" in str(done)
    assert tunesmith.compare(run).exists()
    with tunesmith.chat(run) as chat:
        assert get(f"{chat.url}/v1/models")["data"][0]["id"] == "small"


def test_a_name_that_is_no_text_is_refused_before_any_work(project, tmp_path, monkeypatch):
    recipe, result = project
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(ResourceError, match=r"caf\\udce9 is no name in UTF-8") as caught:
        tunesmith.run(recipe, folder)
    assert "--run-dir" in caught.value.fix and "rename" in caught.value.fix and not folder.exists()
    shutil.copytree(result, folder)
    (file,) = folder.glob("gguf/*-Q8_0.gguf")
    for call, named in ((tunesmith.run, folder), (tunesmith.chat, folder), (tunesmith.chat, file),
                        (tunesmith.compare, folder), (tunesmith.load_recipe, folder / "recipe.yaml")):  # fmt: skip
        with pytest.raises(ResourceError, match="is no name in UTF-8"):
            call(named)
    monkeypatch.chdir(folder)
    with pytest.raises(ResourceError, match="is no name in UTF-8"):
        tunesmith.run(recipe, "run")


def test_more_threads_than_cores_are_said(project, capsys, monkeypatch):
    monkeypatch.setattr(machine, "_cgroup_files", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 7, 9})
    tunesmith.chat(project[1], threads=3).close()
    assert capsys.readouterr().err == ""
    tunesmith.chat(project[1], threads=4).close()
    assert capsys.readouterr().err == ("warning: threads is 4, and 3 cores can be used: answers will be slow; say 3\n")


def said_by_chat(run, capsys, *changes):
    with contextlib.closing(tunesmith.chat(run.path, changes=changes)):
        return capsys.readouterr().err


def test_chat_names_what_is_old(copied, capsys, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", "/nowhere")  # neither base nor cache is asked
    assert said_by_chat(copied, capsys) == ""
    assert said_by_chat(copied, capsys, "chat.temperature=0", "chat.slots=1", "train.stop_after=1 steps") == ""
    said = said_by_chat(copied, capsys, "train.lr=0.5", "chat.system=Be kind.")
    assert said.startswith("warning: small-Q8_0.gguf is not what the recipe says; `tunesmith run ")
    assert "--set train.lr=0.5" in said and "adapter/ was made with train.lr 0.01, the recipe says 0.5" in said
    assert "gguf/ was made with chat.system None, the recipe says Be kind." in said
    (copied.checkpoints / "step-000001").mkdir(parents=True)  # such a run goes on with what it began with, or not
    said = said_by_chat(copied, capsys, "train.lr=0.02")
    command = f"tunesmith run {copied.recipe} --run-dir {copied.path}-2 --set train.lr=0.02"
    assert f"; `{command}` makes such a run" in said
    monkeypatch.delenv("TUNESMITH_CACHE")
    with forked(copied.path.parent / "output", *command.split()[1:]) as process:
        assert process.wait() == 0 and "small is ready" in process.stdout, process.stderr
    recipe = copied.recipe.read_text()
    copied.recipe.write_text(recipe.replace("rank: 4", "rank: 8"))  # a run killed between train and merge
    assert "adapter/ was made with lora.rank 4, the recipe says 8" in said_by_chat(copied, capsys)
    copied.recipe.write_text(recipe.replace("base: ", "base: /other"))
    assert "the run was made from " in said_by_chat(copied, capsys, "base=another/base")


def test_what_a_missing_type_needs_is_said_and_makes_it(copied, tmp_path):
    with pytest.raises(ResumeError, match="this run has small-Q8_0") as caught:
        tunesmith.chat(copied.path, gguf="F16")
    command = re.search("`tunesmith (.*)`", caught.value.fix)[1]
    assert command == f"run {copied.path} --set 'export.gguf=[Q8_0,F16]'"  # brackets are a shell's own, unquoted
    with forked(tmp_path / "output", *shlex.split(command)) as process:
        assert process.wait() == 0, process.stderr
    assert copied.gguf_file("small", "F16").exists()


def test_a_run_whose_own_recipe_is_damaged(project, copied):
    for text in ("", f"{MADE_BY}0.2.0", f"{MADE_BY}0.2.0\n{{", f"{MADE_BY}0.2.0\nname: [a"):
        copied.recipe.write_text(text)
        for call in (lambda: tunesmith.run(project[0], copied.path), lambda: tunesmith.load_recipe(copied.path)):
            with pytest.raises(ResumeError, match="the run's own recipe is damaged") as caught:
                call()
            assert "delete it and run with your own recipe file" in caught.value.fix
    copied.recipe.unlink()
    assert tunesmith.run(project[0], copied.path).done


def test_chat_names_a_newer_adapter(copied, capsys):
    record = read_record(copied.adapter)
    commit_stage(
        copied.adapter,
        record.settings | {"seed": 1},
        record.inputs,
        lambda draft: {"n": (draft / "x").write_text("new")},
    )
    said = said_by_chat(copied, capsys)
    assert "model/ was made from another adapter/ than the one that is there now" in said
    assert "adapter/ was made with seed 1, the recipe says 0" in said
    shutil.rmtree(copied.adapter)
    shutil.rmtree(copied.data)
    assert said_by_chat(copied, capsys) == ""  # what is gone says nothing: the files are enough to chat


def test_chat_goes_on_beside_a_damaged_record(copied, capsys):
    (copied.data / "record.json").write_text("{")
    assert "is damaged" in said_by_chat(copied, capsys)
