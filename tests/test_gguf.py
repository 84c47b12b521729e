"""F16 files against the model they come from, llama.cpp's converter, and llama.cpp itself."""

import json

import gguf
import numpy as np
import pytest
import torch
from gguf_reader import fields_of
from safetensors.torch import load_file, save_file
from tiny import save_base
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tunesmith.errors import BaseError
from tunesmith.gguf import read
from tunesmith.gguf import write as ours
from tunesmith.gguf.metadata import read_singles
from tunesmith.gguf.write import About, expected_bytes, write_gguf
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig
from tunesmith.server.facts import model_facts
from tunesmith.weights import builtin
from tunesmith.weights.locate import cache_folder

ABOUT = About("tiny", "a/base", "apache-2.0", ChatConfig(temperature=0.25, top_p=0.5))
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("tied", [True, False])
def test_the_way_back_gives_every_bit(tmp_path, tied):
    folder = save_base(tmp_path / "base", tied=tied)
    half = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    written = write_gguf(folder, tmp_path / "a.gguf", "F16", ABOUT)
    assert written["tensor_types"] == {"F16": 15 if tied else 16, "F32": 5}  # norms are F32
    (tmp_path / "back").mkdir()
    read.convert(tmp_path / "a.gguf", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert {n: t.float().numpy().tobytes() for n, t in back.items()} == {
        n: t.float().numpy().tobytes() for n, t in half.items()
    }


@pytest.mark.parametrize("damage", ["the same numbers", "no whole alignment", "a larger type"])
def test_tensors_that_do_not_follow_each_other_are_no_base(tmp_path, tiny_base, damage):
    """llama.cpp refuses such a file too: where one begins within another, two have the same numbers."""
    write_gguf(tiny_base, tmp_path / "a.gguf", "F16", ABOUT)
    content, name = bytearray((tmp_path / "a.gguf").read_bytes()), b"blk.0.ffn_down.weight"
    kind = content.index(name) + len(name) + 4 + 2 * 8  # after its name: dimensions, type, offset (ggml's docs/gguf.md)
    offset = int.from_bytes(content[kind + 4 : kind + 12], "little")
    if damage == "a larger type":
        content[kind : kind + 4] = gguf.GGMLQuantizationType.F32.to_bytes(4, "little")
    else:
        wrong = 0 if damage == "the same numbers" else offset + 1
        content[kind + 4 : kind + 12] = wrong.to_bytes(8, "little")
    (tmp_path / "a.gguf").write_bytes(content)
    (tmp_path / "back").mkdir()
    with pytest.raises(BaseError, match=r"a\.gguf is no whole GGUF file: \S+ begins at byte \d+, not \d+"):
        read.convert(tmp_path / "a.gguf", tmp_path / "back")


def test_blocks_and_expected_size_change_nothing(tmp_path, tiny_base, monkeypatch):
    write_gguf(tiny_base, tmp_path / "a.gguf", "F16", ABOUT)
    monkeypatch.setattr(ours, "BLOCK_NUMBERS", 64 * 3)  # three rows, and less than a head
    write_gguf(tiny_base, tmp_path / "b.gguf", "F16", ABOUT)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert abs(expected_bytes(tiny_base, "F16") - (tmp_path / "a.gguf").stat().st_size) < 50_000


KINDS = {
    "UINT8": 200, "INT8": -3, "UINT16": 60_000, "INT16": -300, "UINT32": 4_000_000_000, "INT32": -70_000,
    "UINT64": 2**63, "INT64": -(2**40), "FLOAT32": 0.5, "FLOAT64": 0.1, "BOOL": True, "STRING": "größer",
}  # fmt: skip


@pytest.fixture
def every_kind(tmp_path):
    """A file whose metadata has a value of every kind, and arrays between them."""
    path, types = tmp_path / "kinds.gguf", gguf.GGUFValueType
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in KINDS.items():
        writer.add_key_value(f"one.{name}", value, types[name])
        writer.add_key_value(f"many.{name}", [value] * 3, types.ARRAY, types[name])
    writer.add_array("nested", [["a", "bc"], ["def"]])
    writer.add_uint32("last", 7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_single_values_are_read_as_the_gguf_package_reads_them(tmp_path, tiny_base, every_kind):
    write_gguf(tiny_base, tmp_path / "a.gguf", "F16", ABOUT)
    singles = {k: v for k, v in fields_of(tmp_path / "a.gguf").items() if not isinstance(v, list)}
    assert read_singles(tmp_path / "a.gguf") == {k: v for k, v in singles.items() if not k.startswith("GGUF.")}
    wanted = {f"one.{name}": value for name, value in KINDS.items()}
    assert read_singles(every_kind) == {"general.architecture": "llama", **wanted, "last": 7}


def test_metadata_that_are_cut_or_spoilt_are_refused_by_name(every_kind):
    whole, start = every_kind.read_bytes(), 24
    for end in range(len(whole)):
        every_kind.write_bytes(whole[:end])
        with pytest.raises(BaseError, match=r"kinds\.gguf is no whole GGUF file"):
            read_singles(every_kind)
    for place in range(start, len(whole) - 8):
        every_kind.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
        try:
            read_singles(every_kind)
        except BaseError as error:
            assert "kinds.gguf is no whole GGUF file" in error.what


def test_metadata_says_what_the_file_is(tmp_path, tiny_base):
    write_gguf(tiny_base, tmp_path / "a.gguf", "F16", ABOUT)
    found = fields_of(tmp_path / "a.gguf")
    assert (found["general.name"], found["general.base_model.0.name"]) == ("tiny", "a/base")
    assert (found["general.license"], found["general.size_label"]) == ("apache-2.0", "107K")
    assert (found["general.sampling.temp"], found["general.sampling.top_p"]) == (0.25, 0.5)
    assert found["tokenizer.chat_template"] == (tiny_base / "chat_template.jinja").read_text()
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert "general.dataset.count" not in found
    named = About("b", "b", None, ChatConfig(), template="{{ 'other' }}", data=("org/rows", "own.jsonl"))
    write_gguf(tiny_base, tmp_path / "b.gguf", "F16", named)
    assert ("Data", "org/rows, own.jsonl") in model_facts(tmp_path / "b.gguf")
    assert fields_of(tmp_path / "b.gguf")["general.dataset.count"] == 2
    assert fields_of(tmp_path / "b.gguf")["tokenizer.chat_template"] == "{{ 'other' }}"


def test_builtin_metadata_equal_the_file_that_llama_cpps_converter_made(tmp_path, builtin_base):
    """The builtin base came as a GGUF of llama.cpp's converter: through our folder and back, its metadata return."""
    write_gguf(builtin_base.folder, tmp_path / "a.gguf", "F16", ABOUT)
    found = fields_of(tmp_path / "a.gguf")
    theirs = fields_of(builtin.fetch_builtin(builtin_base.name, cache_folder() / "builtin"))
    unused = ("tokenizer.ggml.add_space_prefix", "tokenizer.ggml.unknown_token_id")  # by a byte-level tokenizer
    same = [name for name in theirs if name.startswith(("llama.", "tokenizer.")) and name not in unused]
    assert len(same) > 15
    assert [name for name in same if found[name] != theirs[name]] == []


@pytest.mark.parametrize(
    "config", [{"rope_parameters": LLAMA3, "attention_bias": True}, {"tied": False, "head_dim": 32, "mlp_bias": True}]
)
def test_llama_cpp_computes_what_transformers_does(tmp_path, config):
    folder = save_base(tmp_path / "base", initializer_range=0.2, **config)
    held = load_file(folder / "model.safetensors")
    biases = [name for name in held if name.endswith(".bias")]  # which transformers begins with zeros
    assert len(biases) == (8 if "attention_bias" in config else 6)
    generator = torch.Generator().manual_seed(1)
    held |= {name: torch.randn(held[name].shape, generator=generator) for name in biases}
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    write_gguf(folder, tmp_path / "a.gguf", "F16", ABOUT)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(3, 512, (150,), generator=torch.Generator().manual_seed(0))  # past LLAMA3's 64 positions
    with torch.no_grad():
        expected_V = model(ids[None]).logits[0, -1].log_softmax(0)
    with Engine(tmp_path / "a.gguf", threads=2, context=200) as engine:
        found_V = torch.from_numpy(engine.next_token_logprobs(ids.tolist()))
    assert float((expected_V.exp() * (expected_V - found_V)).sum()) < 1e-4


def test_llama3_factors_equal_transformers(tmp_path):
    folder = save_base(tmp_path / "base", rope_parameters=LLAMA3, head_dim=64)
    write_gguf(folder, tmp_path / "a.gguf", "F16", ABOUT)
    factors = gguf.GGUFReader(tmp_path / "a.gguf").tensors[0]
    assert (factors.name, factors.tensor_type.name) == ("rope_freqs.weight", "F32")
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(folder), torch.device("cpu"))
    plain = 1 / 10000.0 ** (np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / factors.data, scaled.numpy(), rtol=1e-5)


def test_what_cannot_be_exported_is_refused_by_name(tmp_path):
    folder = save_base(tmp_path / "base")
    config = (folder / "config.json").read_text()
    for changes, named in (
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM.*LlamaForCausalLM"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ({"vocab_size": 500}, "more tokens than vocab_size 500"),
    ):
        edit(folder / "config.json", **changes)
        with pytest.raises(BaseError, match=f"(?s){named}"):
            write_gguf(folder, tmp_path / "a.gguf", "F16", ABOUT)
        (folder / "config.json").write_text(config)
    edit(folder / "tokenizer.json", pre_tokenizer={"type": "Metaspace", "replacement": "_"})
    with pytest.raises(BaseError, match=r"(?s)Metaspace.*smollm, gpt-2, llama-bpe"):
        write_gguf(folder, tmp_path / "a.gguf", "F16", ABOUT)


def test_a_weight_out_of_range_is_named(tmp_path):
    folder = save_base(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][5, 5] = 1e6
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseError, match=r"(?s)1000000.*blk\.1\.ffn_up\.weight"):
        write_gguf(folder, tmp_path / "a.gguf", "F16", ABOUT)
