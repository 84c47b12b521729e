"""The adapter folder names its base so that peft alone, with nothing of ours, loads both and has our logits."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hub_server import COMMIT, HubServer
from safetensors.torch import load_file, save_file
from tiny import save_base
from training_runs import recipe_with

from tunesmith.gguf.read import convert
from tunesmith.gguf.write import About, write_gguf
from tunesmith.model.adapter import adapter_tensors, save_adapter, set_adapter
from tunesmith.model.attention import Packing
from tunesmith.model.base import hidden_states, load_base
from tunesmith.model.lora import attach
from tunesmith.recipe import ChatConfig
from tunesmith.weights.locate import LocatedBase, locate_base

IDS = torch.arange(3, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("tiny") / "base", initializer_range=0.2)


def with_adapter(base, place):
    """An adapter of random numbers in PEFT's format, and the logits that we compute with it."""
    model = load_base(base.folder, precision="fp32", device=torch.device("cpu"))
    config = recipe_with().lora
    attach(model, config, seed=0)
    generator = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(t.shape, generator=generator) / 4 for n, t in adapter_tensors(model).items()}
    set_adapter(model, tensors)
    save_file(tensors, place / "checkpoint.safetensors")
    (place / "adapter").mkdir()
    save_adapter(place / "adapter", place / "checkpoint.safetensors", config, base)
    hidden_TD = hidden_states(model, IDS, torch.arange(len(IDS)), Packing((len(IDS),), None, len(IDS)))
    return place / "adapter", (hidden_TD @ model.get_output_embeddings().weight.T).detach()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_peft_loads_the_adapter_alone_with_our_logits(folder, tmp_path, own_cache, kind):
    from peft import AutoPeftModelForCausalLM

    source = folder
    if kind == "gguf":
        source = tmp_path / "tiny.gguf"
        write_gguf(folder, source, "F16", About("tiny", "tiny", None, ChatConfig()))
    base = locate_base(str(source), convert)
    adapter, wanted_TV = with_adapter(base, tmp_path)
    theirs = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS[None]).logits[0], wanted_TV, rtol=1e-4, atol=1e-4)
        assert (theirs.unload()(IDS[None]).logits[0] - wanted_TV).abs().max() > 0.1
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base.folder) and settings["revision"] is None


CHILD = """
import sys, torch
from safetensors.torch import save_file
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
save_file({"logits": model(torch.arange(3, 40)[None]).logits[0].detach().contiguous()}, sys.argv[2])
"""


def test_peft_fetches_a_hub_base_by_id_and_commit(folder, tmp_path):
    adapter, wanted_TV = with_adapter(LocatedBase("org/tiny", folder, "digest", COMMIT, None), tmp_path)
    with HubServer().running() as hub:
        hub.models["org/tiny"] = folder
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        command = [sys.executable, "-c", CHILD, str(adapter), str(tmp_path / "logits.safetensors")]
        done = subprocess.run(command, env=kept | own, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        asked = [path for path in hub.paths if "model.safetensors" in path and "index" not in path]
    assert asked and all(f"/resolve/{COMMIT}/" in path for path in asked)
    found_TV = load_file(tmp_path / "logits.safetensors")["logits"]
    torch.testing.assert_close(found_TV, wanted_TV, rtol=1e-4, atol=1e-4)
