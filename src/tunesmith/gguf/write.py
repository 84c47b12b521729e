"""A Hugging Face folder as a GGUF file, as llama.cpp's own converter and quantiser write it; needs no torch.

Tensors go through in blocks of rows, so that memory holds a few blocks, never the model. Layout: ggml's docs/gguf.md;
names, permutation and metadata: llama.cpp's conversion/llama.py and conversion/base.py.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tunesmith.console import progress
from tunesmith.errors import BaseError
from tunesmith.gguf.config import llama3_factors
from tunesmith.gguf.families import UNUSED, read_config
from tunesmith.gguf.pretokenizers import need_room, pre_tokenizer, read_tokenizer
from tunesmith.gguf.quantise import DEFAULT, quantise_rows, tensor_bytes, tensor_types, to_single
from tunesmith.recipe import ChatConfig, GgufType
from tunesmith.weights.small_files import chat_template
from tunesmith.weights.tensorfile import TensorInfo, read_index, read_rows, to_f32

BLOCK_NUMBERS = 1 << 20  # numbers read, converted and written at once by one thread: 4 MB as fp32
Importance = Mapping[str, NDArray[np.float32]]
"""Mean square of each linear layer's inputs [C], by the layer's name in transformers (model/importance.py)."""
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class About:
    """What a GGUF file says of itself beside its architecture."""

    name: str
    base: str
    licence: str | None
    chat: ChatConfig
    template: str | None = None  # None takes the folder's own
    end_of_turn: int | None = None  # the token that ends an answer, where the template has been asked


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: its type, where its numbers come from, and how its rows are ordered."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    source: TensorInfo | NDArray[np.float32]
    head_rows: int  # of a head whose two halves llama.cpp's rotary wants interleaved; 0: rows stay as they are
    importance_C: NDArray[np.float32] | None = None  # of its columns, where that is known


def write_gguf(
    folder: Path, out: Path, gguf_type: GgufType, about: About, importance: Importance | None = None
) -> dict[str, Any]:
    """Write the model in `folder` to `out`; returns bytes, types, and tensors whose rows fit no block.

    `importance`: what the quantiser weighs errors with. Raises BaseError for an architecture, rotary scaling or
    tokenizer that is not supported, by name.
    """
    config = read_config(folder)
    tensors = plan_tensors(folder, config, gguf_type, importance)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[config["family"].arch])
    for tensor in tensors:
        size = tensor_bytes(tensor.shape, tensor.kind)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=tensor.kind)
    _add_metadata(writer, config, gguf_type, about)
    _add_tokenizer(writer, folder, config, about)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    append_data(out, tensors)
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
    names = gguf.get_tensor_name_map(config["family"].arch, config["num_hidden_layers"])
    sources: dict[str, tuple[TensorInfo | NDArray[np.float32], int]] = {}
    if config["rope"]["rope_type"] == "llama3":
        sources["rope_freqs.weight"] = (llama3_factors(config["rope"], config["head_dim"]), 0)
    for source, info in read_index(folder).items():
        if source.endswith(UNUSED):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise BaseError(f"tensor {source} has no place in a GGUF file", fix="use an unchanged model")
        sources[name] = (info, head_rows(source, config))
    shapes = {name: source.shape for name, (source, _) in sources.items()}
    grouped = config["num_key_value_heads"] != config["num_attention_heads"]
    types = tensor_types(
        shapes, gguf_type, layers=config["num_hidden_layers"], grouped=grouped, weighted=importance is not None
    )
    weights = {names.get_name(f"{layer}.weight", (".weight",)): each_C for layer, each_C in (importance or {}).items()}
    return [Tensor(name, shapes[name], types[name], *sources[name], weights.get(name)) for name in sources]


def head_rows(source: str, config: dict[str, Any]) -> int:
    """Rows of a head of a weight (by transformers' name) that llama.cpp's rotary wants interleaved; else 0."""
    return config["head_dim"] if any(part in source for part in config["family"].rotated) else 0


def append_data(out: Path, tensors: list[Tensor]) -> None:
    """Write the numbers of tensors, in order, behind what the file has of them."""
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
    if tensor.head_rows:  # rotate-half pairs row i with i + d/2; llama.cpp wants a pair in neighbouring rows
        halves = numbers.reshape(-1, 2, tensor.head_rows // 2, *numbers.shape[1:])
        numbers = halves.swapaxes(1, 2).reshape(numbers.shape)
    where = f"{tensor.name}, rows from {rows.start}"
    return np.ascontiguousarray(quantise_rows(numbers, tensor.kind, where, tensor.importance_C))


def _add_metadata(writer: gguf.GGUFWriter, config: dict[str, Any], gguf_type: GgufType, about: About) -> None:
    writer.add_type("model")
    writer.add_name(about.name)
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    writer.add_license(about.licence or "")  # an empty text is left out
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about.base)
    writer.add_sampling_temp(about.chat.temperature)
    writer.add_sampling_top_p(about.chat.top_p)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{gguf_type}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    for add in (writer.add_rope_dimension_count, writer.add_key_length, writer.add_value_length):
        add(config["head_dim"])


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], about: About) -> None:
    tokenizer, vocab_size = read_tokenizer(folder), config["vocab_size"]
    need_room(tokenizer, vocab_size, folder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    tokens, kinds = zip(*_tokens(tokenizer, vocab_size), strict=True)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    ids = {name: config.get(f"{name}_token_id") for name in SPECIAL}
    there = [name for name, id_ in ids.items() if not isinstance(id_, int) or id_ >= 0]  # -1: some mean none by it
    special = gguf.SpecialVocab(folder, load_merges=True, special_token_types=there, n_vocab=vocab_size)
    special.add_special_token.setdefault("bos", False)  # llama.cpp's own default depends on the pre-tokenizer
    special.chat_template = about.template or chat_template(folder)
    if about.end_of_turn is not None:
        eos = special.special_token_ids.setdefault("eos", about.end_of_turn)  # else llama.cpp takes token 11
        if eos != about.end_of_turn:
            writer.add_eot_token_id(about.end_of_turn)  # llama.cpp stops at this one too
    special.add_to_gguf(writer)


def _tokens(tokenizer: dict[str, Any], vocab_size: int) -> Iterator[tuple[str, int]]:
    """Text and type of every id. Special ones are control tokens, and those that look it, as the converter decides."""
    ids = {id_: token for token, id_ in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    for id_ in range(vocab_size):
        if id_ in added:
            text = added[id_]["content"]
            control = added[id_]["special"] or (text.startswith("<|") and text.endswith("|>"))
            yield text, gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
        elif id_ in ids:
            yield ids[id_], gguf.TokenType.NORMAL
        else:
            yield f"[PAD{id_}]", gguf.TokenType.UNUSED
