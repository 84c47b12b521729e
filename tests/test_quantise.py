"""Types and bytes of quantised files, against llama.cpp's own llama_model_quantize."""

import ctypes

import gguf
import numpy as np
import pytest
from gguf_reader import reader_of
from llama_quantize import quantize
from safetensors.torch import load_file, save_file
from tiny import save_base

from tunesmith.errors import BaseError, ResourceError
from tunesmith.gguf import quantise
from tunesmith.gguf.families import read_config
from tunesmith.gguf.quantise import quantise_rows, tensor_types
from tunesmith.gguf.write import About, write_gguf
from tunesmith.recipe import ChatConfig
from tunesmith.weights.tensorfile import from_f32, read_index, to_f32

ABOUT = About("tiny", "tiny", "apache-2.0", ChatConfig())
DEEP = "every rule for layers"
SHAPES = {  # name -> what save_base is given; rows that are a multiple of 256, of 64 and (ffn_down) of 16 numbers
    "rows of 256, tied": {"width": 256},
    "rows of 256, untied": {"width": 256, "tied": False},
    "rows of 64, tied": {"width": 64},
    "rows of 64, untied": {"width": 64, "tied": False},
    "rows of 576, as the builtin's": {"width": 576, "head_dim": 64, "intermediate_size": 1536},
    DEEP: {"width": 256, "intermediate_size": 256, "layers": 17},
    "no grouped heads": {"width": 256, "num_key_value_heads": 4},
    "rows of 80": {"width": 64, "intermediate_size": 80},
}


TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M")
K_QUANTS = {"Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M"}


def contents(path):
    reader = reader_of(path)
    tensors = {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


def drawn_importance(folder):
    """(Mean squares by layer, and by the tensor's name in a GGUF): of layers, with some dead columns."""
    config, draw = read_config(folder), np.random.default_rng(3)
    names = gguf.get_tensor_name_map(config["family"].arch, config["num_hidden_layers"])
    by_layer = {}
    for source, info in read_index(folder).items():
        if ".layers." in source and len(info.shape) == 2:
            each_C = draw.exponential(size=info.shape[1]).astype(np.float32) ** 3
            each_C[:: 1 + info.shape[1] // 7] = 0
            by_layer[source.removesuffix(".weight")] = each_C
    return by_layer, {names.get_name(f"{layer}.weight", (".weight",)): each for layer, each in by_layer.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_types_bytes_and_metadata_are_llama_cpps(tmp_path, shape):
    folder = save_base(tmp_path / "base", **SHAPES[shape])
    write_gguf(folder, tmp_path / "F16.gguf", "F16", ABOUT)
    by_layer, by_name = drawn_importance(folder)
    np.savez(tmp_path / "importance.npz", **by_name)
    cases = [(kind, False) for kind in TYPES]
    cases += [(kind, True) for kind in TYPES if shape != DEEP or kind == "Q4_0"]  # the rule for layers is Q4_0's alone
    jobs = [(tmp_path / f"{kind}{weighted}.gguf", kind, tmp_path / "importance.npz" if weighted else "")
            for kind, weighted in cases]  # fmt: skip
    assert quantize(tmp_path / "F16.gguf", *jobs)
    found = {}
    for (kind, weighted), (path, *_) in zip(cases, jobs, strict=True):
        written = write_gguf(folder, tmp_path / "ours.gguf", kind, ABOUT, by_layer if weighted else None)
        (ours, our_fields), (theirs, their_fields) = contents(tmp_path / "ours.gguf"), contents(path)
        types, their_types = ({name: found for name, (found, _) in each.items()} for each in (ours, theirs))
        assert types == their_types, (kind, weighted)
        assert [name for name in theirs if ours[name] != theirs[name]] == [], (kind, weighted)
        assert our_fields == their_fields
        assert sum(written["tensor_types"].values()) == len(theirs)
        whole = SHAPES[shape]["width"] % 256 == 0 if kind in K_QUANTS else shape != "rows of 80"
        assert (written["fallbacks"] == 0) == whole
        found[kind, weighted] = theirs
    differ = {kind for kind, weighted in cases if weighted and found[kind, False] != found[kind, True]}
    same = {"Q8_0"} if shape == DEEP or SHAPES[shape]["width"] >= 256 else {"Q8_0", "Q6_K"}  # which falls back to Q8_0
    assert differ == {kind for kind, weighted in cases if weighted} - same


def test_bf16_is_llama_cpps_and_comes_from_the_numbers_themselves(tmp_path):
    folder = save_base(tmp_path / "base", width=64)
    weights = load_file(folder / "model.safetensors")
    save_file({name: (w * 256).round() / 256 for name, w in weights.items()}, folder / "model.safetensors")
    write_gguf(folder, tmp_path / "F16.gguf", "F16", ABOUT)  # loses nothing of these numbers, and nor does BF16
    assert quantize(tmp_path / "F16.gguf", (tmp_path / "theirs.gguf", "BF16", ""))
    write_gguf(folder, tmp_path / "ours.gguf", "BF16", ABOUT)
    assert contents(tmp_path / "ours.gguf") == contents(tmp_path / "theirs.gguf")
    small = np.array([[3e-6, -1e-7, 65000.0, 1 / 3]], np.float32)  # below F16's smallest steps, and near its end
    stored = quantise_rows(small, gguf.GGMLQuantizationType.BF16, "")
    assert stored.view(np.uint16).tolist() == from_f32(small, "BF16").tolist()
    assert abs(float(to_f32(stored, "BF16")[0, 1]) + 1e-7) < 1e-9


def test_seventy_billion_parameters_get_more_bits_in_attn_v():
    names = {f"blk.{layer}.attn_v.weight": (1024, 8192) for layer in range(80)}
    for gguf_type, more, fewer in (("Q4_K_M", "Q6_K", "Q4_K"), ("Q3_K_M", "Q5_K", "Q4_K")):
        grouped = tensor_types(names, gguf_type, layers=80, grouped=True)
        assert {kind.name for kind in grouped.values()} == {more, "Q5_K"}
        assert fewer in {kind.name for kind in tensor_types(names, gguf_type, layers=80, grouped=False).values()}


def test_fused_attention_gets_what_values_get():
    names = {f"blk.{layer}.attn_qkv.weight": (768, 256) for layer in range(16)}
    values = {name.replace("qkv", "v"): shape for name, shape in names.items()}
    for gguf_type in TYPES:
        fused, own = (tensor_types(each, gguf_type, layers=16, grouped=True) for each in (names, values))
        assert list(fused.values()) == list(own.values())


@pytest.mark.parametrize("value", [65520.0, -1e9, np.nan, np.inf])
def test_numbers_that_f16_cannot_hold_are_refused(value):
    rows = np.ones((2, 256), np.float32)
    rows[1, 3] = value
    with pytest.raises(BaseError, match=r"(?s)F16 ends at 65504.*blk\.0"):
        quantise_rows(rows, gguf.GGMLQuantizationType.Q4_K, "blk.0")


def test_a_library_without_the_symbol_names_the_way_out(monkeypatch):
    monkeypatch.setattr(quantise, "LIBRARIES", (("xllamacpp", "*.nothing"), ("no_such_package", "*")))
    monkeypatch.setattr(quantise, "_function", quantise._function.__wrapped__)
    assert quantise.to_half(np.ones((1, 2), np.float32)).tolist() == [[1, 1]]
    with pytest.raises(ResourceError, match="pip install libggml-python"):
        quantise._quantize_chunk.__wrapped__()


def test_the_library_is_xllamacpps():
    assert isinstance(quantise._quantize_chunk(), ctypes._CFuncPtr)


def test_halves_are_numpys():
    draw = np.random.default_rng(0)
    scales = 10.0 ** draw.uniform(-9, 4.8, 4096)  # below F16's smallest step to near its end
    numbers = np.concatenate([draw.uniform(-1, 1, 4096) * scales, [0.0, -0.0, 1 + 2**-11, 1 + 3 * 2**-11, 2**-25]])
    numbers = numbers.astype(np.float32).reshape(1, -1)
    half = quantise.to_half(numbers)
    assert half.tobytes() == numbers.astype(np.float16).tobytes()
    assert quantise.to_single(half[:, ::2]).tobytes() == half[:, ::2].astype(np.float32).tobytes()
