"""Types and bytes of quantised files, against llama.cpp's own llama_model_quantize."""

import ctypes

import gguf
import numpy as np
import pytest
from llama_quantize import quantize
from tiny import save_base

from tunesmith.errors import BaseError, ResourceError
from tunesmith.gguf import quantise
from tunesmith.gguf.quantise import quantise_rows, tensor_types
from tunesmith.gguf.write import About, write_gguf
from tunesmith.recipe import ChatConfig

ABOUT = About("tiny", "tiny", "apache-2.0", ChatConfig())
SHAPES = {  # name -> what save_base is given; rows that are a multiple of 256, of 64 and (ffn_down) of 16 numbers
    "rows of 256, tied": {"width": 256},
    "rows of 256, untied": {"width": 256, "tied": False},
    "rows of 64, tied": {"width": 64},
    "rows of 64, untied": {"width": 64, "tied": False},
    "rows of 576, as the builtin's": {"width": 576, "head_dim": 64, "intermediate_size": 1536},
    "every rule for layers": {"width": 256, "intermediate_size": 256, "layers": 17},
    "no grouped heads": {"width": 256, "num_key_value_heads": 4},
    "rows of 80": {"width": 64, "intermediate_size": 80},
}


def contents(path):
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in reader.tensors}
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("gguf_type", ["Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("shape", SHAPES)
def test_types_bytes_and_metadata_are_llama_cpps(tmp_path, shape, gguf_type):
    folder = save_base(tmp_path / "base", **SHAPES[shape])
    write_gguf(folder, tmp_path / "F16.gguf", "F16", ABOUT)
    assert quantize(tmp_path / "F16.gguf", tmp_path / "theirs.gguf", gguf_type)
    written = write_gguf(folder, tmp_path / "ours.gguf", gguf_type, ABOUT)
    (ours, our_fields), (theirs, their_fields) = contents(tmp_path / "ours.gguf"), contents(tmp_path / "theirs.gguf")
    assert {name: kind for name, (kind, _) in ours.items()} == {name: kind for name, (kind, _) in theirs.items()}
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    assert our_fields == their_fields
    assert sum(written["tensor_types"].values()) == len(theirs)
    fits = {"Q8_0": shape != "rows of 80", "Q4_K_M": SHAPES[shape]["width"] % 256 == 0}
    assert (written["fallbacks"] == 0) == fits[gguf_type]


def test_seventy_billion_parameters_get_more_bits_in_attn_v():
    names = {f"blk.{layer}.attn_v.weight": (1024, 8192) for layer in range(80)}
    grouped = tensor_types(names, "Q4_K_M", layers=80, grouped=True)
    assert {kind.name for kind in grouped.values()} == {"Q6_K", "Q5_K"}
    assert "Q4_K" in {kind.name for kind in tensor_types(names, "Q4_K_M", layers=80, grouped=False).values()}


@pytest.mark.parametrize("value", [65520.0, -1e9, np.nan, np.inf])
def test_numbers_that_f16_cannot_hold_are_refused(value):
    rows = np.ones((2, 256), np.float32)
    rows[1, 3] = value
    with pytest.raises(BaseError, match=r"(?s)F16 ends at 65504.*blk\.0"):
        quantise_rows(rows, gguf.GGMLQuantizationType.Q4_K, "blk.0")


def test_a_library_without_the_symbol_names_the_way_out(monkeypatch):
    monkeypatch.setattr(quantise, "LIBRARIES", (("xllamacpp", "*.nothing"), ("no_such_package", "*")))
    with pytest.raises(ResourceError, match="pip install libggml-python"):
        quantise._quantize_chunk.__wrapped__()


def test_the_library_is_xllamacpps():
    assert isinstance(quantise._quantize_chunk(), ctypes._CFuncPtr)
