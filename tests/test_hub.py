"""A base from the Hub, against a stand-in server over real HTTP: fetched, pinned, offline, refused."""

import os
import shutil
import subprocess
import sys

import pytest
from hub_server import COMMIT, HubServer

from tunesmith.errors import BaseError
from tunesmith.weights import hub as hub_module

TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub(tiny_base):
    with HubServer().running() as server:
        server.models["org/tiny"] = tiny_base
        yield server


def locate_in_child(base, hub_url, cache, **environment):
    """locate_base in a fresh process (the Hub's address is read at import); its result, or all that it printed."""
    code = f"from tunesmith.weights.locate import locate_base; print(vars(locate_base({base!r}, None)))"
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
    hub.models["org/tiny"] = extra
    found = locate_in_child("org/tiny@main", hub.url, tmp_path)
    assert f"'revision': '{COMMIT}'" in found and "'name': 'org/tiny'" in found
    assert not any(
        "not needed" in path or ".bin" in path or "consolidated" in path or "original" in path for path in hub.paths
    )
    asked = len(hub.paths)
    offline = locate_in_child("org/tiny@main", "http://127.0.0.1:1", tmp_path)
    assert offline == found and len(hub.paths) == asked
    assert locate_in_child("org/tiny@main", hub.url, tmp_path, HF_HUB_OFFLINE="1") == found


def test_without_a_network_the_local_ways_are_named(tmp_path):
    said = locate_in_child("org/tiny", "http://127.0.0.1:1", tmp_path)
    assert "cannot be reached" in said and "GGUF file" in said and "builtin:smollm2-135m-instruct" in said
    assert "cannot be reached" in locate_in_child("org/tiny", "http://127.0.0.1:1", tmp_path, HF_HUB_OFFLINE="1")


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
