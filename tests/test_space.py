"""A Space: what is written, what is refused, its wheel, and its steps as --try does them. No network, no pip."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from forked import completed
from hub_store import stand_in
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from playwright.sync_api import sync_playwright
from study_runs import SKIPPED, finished_run
from training_runs import recipe_with

from tunesmith.api import space
from tunesmith.errors import BaseError, DataError, ProofError, PublishError, RecipeError, ResourceError, ResumeError
from tunesmith.files import digest_folder
from tunesmith.machine import group_limits
from tunesmith.release.published import keep_published
from tunesmith.release.space import attempt, dockerfile, folder, limits, texts, wheel
from tunesmith.release.space.fetch import fetch
from tunesmith.release.space.folder import Shipped, keep_tried, make_space
from tunesmith.release.space.verb import Wanted
from tunesmith.runs import MADE_BY, Run
from tunesmith.server.page import described, with_run

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to its client
ROOT = Path(__file__).parents[1]
GGUF = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q20sIQ5s", 20, b"general.architecture", 8, 5, b"llama")
TRIED = {
    "prompts": 10, "first_token_s": 0.0861, "tokens_per_s": 36.13, "measured_at": "2026-01-02T03:04:05Z",
    "spread": {"first_token_s": [0.07, 0.1], "tokens_per_s": [35.0, 37.0]}, "processor": "Test CPU", "threads": 2,
    "peak_memory_bytes": 495_000_000,
}  # fmt: skip
STAND_IN = """\
import http.server, json, sys, time

class Chat(http.server.BaseHTTPRequestHandler):
    asked = 0
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Chat.asked += 1
        if Chat.asked == 2:  # busy, once
            self.send_response(429); self.send_header("Retry-After", "0"); self.end_headers(); return
        self.send_response(200); self.end_headers()
        for piece in ("a", "b", "c"):
            time.sleep(0.01)
            line = {"choices": [{"delta": {"content": piece}}]}
            self.wfile.write(b"data: " + json.dumps(line).encode() + b"\\n\\n"); self.wfile.flush()
        end = {"choices": [], "usage": {"completion_tokens": body["max_tokens"]}}
        self.wfile.write(b"data: " + json.dumps(end).encode() + b"\\n\\ndata: [DONE]\\n\\n")

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Chat).serve_forever()
"""


@pytest.fixture
def alone(tmp_path):
    """A GGUF file without a run."""
    path = tmp_path / "my model.gguf"
    path.write_bytes(GGUF)
    return shipped(path, "my model")


def shipped(path, name, **more):
    return Shipped(path, name, path, ["What is a step?", "Why?"], 7, **more)


def front_matter(page):
    return yaml.safe_load(page.split("---\n")[1])


@pytest.fixture(scope="module")
def made(tiny_base, tmp_path_factory):
    """A run with two GGUF files, one proof that was skipped and three that hold."""
    path = tmp_path_factory.mktemp("runs") / "good"
    base = shutil.copytree(tiny_base, path.parent / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    run = Run(finished_run(path, base, recipe_with().model_copy(update={"base": str(base)}), proofs=(SKIPPED,)))
    run.recipe.write_text(MADE_BY + "0.2.0\n" + run.recipe.read_text())
    (run.gguf / "tiny-Q8_0.gguf").write_bytes(GGUF)
    (run.gguf / "tiny-Q4_K_M.gguf").write_bytes(GGUF + b"other")
    record = json.loads((run.gguf / "record.json").read_text())
    record["outputs"] = digest_folder(run.gguf)
    done = record["proofs"][0] | {"value": 0.5, "limit": None, "skipped_because": None}
    record["proofs"] += [done | {"name": name} for name in ("Q8_0: loss", "Q4_K_M: loss", "F16 = merged")]
    (run.gguf / "record.json").write_text(json.dumps(record))
    return path


@pytest.fixture
def run(made, tmp_path):
    return Run(shutil.copytree(made, tmp_path / "runs" / "good"))


def test_a_space_of_a_run_is_whole_and_told_by_its_records(run, tmp_path, capsys):
    space(run.path, Wanted(tmp_path / "space"), "Q8_0")
    said = capsys.readouterr().err
    assert "NOT proved: merged = adapter" in said and "huggingface.co/new-space" in said
    assert f"--gguf Q8_0 --out {tmp_path / 'space'} --try" in said
    page = (tmp_path / "space" / "README.md").read_text()
    assert front_matter(page) | {"sdk": "docker", "app_port": 7860, "license": "apache-2.0"} == front_matter(page)
    assert "NOT proved" in page and "Q8_0: loss" in page and "F16 = merged" in page and "Q4_K_M" not in page
    assert str(tmp_path) not in page and "| base | `base` |" in page
    assert (tmp_path / "space" / "tiny-Q8_0.gguf").read_bytes() == GGUF
    (run.gguf / "tiny-Q8_0.gguf").write_bytes(GGUF[:-1] + b"b")
    with pytest.raises(ResumeError, match="not as it was written"):
        space(run.path, Wanted(tmp_path / "other"), "Q8_0")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def hub(monkeypatch):
    with stand_in(monkeypatch) as store:
        monkeypatch.setenv("HF_ENDPOINT", store.url)
        yield store


def test_a_dry_run_sends_nothing_and_yes_sends_what_the_record_lists(run, hub, tmp_path, capsys):
    wanted = Wanted(to="me/Good.chat", public=True)
    space(run.path, wanted)
    said = capsys.readouterr().err
    assert "nothing is sent yet" in said and "spaces/me/Good.chat (public)" in said and not hub.repos
    assert f"{len(GGUF):,}  tiny-Q8_0.gguf" in said and "https://me-good-chat.hf.space" in said
    assert "--to me/Good.chat --public --yes" in said and not run.published.exists()
    space(run.path, replace(wanted, send=True))
    (repo,) = hub.repos.values()
    assert list(hub.repos) == ["spaces/me/Good.chat"] and not repo.private
    assert {"Dockerfile", "README.md", "tiny-Q8_0.gguf", wheel.FILE, ".gitattributes"} <= repo.files.keys()
    assert "record.json" not in repo.files and b"curl https://me-good-chat.hf.space/v1" in repo.files["README.md"]
    commits = len(repo.commits)
    space(run.path, replace(wanted, send=True))
    assert len(repo.commits) == commits and "already there: " in capsys.readouterr().err
    repo.commit(repo.files | {"README.md": b"theirs"})
    with pytest.raises(PublishError, match=r"spaces/me/Good\.chat has moved on"):
        space(run.path, replace(wanted, send=True))
    space(run.path, replace(wanted, send=True, overwrite=True), "Q4_K_M")
    assert "tiny-Q4_K_M.gguf" in repo.files and "tiny-Q8_0.gguf" not in repo.files


def test_what_the_run_has_published_is_fetched_from_there(run, hub, tmp_path, capsys):
    files = {"tiny-Q8_0.gguf": hashlib.sha256(GGUF).hexdigest(), "tiny-Q4_K_M.gguf": "0" * 64}
    keep_published(run, "me/x-GGUF", hub.url, commit="c" * 40, files=files, private=True)
    space(run.path, Wanted(tmp_path / "space"))
    text = (tmp_path / "space" / "Dockerfile").read_text()
    assert f"me/x-GGUF/resolve/{'c' * 40}/tiny-Q8_0.gguf {files['tiny-Q8_0.gguf']} tiny-Q8_0.gguf" in text
    assert "give the Space a secret HF_TOKEN" in capsys.readouterr().err
    space(run.path, Wanted(tmp_path / "other"), "Q4_K_M")
    assert (tmp_path / "other" / "tiny-Q4_K_M.gguf").exists()
    assert "has another tiny-Q4_K_M.gguf than this run now" in capsys.readouterr().err


def test_a_file_of_the_hub_is_shipped_as_one_of_this_machine(alone, tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.api._from_hub", lambda *_: alone.gguf)
    space(Path("me/x-GGUF@main"), Wanted(tmp_path / "space"))
    assert (tmp_path / "space" / "my-model.gguf").read_bytes() == GGUF
    assert front_matter((tmp_path / "space" / "README.md").read_text())["title"] == "x-GGUF"


def test_a_licence_that_is_not_known_is_warned_of_and_not_sent(run, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    run.recipe.write_text(run.recipe.read_text().replace("/base\n", "/nowhere\n"))
    space(run.path, Wanted(tmp_path / "space"))
    for text in ("README.md", "record.json"):  # nor of where the base was
        assert "/nowhere" not in (tmp_path / "space" / text).read_text()
    assert "the Space says nothing of a licence" in capsys.readouterr().err
    with pytest.raises(BaseError, match="nowhere"):
        space(run.path, Wanted(to="me/x"))


def test_the_dockerfile_needs_no_root_compiles_nothing_and_finds_its_files(alone, tmp_path):
    space = tmp_path / "space"
    model = make_space(alone, space)
    steps = dockerfile.steps((space / "Dockerfile").read_text())
    words = [step.word for step in steps]
    user = words.index("USER")
    assert words[0] == "FROM" and re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm", steps[0].text)
    assert steps[user].text == "1000" and words.count("USER") == 1
    assert not any("pip" in step.text for step in steps[:user])
    assert [step.text for step in steps if "pip install" in step.text and "--only-binary :all:" in step.text]
    assert model.file == "my-model.gguf"
    copied = [name for step in steps if step.word == "COPY" for name in step.words()[:-1]]
    assert sorted(copied) == sorted(["requirements.txt", wheel.FILE, "my-model.gguf"])
    assert all((space / name).is_file() for name in copied)
    assert all(step.flags == (("chown", "1000:1000"),) for step in steps if step.word == "COPY")
    start = dockerfile.command(steps)
    hub = ["--allow-origin", "https://huggingface.co"]  # whose page has the chat in a frame
    assert start == ["tunesmith", "chat", "my-model.gguf", "--host", "0.0.0.0", "--port", "7860", "--public", *hub]
    assert dockerfile.port_of(start) == front_matter((space / "README.md").read_text())["app_port"]
    assert all(f"{suffix} filter=lfs" in (space / ".gitattributes").read_text() for suffix in ("*.gguf", "*.whl"))
    assert all(len(str(value)) <= 60 for value in front_matter((space / "README.md").read_text()).values())


def test_a_published_model_is_fetched_by_commit_and_digest(alone, tmp_path, capsys):
    place = f"me/demo-GGUF/resolve/{'a' * 40}/demo.gguf"
    more = {"licence": {"license": "apache-2.0"}, "duties": ["Built with Llama"], "texts": {"NOTICE": b"so it is"}}
    model = make_space(shipped(alone.gguf, "demo", published=place, private=True, **more), tmp_path / "space")
    assert "secret HF_TOKEN that may read it" in capsys.readouterr().err
    assert not list((tmp_path / "space").glob("*.gguf"))
    steps = dockerfile.steps((tmp_path / "space" / "Dockerfile").read_text())
    (step,) = [step for step in steps if "space.fetch" in step.text]
    assert step.text.split()[-3:] == [place, hashlib.sha256(GGUF).hexdigest(), model.file]
    assert step.flags == (("mount", "type=secret,id=HF_TOKEN,mode=0444,required=false"),)
    front = front_matter(page := (tmp_path / "space" / "README.md").read_text())
    assert "\nBuilt with Llama\n" in page and (tmp_path / "space" / "NOTICE").read_bytes() == b"so it is"
    assert front["models"] == ["me/demo-GGUF"] and front["license"] == "apache-2.0"


def test_what_was_measured_stays_while_the_same_is_served(alone, tmp_path):
    space = tmp_path / "space"
    make_space(alone, space)
    assert "Not measured" in (space / "README.md").read_text()
    keep_tried(space, TRIED)
    assert "| 0.09 s |" in (page := (space / "README.md").read_text()) and "Test CPU" in page and "495 MB" in page
    make_space(alone, space)
    assert (space / "README.md").read_text() == page
    alone.gguf.write_bytes(GGUF + b"more")
    make_space(alone, space)
    assert "Not measured" in (space / "README.md").read_text()


def test_nothing_of_the_users_is_replaced(alone, tmp_path):
    space = tmp_path / "space"
    space.mkdir()
    (space / "README.md").write_text("mine")
    with pytest.raises(ResumeError, match=r"no Space that tunesmith made, and holds README\.md"):
        make_space(alone, space)
    (space / "README.md").unlink()
    (space / ".git").mkdir()
    make_space(alone, space)
    (space / "notes.txt").write_text("mine")
    other = tmp_path / "other.gguf"
    other.write_bytes(GGUF)
    make_space(shipped(other, "other"), space)
    assert sorted(path.name for path in space.glob("*.gguf")) == ["other.gguf"]
    (space / "my-model.gguf").write_text("mine")
    with pytest.raises(ResumeError, match=r"my-model\.gguf is not tunesmith's"):
        make_space(alone, space)
    (space / "Dockerfile").write_text("mine")
    with pytest.raises(ResumeError, match="Dockerfile is not as tunesmith wrote it"):
        make_space(shipped(other, "other"), space)
    assert (space / "notes.txt").read_text() == (space / "my-model.gguf").read_text() == "mine"
    assert (space / ".git").is_dir() and not list(tmp_path.glob(".*draft"))


def test_a_killed_command_leaves_files_that_the_next_one_knows(alone, tmp_path, monkeypatch):
    space = tmp_path / "space"
    make_space(alone, space)
    alone.gguf.write_bytes(GGUF + b"more")
    other = tmp_path / "another.gguf"
    other.write_bytes(GGUF + b"more")
    kill = {"left": 3}

    def replace(self, target, real=Path.replace):
        kill["left"] -= 1
        if not kill["left"]:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", replace)
        make_space(shipped(other, "another"), space)
    make_space(shipped(other, "another"), space)
    assert [path.name for path in space.glob("*.gguf")] == ["another.gguf"]
    assert digest_folder(space) == json.loads((space / "record.json").read_text())["files"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"made_by": "tunesmith space 1", "files": {"../x": {}}}'])
def test_a_record_that_is_none_is_refused(alone, tmp_path, text):
    space = tmp_path / "space"
    make_space(alone, space)
    (tmp_path / "x").write_text("mine")
    known = json.loads((space / "record.json").read_text()) if "../x" in text else {}
    (space / "record.json").write_text(json.dumps(known | json.loads(text)) if known else text)
    with pytest.raises(ResumeError, match="no record of a Space"):
        make_space(alone, space)
    assert (tmp_path / "x").exists()


def test_a_model_too_large_for_a_free_space_is_refused_before_it_is_read(alone, tmp_path):
    with alone.gguf.open("r+b") as file:
        file.truncate(folder.MOST_BYTES + 1)  # sparse
    with pytest.raises(ResourceError, match=r"has 14\.0 GB, and a free Space has 16 GB"):
        make_space(alone, tmp_path / "space")
    with pytest.raises(BaseError, match="no whole GGUF"):
        alone.gguf.write_bytes(b"no")
        make_space(alone, tmp_path / "space")
    assert not (tmp_path / "space").exists()


def test_arguments_that_name_nothing_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").write_bytes(GGUF)
    Path("file").write_text("")
    for model, wanted, said in (
        ("nowhere", Wanted(Path("s")), "there is no run and no file nowhere"),
        ("model.gguf", Wanted(), "nothing says where the Space is to be"),
        ("model.gguf", Wanted(to="me/x"), "has no run that knows what was sent"),
        ("model.gguf", Wanted(Path("s"), "x"), "is no USER/NAME"),
        ("model.gguf", Wanted(Path("s"), "me/-x-"), "can be no repository"),
    ):
        with pytest.raises(RecipeError, match=said):
            space(Path(model), wanted)
    done = completed("space", "model.gguf", "--out", "file", "--try")
    assert done.returncode == ResumeError.exit_code and "is a file, so no Space" in done.stderr, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model.gguf"]


def test_the_wheel_is_what_pip_makes_of_the_checkout(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / wheel.FILE).write_bytes(wheel.wheel())
    ours, pips = contents(tmp_path / "ours" / wheel.FILE), contents(tmp_path / wheel.FILE)
    info = {f"{wheel.INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt")}
    assert len(ours) > 100 and {name: pips[name] for name in pips.keys() - info} == {
        name: ours[name] for name in ours.keys() - info
    }
    said = [Parser().parsestr(found[f"{wheel.INFO}/METADATA"].decode(), headersonly=True) for found in (ours, pips)]
    for key in ("Name", "Version", "Summary", "Requires-Python", "License-Expression", "Requires-Dist"):
        assert said[0].get_all(key) == said[1].get_all(key) and said[0][key], key


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


INSTALLED = """\
import sys
from pathlib import Path

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers", "huggingface_hub", "pyarrow", "jinja2"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
from tunesmith.api import space
from tunesmith.release.space.verb import Wanted

space(Path("model.gguf"), Wanted(Path("space")))
"""


def test_an_installed_package_without_a_checkout_or_torch_makes_the_same_wheel(tmp_path):
    path = tmp_path / wheel.FILE
    path.write_bytes(wheel.wheel())
    (tmp_path / "model.gguf").write_bytes(GGUF)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-P", "-c", INSTALLED], env=environment, check=True, cwd=tmp_path)
    assert (tmp_path / "space" / wheel.FILE).read_bytes() == path.read_bytes()


def test_the_pinned_versions_are_all_that_serving_needs_and_no_more():
    wanted, queue = {}, [(Requirement(need), "") for need in wheel.declared().needs]
    while queue:
        need, extra = queue.pop()
        name = canonicalize_name(need.name)
        if (need.marker and not need.marker.evaluate({"extra": extra})) or (name, *need.extras) in wanted:
            continue
        found = metadata.distribution(name)
        wanted[name, *need.extras] = found.version
        queue += [(Requirement(more), each) for more in found.requires or [] for each in ("", *need.extras)]
    assert sorted(wheel.pinned()) == sorted({f"{name[0]}=={version}" for name, version in wanted.items()})
    assert not {"torch", "transformers", "pyarrow"} & {name[0] for name in wanted} and len(wanted) >= 10


def test_a_dockerfile_is_read_as_docker_reads_it():
    text = (
        '# a\nFROM python:3.11 \\\n  # within\n  AS x\n\nENV A=1 B="two words"\nCOPY --chown=1:1 ["a b", "./"]\nCMD []'
    )
    found = dockerfile.steps(text)
    assert [(step.word, step.text, step.line) for step in found][:2] == [
        ("FROM", "python:3.11 AS x", 2), ("ENV", 'A=1 B="two words"', 6),
    ]  # fmt: skip
    assert dockerfile.settings(found[1]) == {"A": "1", "B": "two words"}
    assert found[2].flags == (("chown", "1:1"),) and found[2].words() == ["a b", "./"]
    assert dockerfile.filled("$A/${B}/$C", {"A": "1", "B": "2"}) == "1/2/"
    for broken, said in (("RUN x", "has no CMD"), ("CMD [x", "no JSON list"), ("CMD x y", "names no --port")):
        with pytest.raises(DataError, match=said):
            dockerfile.port_of(dockerfile.command(dockerfile.steps(broken)))


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """A function that tries a Space with a stand-in for the chat, as this test's own user, with steps of one's own."""
    monkeypatch.setattr(limits.os, "geteuid", lambda: 4711)
    monkeypatch.setattr(attempt.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(attempt.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(attempt, "TRY_AGAIN_S", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def tries(*steps, command=None, user="USER 1000"):
        space = tmp_path / "space"
        space.mkdir(exist_ok=True)
        (space / "app.py").write_text(STAND_IN)
        lines = [
            f"FROM python:3.{sys.version_info[1]}.1-slim", "RUN apt-get no-such-thing", user,
            "ENV HOME=/home/user WHERE=/home/user/app", "WORKDIR /home/user/app", "COPY app.py ./", *steps,
            f"CMD {json.dumps(command or ['python', 'app.py', '--port', str(port)])}",
        ]  # fmt: skip
        (space / "Dockerfile").write_text("\n".join(lines))
        return attempt.try_space(space, ["one", "two", "three"], 7)

    tries.port = port
    return tries


def test_a_space_is_tried_as_its_dockerfile_says(tried, tmp_path, capsys):
    note = tmp_path / "note"
    code = "import os; print(os.getcwd(), os.environ['WHERE'], os.environ['HOME'], len(os.sched_getaffinity(0)))"
    found = tried(f'RUN python -c "{code}" > {note}', 'HEALTHCHECK --interval=1s CMD ["python", "-c", "pass"]')
    here, where, home, cores = note.read_text().split()
    assert here == where == f"{home}/app" and home.startswith(str(tmp_path)) and int(cores) <= limits.CORES
    assert found["prompts"] == 3 and 0.01 <= found["first_token_s"] < 5 and found["tokens_per_s"] > 0
    assert found["peak_memory_bytes"] is None or found["peak_memory_bytes"] > 1_000_000
    said = capsys.readouterr().err
    assert "your own user" in said and "16 GB of" in said and "not done here, where no image is made: line 2" in said
    assert not list(tmp_path.glob("tunesmith-space-*")), "the folder is deleted"
    attempt.refuse_port_in_use(tried.port)  # the chat has ended


@pytest.mark.parametrize(
    ("steps", "error", "said"),
    [
        (["RUN echo so it is; exit 3"], ResourceError, r"line 7: RUN echo .* ended with 3: so it is"),
        (["RUN echo NewConnectionError; exit 1"], ResourceError, "fix: connect to the network"),
        (["ADD https://x ./"], DataError, "only Docker can do this step"),
        (["COPY ../secret ./"], DataError, r"there is no file \.\./secret"),
        (["COPY app.py /etc/"], DataError, "outside of /home/user"),
        (['HEALTHCHECK CMD ["python", "-c", "sys"]'], ResourceError, "NameError"),
    ],
)
def test_a_step_that_cannot_be_done_is_named(tried, tmp_path, steps, error, said):
    (tmp_path / "secret").write_text("mine")
    with pytest.raises(error, match=said):
        tried(*steps)
    assert not list(tmp_path.glob("tunesmith-space-*"))


def test_a_chat_that_ends_or_does_not_begin_is_named(tried, monkeypatch):
    with pytest.raises(ResourceError, match=r"ended with 1 before it answered: .*NameError"):
        tried(command=["python", "-c", "nothing", "--port", str(tried.port)])
    with pytest.raises(DataError, match="starts no-such-program"):
        tried(command=["no-such-program", "--port", str(tried.port)])
    monkeypatch.setattr(attempt, "START_S", 0.3)
    with pytest.raises(ResourceError, match=r"did not answer within 0 s"):
        tried(command=["python", "-c", "import time; time.sleep(60)", "--port", str(tried.port)])
    with socket.create_server(("0.0.0.0", tried.port)), pytest.raises(ResourceError, match="cannot be used"):
        tried()


def test_root_starts_another_user_with_less_memory():
    code = "import os, resource; print(os.geteuid(), os.getgroups(), resource.getrlimit(resource.RLIMIT_AS)[0])"
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    with limits.limits(12345) as limited:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True, cwd="/", **limited.start
        )
    uid, rest = done.stdout.split(maxsplit=1)
    assert uid == ("12345" if os.geteuid() == 0 else str(os.geteuid()))
    assert ("address space" in limited.says) == (str(limits.MEMORY_BYTES) in rest)
    with pytest.raises(ResourceError, match=r"no Python 2\.7 here"):
        limits.python_for("2.7", 12345, [python, "no-such-python"])


STEP = """\
import subprocess, sys, time
from tunesmith.release.space import limits as module
from tunesmith.release.space.limits import guarded, limits

module.GRACE_S = 1
with limits(12345) as limited:
    words = guarded(["sh", "-c", "IGNORED sleep 60 & echo $! > pid && wait $!; true".replace("IGNORED", sys.argv[1])])
    print(subprocess.Popen(words, start_new_session=True, preexec_fn=limited.start["preexec_fn"]).pid, flush=True)
    time.sleep(60)
"""
KILLED = """\
import subprocess, sys, time
from tunesmith.release.space.limits import limits

with limits(12345) as limited:
    print(subprocess.Popen(["/bin/sleep", "60"], cwd="/", **limited.start).pid, flush=True)
    time.sleep(60)
"""


def test_a_run_whose_proofs_do_not_hold_is_not_shipped(run, tmp_path):
    record = json.loads((run.gguf / "record.json").read_text())
    record["proofs"][-1] |= {"value": 0.5, "limit": 0.1}
    (run.gguf / "record.json").write_text(json.dumps(record))
    with pytest.raises(ProofError, match="a proof does not hold, so nothing is shipped: F16 = merged"):
        space(run.path, Wanted(tmp_path / "space"))
    assert not (tmp_path / "space").exists()


def test_a_licence_file_replaces_no_file_of_the_space(alone, tmp_path):
    with pytest.raises(RecipeError, match="the licence's Dockerfile has the name of a file"):
        make_space(replace(alone, texts={"Dockerfile": b"FROM evil"}), tmp_path / "space")


@pytest.mark.parametrize(
    ("number", "ignored"), [(signal.SIGTERM, ""), (signal.SIGKILL, ""), (signal.SIGKILL, "trap '' TERM;")]
)
def test_a_step_ends_with_all_that_it_has_started(tmp_path, number, ignored):
    """A shell that waits for another program, as that of pip does: told to end, or with who has started it."""
    with subprocess.Popen(
        [sys.executable, "-c", STEP, ignored], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as command:
        shell = int(command.stdout.readline())
        deadline = time.monotonic() + 10
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        inner = int((tmp_path / "pid").read_text())
        command.kill() if number == signal.SIGKILL else os.kill(shell, number)
        while is_running(inner) or is_running(shell):
            assert time.monotonic() < deadline, "it goes on"
            time.sleep(0.02)
        command.kill()


@pytest.mark.parametrize(("ends", "code"), [("exit 7", 7), ("kill -KILL $$", 137), ("true", 0)])
def test_a_guarded_program_ends_as_it_ends(ends, code):
    done = subprocess.run(limits.guarded(["sh", "-c", ends]), start_new_session=True, capture_output=True, check=False)
    assert done.returncode == code


def test_the_folder_of_a_try_that_was_killed_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(attempt.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(attempt.tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen(["true"]) as ended:
        pass
    left, other = tmp_path / f"{attempt.PLACE}{ended.pid}-abc", tmp_path / f"{attempt.PLACE}{os.getpid()}-abc"
    mine = tmp_path / f"{attempt.PLACE}notes"
    for place in (left, other, mine):
        (place / "venv").mkdir(parents=True)
    (tmp_path / "space").mkdir()
    with attempt._place(tmp_path / "space") as place:
        assert place.parent == tmp_path and not left.exists() and other.exists() and mine.exists()
    assert not place.exists()


def test_what_is_tried_does_not_outlive_a_command_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as command:
        started = int(command.stdout.readline())
        assert Path(f"/proc/{started}").exists()
        command.kill()
    deadline = time.monotonic() + 10
    while is_running(started):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.02)
    with limits.limits(12345):  # which clears the group that is left
        assert not any((place / f"{limits.GROUP}{command.pid}").exists() for place, _ in group_limits())


def is_running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


class Files(http.server.BaseHTTPRequestHandler):
    """A Hub whose files lie at another address, as large ones do."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        found = {"/far": (200, GGUF), "/u/m/resolve/c/f": (302, b"")}.get(self.path, (404, b""))
        self.send_response(found[0])
        self.send_header("Location", "/far")
        self.end_headers()
        self.wfile.write(found[1])

    def log_message(self, *_):
        pass


def test_the_published_file_is_fetched_whole_or_not_at_all(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    target, digest = tmp_path / "m.gguf", hashlib.sha256(GGUF).hexdigest()
    fetch("u/m/resolve/c/f", digest, target)
    assert target.read_bytes() == GGUF
    assert server.seen == [("/u/m/resolve/c/f", "Bearer hf_secret_token"), ("/far", None)]
    target.unlink()
    with pytest.raises(BaseError, match="was published"):
        fetch("u/m/resolve/c/f", "0" * 64, target)
    with pytest.raises(BaseError, match="404 Not Found\n  fix: if the repository is private"):
        fetch("u/m/resolve/c/other", digest, target)
    server.shutdown()
    server.server_close()
    with pytest.raises(BaseError, match="cannot be fetched"):
        fetch("u/m/resolve/c/f", digest, target)
    assert not list(tmp_path.iterdir())


def test_the_python_that_runs_here_has_an_image():
    assert texts.image().startswith(f"python:3.{sys.version_info[1]}.")


class Sites(http.server.BaseHTTPRequestHandler):
    """A page with the chat in a frame, and the chat's page; they are told apart by the name of this machine."""

    def do_GET(self):
        name, _, port = self.headers["Host"].partition(":")
        chat = with_run(b"<!doctype html><html><head></head><body>the chat</body></html>", described("demo", None))
        frame = f'<iframe src="http://127.0.0.1:{port}/"></iframe>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(chat if name == "127.0.0.1" else frame)

    def log_message(self, *_):
        pass


def test_a_browser_that_stores_nothing_in_a_frame_gets_a_link():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sites)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as playwright:
            flags = ["--no-sandbox", "--test-third-party-cookie-phaseout"]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            page = browser.new_page()
            page.goto(f"http://localhost:{server.server_port}/")
            link = page.frame_locator("iframe").get_by_role("link", name="Open the chat in a tab of its own")
            link.wait_for(timeout=20_000)
            with page.context.expect_page() as opened:
                link.click()
            opened.value.wait_for_load_state()
            assert opened.value.url == f"http://127.0.0.1:{server.server_port}/"
            assert (
                opened.value.locator("body").inner_text().startswith("the chat")
            )  # where it may store, it stays as it is
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
