"""The adapter's GGUF: llama.cpp puts it on the base's file and computes what transformers does; each fault is seen."""

import json
import re
import shutil

import gguf
import numpy as np
import pytest
import torch
from gguf_reader import reader_of
from safetensors.torch import load_file, save_file
from second_llama import logits_of
from tiny import save_base
from training_runs import prepare_rows, recipe_with

from tunesmith.errors import BaseError, ProofError
from tunesmith.gguf import adapter as module
from tunesmith.gguf.adapter import write_adapter
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.logits import Unavailable, sequence_logits
from tunesmith.proof import adapter_gguf as proof
from tunesmith.proof.adapter_gguf import CHOICE, KL, prove_adapter_gguf
from tunesmith.recipe import ChatConfig
from tunesmith.weights import peft_files

ABOUT = About("tiny", "its-base", "apache-2.0", ChatConfig())
TARGETS = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "mlp.down_proj": (64, 128)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run with rows and an adapter, base, its F16 file)."""
    place = tmp_path_factory.mktemp("adapter")
    base = save_base(place / "base", initializer_range=0.2)
    run = prepare_rows(place / "run", base)
    run.adapter.mkdir()
    draw, tensors = torch.Generator().manual_seed(1), {}
    for layer in range(2):
        for name, (out, width) in TARGETS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, width, generator=draw) / 8
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, 4, generator=draw) / 4
    save_file(tensors, run.adapter / peft_files.WEIGHTS)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": [name.split(".")[1] for name in TARGETS]}
    (run.adapter / peft_files.CONFIG).write_text(json.dumps(settings))
    write_gguf(base, place / "base.gguf", "F16", ABOUT)
    return run, base, place / "base.gguf"


def prove(made, file, tmp_path):
    run, base, base_file = made
    recipe = recipe_with()
    return prove_adapter_gguf(recipe, run, base, file, lambda path: shutil.copyfile(base_file, path), tmp_path)


def test_the_file_says_what_it_is_and_equals_the_adapter(made, tmp_path):
    run, base, _ = made
    file = tmp_path / "tiny-lora-F16.gguf"
    assert write_adapter(run.adapter, base, file, ABOUT) == file.stat().st_size < 60_000
    reader = reader_of(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert (said["general.type"], said["adapter.type"], said["adapter.lora.alpha"]) == ("adapter", "lora", 6.0)
    assert (said["general.architecture"], said["general.base_model.0.name"]) == ("llama", "its-base")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 12 and {tensor.tensor_type.name for tensor in reader.tensors} == {"F16"}
    stored = load_file(run.adapter / peft_files.WEIGHTS)
    for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        weight = stored[f"base_model.model.model.layers.1.mlp.down_proj.{theirs}.weight"]
        assert np.array_equal(tensors[f"blk.1.ffn_down.weight.{ours}"].data, weight.half().numpy())
    b_OR = stored["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].half().numpy()
    found_OR = tensors["blk.0.attn_q.weight.lora_b"].data  # heads of 16 rows: row 1 is what was row 8
    assert np.array_equal(found_OR[:4], b_OR[[0, 8, 1, 9]]) and np.array_equal(found_OR[16:18], b_OR[[16, 24]])
    proofs = prove(made, file, tmp_path)
    assert [p.name for p in proofs] == [KL, CHOICE] and all(p.value <= p.limit and p.positions > 100 for p in proofs)


def test_another_llama_cpp_than_ours_takes_it(made, tmp_path):
    run, base, base_file = made
    write_adapter(run.adapter, base, file := tmp_path / "lora.gguf", ABOUT)
    ids = [int(id_) for id_ in np.random.default_rng(0).integers(3, 500, 24)]
    places = list(range(len(ids)))
    ours = [
        np.concatenate(list(sequence_logits(base_file, [(ids, places)], threads=1, window=tmp_path / "w", adapter=put)))
        for put in (file, None)
    ]
    theirs = logits_of(base_file, ids, tmp_path, file)
    assert np.abs(ours[0] - theirs).max() < 1e-2 < 10 * 1e-2 < np.abs(ours[1] - theirs).max()


@pytest.mark.parametrize(
    ("key", "said"), [("alpha", "its adapter.lora.alpha is 6.001"), ("tensor", "not the adapter's: blk")]
)
def test_faults_too_small_for_probabilities_are_seen(made, tmp_path, monkeypatch, key, said):
    run, base, _ = made
    write_adapter(run.adapter, base, file := tmp_path / "lora.gguf", ABOUT)
    reader = gguf.GGUFReader(file, "r+")
    if key == "alpha":
        field = reader.fields["adapter.lora.alpha"]
        field.parts[field.data[0]][0] = 6.001
    else:
        tensor = next(one for one in reader.tensors if one.name == "blk.1.attn_q.weight.lora_b")
        tensor.data[0, 0] = np.nextafter(tensor.data[0, 0], np.float16(9))
    del reader
    with pytest.raises(ProofError, match=said):
        prove(made, file, tmp_path)


def test_without_the_c_functions_the_server_is_asked(made, tmp_path, monkeypatch):
    run, base, _ = made
    write_adapter(run.adapter, base, file := tmp_path / "lora.gguf", ABOUT)
    monkeypatch.setattr(proof, "FEW", 3)

    def none(*_, **__):
        raise Unavailable("not known")
        yield

    monkeypatch.setattr(proof, "sequence_logits", none)
    proofs = prove(made, file, tmp_path)
    assert [p.positions for p in proofs] == [3, 3] and proofs[0].value <= 1e-4


@pytest.mark.parametrize("fault", ["rows of B as they were", "another scale", "layers exchanged", "no adapter at work"])
def test_faults_are_seen(made, tmp_path, monkeypatch, fault):
    run, base, _ = made
    file = tmp_path / "lora.gguf"
    if fault == "rows of B as they were":
        monkeypatch.setattr(module, "head_rows", lambda *_: 0)
    if fault == "another scale":
        real = gguf.GGUFWriter.add_float32
        monkeypatch.setattr(gguf.GGUFWriter, "add_float32", lambda self, key, value: real(self, key, value * 1.1))
    if fault == "layers exchanged":
        real_name, layer = module.gguf_name, {"0": "1", "1": "0"}

        def exchanged(name, *given):
            return real_name(re.sub(r"layers\.(\d)", lambda m: f"layers.{layer[m[1]]}", name), *given)

        monkeypatch.setattr(module, "gguf_name", exchanged)
    write_adapter(run.adapter, base, file, ABOUT)
    if fault == "no adapter at work":

        def without(*given, adapter, **named):
            assert adapter
            return sequence_logits(*given, **named)

        monkeypatch.setattr(proof, "sequence_logits", without)
    with pytest.raises(ProofError, match=r"lora\.gguf on the base is not the adapter") as caught:
        prove(made, file, tmp_path)
    assert "held-out row" in caught.value.where


def test_a_tensor_without_a_place_is_named(made, tmp_path):
    _, base, _ = made
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"base_model.model.vision.proj.lora_A.weight": torch.ones(2, 2)}, folder / peft_files.WEIGHTS)
    with pytest.raises(BaseError, match=r"vision\.proj\.lora_A\.weight has no place"):
        write_adapter(folder, base, tmp_path / "lora.gguf", ABOUT)


def test_memory_that_is_short_is_a_skipped_proof(made, tmp_path, monkeypatch):
    run, base, _ = made
    write_adapter(run.adapter, base, file := tmp_path / "lora.gguf", ABOUT)
    monkeypatch.setattr("tunesmith.machine.free_memory_bytes", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    proofs = prove(made, file, tmp_path)
    assert not (tmp_path / "base-F16.gguf").exists()
    assert [p.value for p in proofs] == [None, None] and "GB of memory" in proofs[0].skipped_because
