"""A Hugging Face folder as a GGUF file, as llama.cpp's own converter and quantiser write it; needs no torch.

Tensors go through in blocks of rows, so that memory holds a few blocks, never the model. Layout: ggml's docs/gguf.md;
names, permutation and metadata: llama.cpp's conversion/llama.py and conversion/base.py.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tunesmith.console import progress
from tunesmith.errors import BaseError
from tunesmith.gguf.config import metadata
from tunesmith.gguf.families import UNUSED, read_config
from tunesmith.gguf.pretokenizers import read_tokenizer
from tunesmith.gguf.quantise import DEFAULT, quantise_rows, tensor_bytes, tensor_types, to_single
from tunesmith.gguf.rope import rope_tables
from tunesmith.gguf.sentencepiece import named_for
from tunesmith.gguf.shapes import gguf_name, head_rows
from tunesmith.gguf.vocabulary import add_tokenizer
from tunesmith.recipe import ChatConfig, GgufType
from tunesmith.weights.tensorfile import TensorInfo, read_index, read_rows, to_f32

VALUES = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}
BLOCK_NUMBERS = 1 << 20  # numbers read, converted and written at once by one thread: 4 MB as fp32
Importance = Mapping[str, NDArray[np.float32]]
"""Mean square of each linear layer's inputs [C], by the layer's name in transformers (model/importance.py)."""


@dataclass(frozen=True)
class About:
    """What a GGUF file says of itself beside its architecture."""

    name: str
    base: str
    licence: str | None
    chat: ChatConfig
    template: str | None = None  # None takes the folder's own
    end_of_turn: int | None = None  # the token that ends an answer, where the template has been asked
    data: Sequence[str] = ()  # names of the data sets it was trained on


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: its type, where its numbers come from, and how its rows are ordered."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    source: TensorInfo | NDArray[np.float32]
    head_rows: int = 0  # of a head whose two halves llama.cpp's rotary wants interleaved; 0: rows stay as they are
    offset: float = 0.0  # added to every number
    importance_C: NDArray[np.float32] | None = None  # of its columns, where that is known


def write_gguf(
    folder: Path, out: Path, gguf_type: GgufType, about: About, importance: Importance | None = None
) -> dict[str, Any]:
    """Write the model in `folder` to `out`; returns bytes, types, and tensors whose rows fit no block.

    `importance`: what the quantiser weighs errors with. Raises BaseError for an architecture, rotary scaling or
    tokenizer that is not supported, by name.
    """
    config, tokenizer = read_config(folder), read_tokenizer(folder)
    tensors = plan_tensors(folder, config, gguf_type, importance)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[config["family"].arch])
    list_tensors(writer, tensors)
    _add_metadata(writer, config, gguf_type, about, name=named_for(tokenizer, about.name))
    add_tokenizer(writer, folder, tokenizer, config, about.template, about.end_of_turn)
    write_out(writer, out, tensors)
    block = gguf.GGML_QUANT_SIZES[DEFAULT[gguf_type]][0]
    return {
        "bytes": out.stat().st_size,
        "tensor_types": dict(Counter(tensor.kind.name for tensor in tensors).most_common()),
        "fallbacks": sum(tensor.shape[-1] % block > 0 for tensor in tensors if len(tensor.shape) > 1),
    }


def expected_bytes(folder: Path, gguf_type: GgufType) -> int:
    """About how large the file will be, before it is written."""
    tensors = plan_tensors(folder, read_config(folder), gguf_type)
    return sum(tensor_bytes(t.shape, t.kind) for t in tensors) + (folder / "tokenizer.json").stat().st_size


def plan_tensors(
    folder: Path, config: dict[str, Any], gguf_type: GgufType, importance: Importance | None = None
) -> list[Tensor]:
    """The tensors of the file, in order."""
    layers, offset = config["num_hidden_layers"], config["family"].norm_offset
    sources: dict[str, Tensor] = {
        name: Tensor(name, table.shape, gguf.GGMLQuantizationType.F32, table)
        for name, table in rope_tables(config["rope"]).items()
    }
    for source, info in read_index(folder).items():
        if source.endswith(UNUSED):
            continue
        if (name := gguf_name(source, config["family"], layers)) is None:
            raise BaseError(f"tensor {source} has no place in a GGUF file", fix="use an unchanged model")
        added = offset if source.endswith("norm.weight") else 0.0
        kind = gguf.GGMLQuantizationType.F32
        weights_C = (importance or {}).get(source.removesuffix(".weight"))
        sources[name] = Tensor(name, info.shape, kind, info, head_rows(source, config), added, weights_C)
    shapes = {name: tensor.shape for name, tensor in sources.items()}
    grouped = config["num_key_value_heads"] != config["num_attention_heads"]
    types = tensor_types(shapes, gguf_type, layers=layers, grouped=grouped, weighted=importance is not None)
    return [replace(tensor, kind=types[name]) for name, tensor in sources.items()]


def list_tensors(writer: gguf.GGUFWriter, tensors: list[Tensor]) -> None:
    """Say which tensors the file will have."""
    for tensor in tensors:
        size = tensor_bytes(tensor.shape, tensor.kind)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=tensor.kind)


def write_out(writer: gguf.GGUFWriter, out: Path, tensors: list[Tensor]) -> None:
    """Write all that was said of the file, then the numbers of its tensors, in the order of `list_tensors`."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    _append_data(out, tensors)


def _append_data(out: Path, tensors: list[Tensor]) -> None:
    total, workers = sum(prod(tensor.shape) for tensor in tensors), os.cpu_count() or 1
    with out.open("ab") as file, ThreadPoolExecutor(workers) as pool, progress(f"writing {out.name}", total) as advance:
        for tensor in tensors:
            file.write(bytes(-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))
            step = max(1, BLOCK_NUMBERS // prod(tensor.shape[1:]))
            step = max(1, step // (tensor.head_rows or 1)) * (tensor.head_rows or 1)  # whole heads
            blocks = [slice(first, first + step) for first in range(0, tensor.shape[0], step)]
            for first in range(0, len(blocks), 2 * workers):  # no more than this is in memory
                for block in pool.map(partial(_encoded, tensor), blocks[first : first + 2 * workers]):
                    file.write(block.data)
            advance(prod(tensor.shape), "")
        file.write(bytes(-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))


def _encoded(tensor: Tensor, rows: slice) -> NDArray[Any]:
    source = tensor.source
    if isinstance(source, TensorInfo):
        stored = read_rows(source, rows.start, rows.stop)
        numbers = to_single(stored) if source.dtype == "F16" else to_f32(stored, source.dtype)
    else:
        numbers = source[rows]
    if tensor.offset:
        numbers = numbers + np.float32(tensor.offset)
    if tensor.head_rows:  # rotate-half pairs row i with i + d/2; llama.cpp wants a pair in neighbouring rows
        halves = numbers.reshape(-1, 2, tensor.head_rows // 2, *numbers.shape[1:])
        numbers = halves.swapaxes(1, 2).reshape(numbers.shape)
    where = f"{tensor.name}, rows from {rows.start}"
    return np.ascontiguousarray(quantise_rows(numbers, tensor.kind, where, tensor.importance_C))


def _add_metadata(
    writer: gguf.GGUFWriter, config: dict[str, Any], gguf_type: GgufType, about: About, *, name: str
) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    writer.add_license(about.licence or "")  # an empty text is left out
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about.base)
    if about.data:
        writer.add_dataset_count(len(about.data))
    for number, data in enumerate(about.data):
        writer.add_dataset_name(number, data)
    writer.add_sampling_temp(about.chat.temperature)
    writer.add_sampling_top_p(about.chat.top_p)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{gguf_type}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in metadata(config).items():
        writer.add_key_value(f"{gguf.MODEL_ARCH_NAMES[config['family'].arch]}.{key}", value, VALUES[type(value)])
