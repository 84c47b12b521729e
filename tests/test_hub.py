"""A base from the Hub, against a stand-in server over real HTTP: fetched, pinned, offline, refused."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer
from tiny import save_base

from tunesmith import pipeline
from tunesmith.api import to_serve
from tunesmith.decides import as_begun, at_commits, data_needs, sources_of
from tunesmith.errors import BaseError, RecipeError
from tunesmith.gguf.read import convert
from tunesmith.pipeline import run_stages
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import read_recipe
from tunesmith.runs import Run, commit_stage
from tunesmith.stages import STAGES
from tunesmith.weights import hub as hub_module
from tunesmith.weights import hub_gguf
from tunesmith.weights.locate import locate_base

TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub(tiny_base):
    with HubServer().running() as server:
        server.models["org/tiny"] = tiny_base
        yield server


def locate_in_child(base, hub_url, cache, *, before="", **environment):
    """locate_base in a fresh process (the Hub's address is read at import); its result, or all that it printed."""
    code = f"from tunesmith.weights.locate import locate_base, hub; {before}\nprint(vars(locate_base({base!r}, None)))"
    own = {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(cache / "hf"),
        "TUNESMITH_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    child = subprocess.run(
        [sys.executable, "-c", code], env=kept | own | environment, capture_output=True, text=True, check=False
    )
    return child.stdout or child.stderr


def test_a_hub_model_is_fetched_pinned_and_then_found_offline(hub, tmp_path, tiny_base):
    extra = shutil.copytree(tiny_base, tmp_path / "model")
    (extra / "original").mkdir()
    for name in ("pytorch_model.bin", "original/w.safetensors", "consolidated.safetensors"):
        (extra / name).write_text("not needed")
    for name in ("LICENSE.txt", "NOTICE", "USE_POLICY.md"):
        (extra / name).write_text("to be passed on with what is made from it")
    hub.models["org/tiny"] = extra
    found = locate_in_child("org/tiny@main", hub.url, tmp_path)
    assert f"'revision': '{COMMIT}'" in found and "'name': 'org/tiny'" in found
    assert not any(
        "not needed" in path or ".bin" in path or "consolidated" in path or "original" in path for path in hub.paths
    )
    assert all(any(path.endswith(name) for path in hub.paths) for name in ("LICENSE.txt", "NOTICE", "USE_POLICY.md"))
    asked = len(hub.paths)
    offline = locate_in_child("org/tiny@main", "http://127.0.0.1:1", tmp_path)
    assert offline == found and len(hub.paths) == asked
    assert locate_in_child("org/tiny@main", hub.url, tmp_path, HF_HUB_OFFLINE="1") == found


def test_without_a_network_the_local_ways_are_named(tmp_path):
    said = locate_in_child("org/tiny", "http://127.0.0.1:1", tmp_path)
    assert "cannot be reached" in said and "GGUF file" in said and "builtin:smollm2-135m-instruct" in said
    assert "cannot be reached" in locate_in_child("org/tiny", "http://127.0.0.1:1", tmp_path, HF_HUB_OFFLINE="1")


TIMED = """import atexit, sys, time; hub.TIMEOUT_S = 1; started = time.monotonic()
atexit.register(lambda: print("took", time.monotonic() - started, file=sys.stderr))"""


@pytest.mark.parametrize("base", ["org/tiny", "org/tiny@" + "f" * 40])
def test_a_hub_that_refuses_or_is_silent_is_named_soon(tmp_path, base):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)  # connections are taken, and no word comes
        for port in (1, silent.getsockname()[1]):
            said = locate_in_child(base, f"http://127.0.0.1:{port}", tmp_path, before=TIMED)
            assert "cannot be reached" in said
            assert float(said.rpartition("took ")[2]) < 12, said  # it took 24 s, and for ever where no word came


def test_a_commit_that_is_cached_is_not_asked_for(hub, tmp_path):
    first = locate_in_child("org/tiny", hub.url, tmp_path)
    asked = len(hub.paths)
    assert locate_in_child(f"org/tiny@{COMMIT}", hub.url, tmp_path) == first and len(hub.paths) == asked
    weights = next((tmp_path / "hf").rglob("model.safetensors"))
    weights.unlink()  # its fetching was cut off
    assert "cannot be reached" in locate_in_child(f"org/tiny@{COMMIT}", "http://127.0.0.1:1", tmp_path)
    assert locate_in_child(f"org/tiny@{COMMIT}", hub.url, tmp_path) == first


@pytest.mark.parametrize(
    ("refusal", "token"),
    [
        ((403, "GatedRepo", False), TOKEN),
        ((401, "GatedRepo", True), None),  # as the Hub does: the model is listed, its files are refused
        ((403, "", False), TOKEN),
        ((401, "", False), None),
    ],
)
def test_a_gated_model_names_licence_token_and_a_free_base(hub, tmp_path, refusal, token):
    hub.refusals["org/tiny"] = refusal
    said = locate_in_child("org/tiny", hub.url, tmp_path, **({"HF_TOKEN": token} if token else {}))
    assert f"HTTP {refusal[0]}" in said and "gated" in said
    for part in ("https://huggingface.co/org/tiny", "HF_TOKEN", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        assert part in said
    assert TOKEN not in said
    assert not token or f"Bearer {TOKEN}" in hub.tokens


def test_a_model_that_is_cached_goes_on_without_its_token(hub, tmp_path):
    first = locate_in_child("org/tiny", hub.url, tmp_path, HF_TOKEN=TOKEN)
    hub.refusals["org/tiny"] = (401, "RepoNotFound", False)  # what the Hub says of a private model
    assert locate_in_child("org/tiny", hub.url, tmp_path) == first


def test_a_damaged_token_is_not_shown(hub, tmp_path):
    said = locate_in_child("org/tiny", hub.url, tmp_path, HF_TOKEN=f"{TOKEN}é")
    assert "BaseError" in said and "secret" not in said


def test_a_token_in_the_text_of_an_error_is_not_shown(monkeypatch):
    """HTTP libraries write headers into their errors; nothing of that is in the text or in what is chained to it."""

    def fails(*_, **__):
        raise OSError(f"bad header: Authorization: Bearer {TOKEN}")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub_module.huggingface_hub, "snapshot_download", fails)
    with pytest.raises(BaseError, match=r"Bearer \*\*\*") as caught:
        hub_module.fetch_snapshot("org/tiny", None, weights=True)
    assert TOKEN not in str(caught.value) and caught.value.__context__ is caught.value.__cause__ is None


def test_a_model_that_is_not_there(hub, tmp_path):
    assert "check the spelling" in locate_in_child("org/nothing", hub.url, tmp_path)
    assert "has no revision v9" in locate_in_child("org/tiny@v9", hub.url, tmp_path)


def test_a_wrong_kind_of_model_is_refused_before_its_weights_are_fetched(hub, tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    (folder / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    hub.models["org/tiny"] = folder
    assert "BertForMaskedLM" in locate_in_child("org/tiny", hub.url, tmp_path)
    assert hub.paths and not any(".safetensors" in path for path in hub.paths)


def test_named_templates_are_fetched_too_and_the_default_is_taken(hub, tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").rename(folder / "additional_chat_templates" / "tool_use.jinja")
    hub.models["org/tiny"] = folder
    said = locate_in_child("org/tiny", hub.url, tmp_path)
    assert "1 chat templates, tool_use, and none is named default" in said


# a run keeps the commits that it began with


def tunesmith(hub_url, cache, *arguments):
    """The command line in a process of its own, against the stand-in."""
    own = {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(cache / "hf"),
        "TUNESMITH_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", "from tunesmith.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, env=kept | own, capture_output=True, text=True, check=False)


def test_a_push_to_the_hub_changes_nothing_in_a_run_that_has_begun(tmp_path, tiny_base):
    script = [sys.executable, str(Path(__file__).parent / "pinned_run.py"), str(tmp_path), str(tiny_base)]
    script.append(str(save_base(tmp_path / "other", seed=1)))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(script, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"base org/tiny@main: this run began with commit {COMMIT} and goes on with it" in done.stderr
    assert "going on from step-000002" in done.stderr


def test_a_base_that_cannot_go_the_whole_way_is_refused_before_its_weights_are_fetched(hub, tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"architectures": ["CohereForCausalLM"], "model_type": "cohere"})
    )
    hub.models["org/tiny"] = folder
    (tmp_path / "recipe.yaml").write_text("name: a\nbase: org/tiny\ndata: {sources: [{path: rows.jsonl}]}\n")
    done = tunesmith(hub.url, tmp_path, "run", tmp_path / "recipe.yaml", "--run-dir", tmp_path / "run")
    assert done.returncode == 4 and "org/tiny is CohereForCausalLM" in done.stderr and "gguf: []" in done.stderr
    assert not (tmp_path / "run").exists() and not any(".safetensors" in path for path in hub.paths)


def recipe_of(*sources, base="org/tiny", held_out=0.25):
    return Recipe(
        name="a", base=base, data={"sources": [{"path": "org/rows"} | s for s in sources], "held_out": held_out}
    )


def revisions(recipe):
    return [source.revision for source in sources_of(recipe)]


def test_hub_data_sets_are_taken_at_commits_and_files_are_left_alone(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    sources = (
        {},
        {"revision": "v1"},
        {"revision": "c" * 40},
        {"path": str(tmp_path / "rows.jsonl")},
        {"path": "gone.jsonl"},
    )
    recipe = recipe_of(*sources, {"path": "squad"}, held_out={"path": "org/rows", "split": "test"})
    asked = []
    found = at_commits(recipe, lambda source: asked.append((source.path, source.revision)) or "d" * 40)
    assert revisions(found) == ["d" * 40, "d" * 40, "c" * 40, None, None, "d" * 40, "d" * 40]
    assert asked == [("org/rows", None), ("org/rows", "v1"), ("squad", None), ("org/rows", None)]


@pytest.mark.parametrize(
    ("asked", "begun"),
    [
        ("org/tiny", True), ("org/tiny@main", True), ("org/tiny@v1.0", True), (f"org/tiny@{COMMIT[:12]}", True),
        (f"org/tiny@{COMMIT}", True), ("org/tiny@" + "b" * 40, False), ("org/tiny@" + "b" * 7, False),
        ("org/other", False),
    ],
)  # fmt: skip
def test_a_run_takes_the_commits_it_began_with_unless_others_are_named(tmp_path, asked, begun):
    run = Run(tmp_path)
    held_out = {"path": "org/rows", "split": "test", "revision": "e" * 40}
    run.keep_recipe(
        recipe_of({"revision": "c" * 40}, {"revision": "d" * 40}, base=f"org/tiny@{COMMIT}", held_out=held_out)
    )
    assert as_begun(recipe_of({}, base=asked), run).base == (f"org/tiny@{COMMIT}" if begun else asked)
    unpinned = recipe_of({}, {"revision": "v1"}, {}, held_out=held_out | {"revision": None})
    assert revisions(as_begun(unpinned, run)) == ["c" * 40, "d" * 40, None, "e" * 40]
    named = recipe_of({"revision": "f" * 40}, {"path": "org/others"})
    assert revisions(as_begun(named, run)) == ["f" * 40, None]
    os.makedirs("org/tiny")  # a folder of that name is meant, not the Hub's
    assert as_begun(recipe_of({}), run).base == "org/tiny"


def test_a_run_that_began_without_commits_is_not_asked_for_any(tmp_path, tiny_base, monkeypatch):
    """As version 0.1 left it: its data were made from the revision null."""
    run, recipe = Run(tmp_path / "run"), recipe_of({}, base=str(tiny_base))
    base = locate_base(str(tiny_base), convert)
    commit_stage(run.data, *data_needs(recipe, run, base.digest), lambda draft: {"longest": 9})
    run.keep_recipe(recipe)
    monkeypatch.setattr(pipeline, "resolve_commit", None)
    assert run_stages(recipe, run, STAGES[:1]).done
    assert read_recipe(run.recipe).data.sources[0].revision is None
    later = recipe.model_copy(update={"seed": 5})
    monkeypatch.setattr(pipeline, "resolve_commit", lambda source: "d" * 40)
    done = run_stages(later, run, STAGES[:1], lambda stage: lambda recipe, run, base: (revisions(recipe), True))
    assert revisions(done.recipe) == ["d" * 40]  # its data are made anew, so they may as well have one


SERVED = "from tunesmith.api import to_serve; from pathlib import Path; print(to_serve(Path({!r}), {!r}, ()))"


def served_in_child(model, kind, hub_url, cache):
    own = {"HF_ENDPOINT": hub_url, "HF_HOME": str(cache / "hf"), "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    code = f"try:\n  {SERVED.format(model, kind)}\nexcept Exception as error: print(error)"
    child = subprocess.run([sys.executable, "-c", code], env=kept | own, capture_output=True, text=True, check=False)
    return child.stdout or child.stderr


def test_a_chat_names_a_hub_repository_of_gguf_files(hub, tmp_path):
    """The type that loses next to nothing, or the one that is asked for; found offline later on."""
    (folder := tmp_path / "files").mkdir()
    for name in ("bot-F16.gguf", "bot-Q8_0.gguf", "bot-Q4_K_M.gguf", "bot-lora-F16.gguf", "mmproj-Q8_0.gguf"):
        (folder / name).write_bytes(b"GGUF" + name.encode())
    hub.models["me/bot-GGUF"] = folder
    found = served_in_child("me/bot-GGUF", None, hub.url, tmp_path)
    assert f"{COMMIT}/bot-Q8_0.gguf'" in found and "alias='bot-GGUF'" in found and "own_sampling=True" in found
    assert [path for path in hub.paths if "bot-F16" in path] == []
    assert "/bot-Q4_K_M.gguf'" in served_in_child("me/bot-GGUF@main", "Q4_K_M", hub.url, tmp_path)
    said = served_in_child("me/bot-GGUF", "Q6_K", hub.url, tmp_path)
    assert "me/bot-GGUF has no GGUF file of type Q6_K; types there: F16, Q4_K_M, Q8_0" in said
    assert "there is no model me/nothing on the Hub" in served_in_child("me/nothing", None, hub.url, tmp_path)
    assert "/bot-Q8_0.gguf'" in served_in_child("me/bot-GGUF", None, "http://127.0.0.1:1", tmp_path)


def test_a_run_that_is_misspelt_is_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(hub_gguf, "fetch_gguf", lambda *_: 1 / 0)
    Path("runs").mkdir()
    with pytest.raises(RecipeError, match="there is no run and no file runs/dmeo") as caught:
        to_serve(Path("runs/dmeo"), None, ())
    assert "USER/NAME-GGUF" in caught.value.fix
