"""doctor: what is tried is a verdict, also where it dies or hangs; a recipe that cannot run here ends with 7."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from forked import completed, forked
from hub_server import HubServer
from hub_store import TOKEN, HubStore
from mirrored_runs import s3_server
from small_project import write_project

from tunesmith.doctor import Asked, _publishing, _training, what_lacks
from tunesmith.doctoring import folder_tries, host, mirror_try, needs, torch_tries
from tunesmith.doctoring.finding import Finding, as_json_text, lines_of
from tunesmith.doctoring.mirror_try import mirror_finding
from tunesmith.doctoring.tries import INSTALL, Try, tried
from tunesmith.errors import ResourceError
from tunesmith.machine import disk_of
from tunesmith.recipe_file import read_recipe
from tunesmith.runs import Run
from tunesmith.training.store import FileStore

TESTS = Path(__file__).parent
SRC = TESTS.parent / "src"
CLOSED = "http://127.0.0.1:9"  # the discard port, which nobody listens at
NO_TORCH = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
NOTHING = Try("numbers", "torch", lambda: None, INSTALL)


@pytest.fixture
def alone(monkeypatch, tmp_path, own_cache):
    """No Hub, and nothing that was fetched before."""
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SRC), str(TESTS)]))
    return tmp_path


def by_name(findings):
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names), names
    return dict(zip(names, findings, strict=True))


def stub(folder, module, text, monkeypatch):
    """A module of that name that comes before the installed one, in processes that are started from now on."""
    (folder / "stub").mkdir()
    (folder / "stub" / f"{module}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "stub"), str(SRC)]))


def test_what_dies_or_hangs_is_a_verdict_and_the_rest_is_tried(alone, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    found = by_name(tried("doctor_worker", {}, NOTHING))
    assert list(found) == ["first", "fails", "refuses", "aborts", "hangs", "killed", "exits", "leaves", "last"]
    verdicts = {name: finding.verdict for name, finding in found.items()}
    died = dict.fromkeys(("aborts", "hangs", "killed", "exits", "leaves"), "crashed")
    assert verdicts == {"first": "ok", "fails": "lacks", "refuses": "lacks", "last": "ok"} | died
    assert found["first"].says != found["last"].says, "each death takes a new process"
    assert (found["fails"].says, found["fails"].fix) == (
        "no good, said with *** and https://***@hub.example",
        "mend it",
    )
    assert (found["refuses"].says, found["refuses"].fix) == ("there is too little", "get more")
    assert "signal 6" in found["aborts"].says and "it printed ***" in found["aborts"].says
    assert found["aborts"].fix == "build it anew"
    assert found["hangs"].says == "did not end within 0.5 s" and found["hangs"].fix == "wait less"
    assert "signal 9" in found["killed"].says and "exit code 3" in found["exits"].says
    assert "secret" not in as_json_text(list(found.values()), None)


@pytest.mark.parametrize(
    ("text", "verdict", "says"),
    [
        (NO_TORCH, "lacks", "No module named 'torch'"),
        ("raise ImportError('libcublas.so.12: cannot open shared object file')", "lacks", "libcublas.so.12"),
        ("import os; os.abort()", "crashed", "signal 6"),
        ("import os; os._exit(0)", "crashed", "exit code 0"),
        ("import time; time.sleep(600)", "crashed", "did not end within 0.5 s"),
    ],
)
def test_torch_that_cannot_be_loaded_is_a_line_with_the_fix(alone, monkeypatch, text, verdict, says):
    stub(alone, "torch", text, monkeypatch)
    job = {"gpu": None, "recipe": None, "base": None}
    (found,) = tried("tunesmith.doctoring.torch_tries", job, NOTHING, start_limit_s=0.5 if "sleep" in text else 60)
    assert (found.name, found.verdict, found.fix) == ("torch", verdict, INSTALL) and says in found.says


def test_without_torch_hub_and_recipe_the_machine_is_told_of(alone, monkeypatch):
    stub(alone, "torch", NO_TORCH, monkeypatch)
    done = completed("doctor", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "this machine"
    assert all(len(line) <= 80 or str(alone) in line for line in lines), "a path is not broken"
    assert "  lacks   torch         cannot be loaded: No module named 'torch'" in lines
    assert "            fix: pip install 'tunesmith[train]'" in lines
    assert any(line.startswith("  note    Hub           127.0.0.1:9 does not answer") for line in lines)
    assert any(line.startswith("  ok      llama.cpp     loads") for line in lines)
    assert lines[-1] == "of what was tried, these lack or crashed: torch"
    assert not (alone / "cache").exists() and not Path("runs").exists(), "looking makes nothing"


def test_a_recipe_that_can_run_here_ends_with_0_and_json_says_the_same(alone, tiny_base):
    recipe = write_project(alone, tiny_base)
    done = completed("doctor", str(recipe), "--json")
    assert done.returncode == 0, done.stdout
    said = json.loads(done.stdout)
    assert said["can_run"] is True
    assert {each["verdict"] for each in said["findings"]} <= {"ok", "note"}
    found = {(each["group"], each["name"]): each for each in said["findings"]}
    recipe_names = {name for group, name in found if group == "recipe"}
    assert recipe_names == {"run folder", "base", "data 1", "prompts", "disk", "precision", "memory"}
    assert {"fp32 on CPU", "bf16 on CPU", "fp16 on CPU", "SDPA on CPU"} < {name for _, name in found}
    assert 0 < found["recipe", "disk"]["facts"]["bytes"] < 10**8
    assert found["numbers", "bf16 on CPU"]["facts"]["fp32_seconds"] > 0
    assert found["recipe", "memory"]["facts"]["precision"] == "fp32"
    assert [path.name for path in Path().iterdir()] == []


def test_a_recipe_that_lacks_things_ends_with_7_and_names_them(alone, monkeypatch):
    stub(alone, "torch", NO_TORCH, monkeypatch)
    lacking = {"data": "{sources: [{path: rows.jsonl}, {path: gone.jsonl}]}", "publish": "{to: me/chat}"}
    recipe = write_project(alone, "nobody/nothing", evaluate="{prompts: gone.yaml, gguf: Q8_0}", **lacking)
    done = completed("doctor", str(recipe), COLUMNS="80")
    assert done.returncode == 7, done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "recipe small cannot run here; it lacks: base, data 2, prompts, training, publishing"
    bad = [line.split()[1] for line in lines if line.startswith("  lacks")]
    assert bad == ["torch", "base", "data", "prompts", "training", "publishing"]
    text = " ".join(done.stdout.split())
    assert "the Hub cannot be reached" in text and "gone.jsonl" in text and "no token of the Hub is set" in text


def test_a_wrong_recipe_is_an_error_as_everywhere(alone):
    assert completed("doctor", "nothing.yaml").returncode == 2
    assert "none is named" in completed("doctor", "--set", "train.lr=1").stderr


def test_ctrl_c_ends_it_at_once_with_all_that_it_started(alone, monkeypatch):
    pids = alone / "pids"
    pids.mkdir()
    stub(alone, "torch", f"import os, time; open('{pids}/' + str(os.getpid()), 'w'); time.sleep(600)", monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes a connection, and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with forked(alone / "child", "doctor", HF_ENDPOINT=address) as child:
            wait_for(lambda: list(pids.iterdir()))
            started = time.monotonic()
            child.send_signal(signal.SIGINT)
            assert child.wait(30) == 130 and time.monotonic() - started < 5
    (pid,) = pids.iterdir()
    wait_for(lambda: not Path(f"/proc/{pid.name}").exists())


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("role", "valid"), [("write", True), ("read", True), ("", False)])
def test_a_token_is_tried_and_never_told(alone, monkeypatch, role, valid):
    store = HubStore()
    store.role = role
    if not valid:
        store.refusals["whoami"] = [(401, {}, f"who is {TOKEN}?")]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", store.url)
    with store.running():
        found = by_name(tried("tunesmith.doctoring.hub_tries", {}, NOTHING))
    assert found["Hub"].verdict == "ok" and f"Bearer {TOKEN}" in store.tokens
    token = found["token"]
    if valid:
        assert (token.verdict, token.says) == ("ok", f"set and valid, of me, role {role}")
    else:
        assert token.verdict == "lacks" and "the Hub does not know it" in token.says and token.fix
    assert TOKEN not in as_json_text(list(found.values()), None)


@pytest.mark.parametrize(
    ("endpoint", "offline", "token", "says"),
    [
        (CLOSED, "", None, "does not answer (ConnectError)"),
        (CLOSED.replace("//", "//me:secret@"), "", TOKEN, "127.0.0.1:9 does not answer"),
        (CLOSED, "1", TOKEN, "HF_HUB_OFFLINE says that there is no network"),
    ],
)
def test_a_hub_that_is_not_there_is_a_note(alone, monkeypatch, endpoint, offline, token, says):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    found = by_name(tried("tunesmith.doctoring.hub_tries", {}, NOTHING))
    assert [each.verdict for each in found.values()] == ["note", "note"] and says in found["Hub"].says
    assert found["token"].facts["set"] is bool(token)
    text = as_json_text(list(found.values()), None)
    assert TOKEN not in text and "secret" not in text


@pytest.mark.parametrize("gated", [False, True])
def test_a_base_on_the_hub_is_asked_for_its_size_and_whether_it_is_given(alone, tiny_base, monkeypatch, gated):
    hub, job = HubServer(), {"run": str(alone / "runs" / "small")}
    hub.models["me/base"] = tiny_base
    if gated:
        hub.refusals["me/base"] = (403, "GatedRepo", True)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    job["recipe"] = read_recipe(write_project(alone, "me/base")).model_dump(mode="json")
    with hub.running():
        found = by_name(tried("tunesmith.doctoring.needs", job, NOTHING))
    base = found["base"]
    if gated:
        assert base.verdict == "lacks" and "is gated" in base.says and "HF_TOKEN" in base.fix
    else:
        weights = (tiny_base / "model.safetensors").stat().st_size
        assert base.verdict == "note" and weights < base.facts["bytes_to_fetch"] < weights + 10**6
        assert "to be fetched" in base.says and found["disk"].verdict == "note"
    assert not list((alone / "hf").rglob("*.safetensors")), "looking fetches no weights"


def test_folders_are_tried_and_left_as_they_were(alone):
    (alone / "file").write_text("")
    places = {"run folder": alone / "runs" / "small", "cache": alone / "file" / "cache"}
    job = {"places": {name: str(path) for name, path in places.items()}}
    before = sorted(alone.rglob("*"))
    found = by_name(tried("tunesmith.doctoring.folder_tries", job, NOTHING))
    assert [each.verdict for each in found.values()] == ["ok", "lacks"]
    assert found["run folder"].facts["free_bytes"] > 0 and found["run folder"].facts["fsync_s"] >= 0
    assert "is a file" in found["cache"].says and "TUNESMITH_CACHE" in found["cache"].fix
    assert sorted(alone.rglob("*")) == before
    takes_nothing = folder_tries._tried("run folder", Path("/proc/runs/small"))
    assert takes_nothing.verdict == "lacks" and "takes no new folder" in takes_nothing.says
    assert "--run-dir" in takes_nothing.fix


def test_a_read_only_file_system_lacks(alone):
    code = f"""
        mount -t tmpfs -o ro tmpfs {alone} && {sys.executable} -c '
from pathlib import Path
from tunesmith.doctoring.folder_tries import _tried
found = _tried("run folder", Path("{alone}/runs/small"))
print(found.verdict, found.says)'
    """
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", code], capture_output=True, text=True, check=False
    )
    if "not permitted" in done.stderr or "denied" in done.stderr:
        pytest.skip("mounting is not allowed here; the test above has /proc")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"lacks {alone} takes no new folder: Read-only file system")


@pytest.mark.parametrize(
    ("function", "stand_in", "says"),
    [
        ("flock", lambda *_: None, "keeps no locks: two processes"),
        ("fsync", None, "fsync does not work"),
        ("rename", lambda *_: None, "does not replace"),
    ],
)
def test_a_file_system_that_pretends_is_found_out(tmp_path, monkeypatch, function, stand_in, says):
    def refuse(_):
        raise OSError(95, "Operation not supported")

    owner = {"flock": folder_tries.fcntl, "fsync": folder_tries.os, "rename": folder_tries.Path}[function]
    monkeypatch.setattr(owner, function, stand_in or refuse)
    found = folder_tries._tried("cache", tmp_path)
    assert found.verdict == "lacks" and says in found.says and list(tmp_path.iterdir()) == []


def test_versions_are_compared_with_what_is_needed(tmp_path, monkeypatch):
    (tmp_path / "gguf-0.9.dist-info").mkdir()
    (tmp_path / "gguf-0.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: gguf\nVersion: 0.9\n")
    assert [each.verdict for each in host.packages()] == ["ok"]
    monkeypatch.syspath_prepend(tmp_path)
    _, bad = host.packages()
    assert (bad.name, bad.verdict, bad.fix) == ("gguf", "lacks", "pip install 'gguf>=0.17'")
    monkeypatch.setattr(host.metadata, "requires", lambda _: ["nobodys-package>=1.0; extra == 'train'", "other>=2"])
    ok, absent = host.packages()
    assert absent.says == "not installed: nobodys-package, other" and "as needed" not in ok.says


@pytest.mark.parametrize(
    ("older", "newer"), [("2.9", "2.11"), ("0.9.9", "1.0"), ("2026.9.1", "2026.10.11549"), ("1", "1.0.1")]
)
def test_versions_are_numbers_and_no_texts(older, newer):
    assert host._release(older) < host._release(newer) == host._release(f"{newer}+cpu")
    assert host._release("4.0.0") == host._release("4")


def test_a_gpu_is_read_from_its_driver_and_torch_that_cannot_use_it_lacks(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho 'Tesla T4, 15360, 15000, 7.5, 550.54'\necho 'Tesla K80, 11441, 11000, 3.7, 550.54'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second, _ = host._gpus()
    assert first.verdict == "ok" and "Tesla T4, 15.7 GB free of 16.1 GB, compute capability 7.5" in first.says
    assert second.verdict == "note" and "older" in second.says
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides it" in next(host._gpus()).says
    monkeypatch.setattr(torch_tries.torch.cuda, "is_available", lambda: False)
    assert torch_tries._torch("Tesla T4").verdict == "lacks" and torch_tries._torch(None).verdict == "ok"


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_numbers_that_are_wrong_are_not_taken_for_right(monkeypatch, name):
    cpu, step = torch_tries.torch.device("cpu"), torch_tries._step
    monkeypatch.setattr(torch_tries, "_times_s", lambda *_: [4.0, 1.0])
    found = torch_tries._numbers(name, cpu)
    assert found.verdict == ("ok" if name == "fp32" else "note") and found.facts["difference"] > 0
    assert name == "fp32" or "4.0 times as long as fp32" in found.says

    def wrong(*arguments):
        out, x_grad, weight_grad = step(*arguments)
        exact = arguments[-1] is torch_tries.torch.float64
        return out, x_grad, weight_grad if exact else weight_grad * (1 + 2 * torch_tries.LIMITS[name])

    monkeypatch.setattr(torch_tries, "_step", wrong)
    assert torch_tries._numbers(name, cpu).verdict == "lacks"


@pytest.mark.parametrize("loses", ["conversation_lengths", "sliding_window"])
def test_attention_that_mixes_conversations_or_loses_its_window_is_found(monkeypatch, loses):
    cpu, attention = torch_tries.torch.device("cpu"), torch_tries.packed_attention
    look = ("SDPA on CPU", cpu, [torch_tries.torch.float32], False)
    assert torch_tries._attention(*look).verdict == "ok"
    monkeypatch.setattr(torch_tries, "packed_attention", lambda *a, **k: attention(*a, **k | {loses: None}))
    assert torch_tries._attention(*look).verdict == "lacks"


def test_the_precision_that_is_asked_for_is_judged_by_what_was_tried(tmp_path):
    recipe = read_recipe(write_project(tmp_path, "base"))
    (memory,) = [Finding("recipe", "memory", "ok", "fits", facts={"precision": "bf16"})]
    cpu = [Finding("numbers", f"{name} on CPU", "ok", "right") for name in ("fp32", "bf16")]
    gpu = [Finding("numbers", "fp32 on GPU 0", "crashed", "the process died"), *cpu]
    auto = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "auto"})})
    assert [each.verdict for each in _training(recipe, cpu)] == ["ok"]
    assert [each.verdict for each in _training(recipe, gpu)] == ["crashed"]
    precision, _ = _training(auto, [*cpu, memory])
    assert "bf16 on CPU" in precision.says
    assert [each.name for each in _training(recipe, [Finding("numbers", "torch", "lacks", "is gone")])] == ["training"]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"set": False}, "no token of the Hub is set"),
        ({"set": True, "valid": False}, "the token is said"),
        ({"set": True, "valid": True, "user": "me", "role": "read", "accounts": ["me"]}, "may only read"),
        ({"set": True, "valid": True, "user": "you", "role": "write", "accounts": ["you"]}, "who is neither me nor"),
        ({"set": True, "valid": True, "user": "you", "role": "write", "accounts": ["you", "me"]}, ""),
    ],
)
def test_publishing_needs_a_token_that_may(tmp_path, facts, says):
    recipe = read_recipe(write_project(tmp_path, "base", publish="{to: me/chat}"))
    token = [Finding("hub", "token", "ok", "said", facts=facts)]
    (found,) = _publishing(recipe, token)
    assert found.verdict == ("lacks" if says else "ok") and says in found.says
    assert list(_publishing(read_recipe(write_project(tmp_path, "base")), token)) == []


@pytest.mark.parametrize("url", ["{here}", "{here}/new", "file://{here}/new", "memory://doctor/x"])
def test_a_mirror_is_tried_and_left_as_it_was(tmp_path, url):
    found = mirror_finding(url.format(here=tmp_path))
    assert (found.verdict, found.fix) == ("ok", "")
    assert found.says.endswith("a file was written, read, listed and deleted there")
    assert list(tmp_path.iterdir()) == [] and not fsspec.filesystem("memory").find("doctor")


@pytest.mark.parametrize(
    ("url", "says", "fix"),
    [
        ("gs://bucket/x", "gs:// needs a package that is not installed", "pip install 'tunesmith[gcs]'"),
        ("/gone/a/drive", "there is no folder /gone/a: is its drive mounted?", "mount it"),
        ("/proc/mirror", "cannot be written: nothing can be written in /proc", "checkpoint.mirror="),
        ("http://name:word@host/x", "nothing can be written to http://***@host/x", "name a folder"),
        ("hf://nothing", "names no repository of the Hub", "hf://datasets/USER/NAME"),
    ],
)
def test_a_mirror_that_does_not_work_lacks_with_the_reason_and_the_fix(monkeypatch, url, says, fix):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    found = mirror_finding(url)
    assert found.verdict == "lacks" and says in found.says and fix in found.fix
    assert "word" not in found.says + found.fix and "--run-dir" not in found.fix


@pytest.mark.parametrize(
    ("method", "stand_in", "says"),
    [
        ("read", lambda *_: b"other", "cannot be read: it has something else than was written"),
        ("names", lambda *_: [], "cannot be listed: it has something else"),
        ("put", None, "cannot be written: no write for key-of-mine"),
        ("delete", None, "cannot be deleted from: no write for ***"),
    ],
)
def test_what_a_mirror_does_not_do_is_named_without_a_credential(tmp_path, monkeypatch, method, stand_in, says):
    def refuse(*_):
        raise PermissionError("no write for key-of-mine")

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key-of-mine")
    monkeypatch.setattr(FileStore, method, stand_in or refuse)
    found = mirror_finding(str(tmp_path))
    assert found.verdict == "lacks" and says.replace("key-of-mine", "***") in found.says
    left = [path.name for path in tmp_path.iterdir()]  # what cannot be listed is not deleted either
    assert found.says.endswith(f"; {left[0]} may be left there") if method in ("names", "delete") else not left


def test_a_mirror_that_does_not_answer_lacks_in_time_and_on_the_hub_none_is_written(tmp_path, monkeypatch, alone):
    monkeypatch.setattr(mirror_try, "ANSWER_S", 0.2)
    monkeypatch.setattr(FileStore, "put", lambda *_: time.sleep(5))
    started = time.monotonic()
    found = mirror_finding(str(tmp_path))
    assert found.verdict == "lacks" and "cannot be written: no answer for" in found.says
    assert time.monotonic() - started < 3
    found = mirror_finding("hf://datasets/me/x")  # where no Hub answers
    assert found.verdict == "note" and "nothing is written there" in found.says and "`token`" in found.says


def test_a_mirror_in_a_bucket_is_tried(monkeypatch):
    with s3_server(monkeypatch):
        assert mirror_finding("s3://bucket/runs").verdict == "ok"
        assert fsspec.filesystem("s3", skip_instance_cache=True).find("bucket") == []
        found = mirror_finding("s3://nobucket/runs")
        assert found.verdict == "lacks" and "s3://nobucket/runs cannot be written: The specified bucket" in found.says


def test_the_run_folder_that_is_named_is_what_is_tried(alone, tiny_base, monkeypatch):
    stub(alone, "torch", NO_TORCH, monkeypatch)  # what computes takes seconds
    recipe = write_project(alone, tiny_base, checkpoint=f"{{mirror: {alone}/copies}}")
    (alone / "elsewhere").mkdir()
    (alone / "elsewhere" / "mine.txt").write_text("")
    done = completed("doctor", recipe, "--run-dir", alone / "elsewhere", "--json")
    found = {each["name"]: each for each in json.loads(done.stdout)["findings"] if each["group"] in ("disk", "recipe")}
    assert done.returncode == 7 and found["run folder"]["verdict"] == "lacks"
    assert "elsewhere is no run folder" in found["run folder"]["says"]
    assert found["mirror"]["verdict"] == "ok" and not (alone / "copies").exists()
    assert "none is named" in completed("doctor", "--run-dir", alone / "elsewhere").stderr


def test_a_disk_too_small_for_the_run_lacks(tmp_path, tiny_base, monkeypatch, own_cache):
    recipe, here = read_recipe(write_project(tmp_path, tiny_base)), needs._Here()
    here.folder = tiny_base
    run = Run(tmp_path / "runs" / "small")
    takes = needs._disk(recipe, run, here).facts["bytes"]
    usage = os.statvfs(disk_of(run.path))
    assert takes < usage.f_bavail * usage.f_frsize
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": takes // 4}))
    with pytest.raises(ResourceError, match=r"needs .* of disk"):
        needs._disk(recipe, run, here)


def test_llama_cpp_is_needed_where_gguf_files_are(tmp_path):
    dead = [Finding("machine", "llama.cpp", "crashed", "the process died"), Finding("numbers", "x", "lacks", "wrong")]
    asked = Asked(read_recipe(write_project(tmp_path, "base")), Run(tmp_path / "runs"))
    assert what_lacks(dead, asked.recipe) == ["llama.cpp"]
    assert what_lacks(dead, read_recipe(write_project(tmp_path, "base", export="{gguf: []}", evaluate="{}"))) == []


def test_a_finding_fits_its_columns_and_steers_no_terminal():
    long = Finding("machine", "torch", "lacks", "words " * 40, "pip install this and that " * 8)
    for width in (60, 80, 300):
        lines = lines_of(long, width)
        assert max(map(len, lines)) <= min(width, 100) and len(lines) > 4
        assert lines[0].startswith("  lacks   torch         words") and any(
            line.strip().startswith("fix: ") for line in lines
        )
