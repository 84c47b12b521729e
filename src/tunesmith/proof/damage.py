"""Where an F16 file is not the merged model, tensor by tensor: small faults too, that probabilities hardly show.

Tensors are compared as numbers, in the order that llama.cpp's rotary wants: written anew here, from the definition, and
not with the code that wrote the file.

Shapes: O and I output and input width of a layer.
"""

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from tunesmith.errors import ProofError
from tunesmith.gguf.config import metadata
from tunesmith.gguf.families import UNUSED, read_config
from tunesmith.gguf.metadata import Head, StoredTensor, read_head
from tunesmith.gguf.rope import rope_tables
from tunesmith.gguf.shapes import gguf_name, head_rows
from tunesmith.model.adapter import load_adapter
from tunesmith.weights.peft_files import CONFIG, PREFIX, WEIGHTS, A, B
from tunesmith.weights.tensorfile import TensorInfo, read_header, read_index, read_rows, to_f32

TYPES: dict[int, str] = {Type.F16: "<f2", Type.F32: "<f4"}
UNDAMAGED = "each of its tensors is the model's, so look at how llama.cpp computes this family, and at its metadata"
PIECE_NUMBERS = 4 << 20  # that are looked at together: 16 MB
NAMED = 3  # tensors that an error names; of the others the number
ALIKE = 1e-2  # relative difference below which two updates are the same one, rounded
Rows = NDArray[Any]


def check_names(model: Path, file: Path) -> int:
    """Raise ProofError for a tensor of the model that a file does not have: llama.cpp may go on without it, as without
    a bias, a norm of queries or factors of the rotary frequencies. Returns how many were looked for.
    """
    wanted, head = _names(model), read_head(file)
    if missing := [f"{name} ({source})" for name, source in wanted.items() if name not in head.tensors]:
        what = f"{file.name} is not the merged model: it lacks {_some(missing)}"
        raise ProofError(what, fix="delete gguf/ and run again; if it fails again, report the base", where=str(file))
    return len(wanted)


def find_damage(model: Path, adapter: Path, file: Path) -> str:
    """What is not as it should be in an F16 file of a merged model, in words; empty where all is. Reads both whole."""
    config, infos, head = read_config(model), read_index(model), read_head(file)
    updates, scale = load_adapter(adapter) if (adapter / CONFIG).exists() else ({}, 0.0)
    found: dict[str, list[str]] = {}
    tables = rope_tables(config["rope"])
    for name, source in _names(model).items():
        stored, odd, detail = head.tensors.get(name), "", ""
        if stored is None or stored.kind not in TYPES:
            odd = "missing, or of another type than F16 and F32"
        elif name in tables:
            odd = "" if np.array_equal(_stored_rows(stored, file), tables[name]) else "not the model's"
        else:
            offset = config["family"].norm_offset if source.endswith("norm.weight") else 0.0
            rows = head_rows(source, config)
            if not _is_equal(infos[source], stored, file, rows, offset):
                update = updates.get(source.removesuffix(".weight"))
                delta = None if update is None else (scale * (update[1].float() @ update[0].float())).numpy()
                odd, detail = _oddness(infos[source], stored, file, rows, offset, delta)
        if odd:
            found.setdefault(odd, []).append(f"{name}{detail}")
    said = [f"{odd}: {_some(names)}" for odd, names in found.items()] + _odd_numbers(config, head)
    return "; ".join(said)


def find_odd_numbers(model: Path, file: Path) -> str:
    """What of a file's metadata is not what config.json says, in words; empty where all is."""
    return "; ".join(_odd_numbers(read_config(model), read_head(file)))


def find_adapter_damage(base: Path, adapter: Path, file: Path) -> str:
    """What is not as it should be in the GGUF file of an adapter, in words; empty where all is."""
    config, head = read_config(base), read_head(file)
    alpha = float(json.loads((adapter / CONFIG).read_text())["lora_alpha"])
    stated, wrong = float(head.singles.get(gguf.Keys.Adapter.LORA_ALPHA, 0.0)), list[str]()
    if stated != float(np.float32(alpha)):
        return f"its {gguf.Keys.Adapter.LORA_ALPHA} is {stated:g}, and the adapter's is {alpha:g}"
    for source, info in read_header(adapter / WEIGHTS).items():
        end, part = (A, ".lora_a") if source.endswith(A) else (B, ".lora_b")
        layer = f"{source.removeprefix(PREFIX).removesuffix(end)}.weight"
        name = f"{gguf_name(layer, config['family'], config['num_hidden_layers'])}{part}"
        stored = head.tensors.get(name)
        if stored is None or stored.shape != info.shape or stored.kind not in TYPES:
            wrong.append(name)
            continue
        ours, theirs = (np.concatenate(parts) for parts in zip(*_pairs(info, stored, file, 0.0), strict=True))
        if end == B and (rows := head_rows(layer, config)):
            theirs = _reordered(theirs, rows, rows // 2)
        if not np.array_equal(ours, theirs):
            wrong.append(name)
    return f"not the adapter's: {_some(wrong)}" if wrong else ""


def _names(model: Path) -> dict[str, str]:
    """The tensors that a file must have: llama.cpp's name -> where it comes from."""
    config, found = read_config(model), {}
    for source in read_index(model):
        known = not source.endswith(UNUSED)
        name = gguf_name(source, config["family"], config["num_hidden_layers"]) if known else None
        if name and not (name == "output.weight" and config["tie_word_embeddings"]):
            found[name] = source
    for name in rope_tables(config["rope"]):
        found[name] = f"the factors of the rotary scaling {config['rope']['rope_type']}"
    return found


def _oddness(
    info: TensorInfo, stored: StoredTensor, file: Path, rows_of_head: int, offset: float, delta: Rows | None
) -> tuple[str, str]:
    """What is wrong with one tensor, and by how much; empty where nothing is. `offset`: what its numbers stand for
    beyond their value; `delta`: what the adapter added to it.
    """
    if stored.shape != info.shape:
        return "other shapes", f" (has {list(stored.shape)}, and the model {list(info.shape)})"
    if not rows_of_head and delta is None:  # such as the embedding: a piece of it at a time
        pairs = _pairs(info, stored, file, offset)
        sums = [(np.square(theirs - ours).sum(), np.square(ours).sum()) for ours, theirs in pairs]
        return _how_far(*(float(sum(column)) ** 0.5 for column in zip(*sums, strict=True)))
    ours, theirs = (np.concatenate(parts) for parts in zip(*_pairs(info, stored, file, offset), strict=True))
    if rows_of_head:
        if np.array_equal(theirs, ours) and not np.array_equal(theirs, _reordered(ours, rows_of_head, 2)):
            return "rows in the order of transformers, where the two halves of each head must be interleaved", ""
        theirs = _reordered(theirs, rows_of_head, rows_of_head // 2)
    for times, odd in ((1, "the adapter's update is there twice"), (-1, "the adapter's update is missing")):
        if delta is not None and np.linalg.norm(theirs - ours - times * delta) < ALIKE * np.linalg.norm(delta):
            return odd, ""
    return _how_far(float(np.linalg.norm(theirs - ours)), float(np.linalg.norm(ours)))


def _is_equal(info: TensorInfo, stored: StoredTensor, file: Path, rows_of_head: int, offset: float) -> bool:
    """Whether one tensor is the model's, a piece of it at a time."""
    if stored.shape != info.shape:
        return False
    pairs = _pairs(info, stored, file, offset, rows_of_head or 1)
    if not rows_of_head:
        return all(np.array_equal(ours, theirs) for ours, theirs in pairs)
    return all(np.array_equal(ours, _reordered(theirs, rows_of_head, rows_of_head // 2)) for ours, theirs in pairs)


def _stored_rows(stored: StoredTensor, file: Path) -> Rows:
    return np.memmap(file, np.dtype(TYPES[stored.kind]), "r", stored.offset, stored.shape)


def _pairs(
    info: TensorInfo, stored: StoredTensor, file: Path, offset: float, together: int = 1
) -> Iterator[tuple[Rows, Rows]]:
    """Some rows of the model's tensor, rounded as the file's type is, and the file's; `together` stay in one piece."""
    kind, theirs = np.dtype(TYPES[stored.kind]), _stored_rows(stored, file)
    step = max(1, PIECE_NUMBERS // max(1, prod(info.shape[1:])) // together) * together
    rows = info.shape[0] if info.shape else 1
    for start, stop in ((first, min(first + step, rows)) for first in range(0, rows, step)):
        ours = (to_f32(read_rows(info, start, stop), info.dtype) + np.float32(offset)).astype(kind)
        yield ours.astype(np.float32), np.asarray(theirs[start:stop], np.float32)


def _reordered(rows: Rows, head_rows: int, parts: int) -> Rows:
    """Each head's rows, cut into parts, one of each part after another.

    From halves: rows 0, d/2, 1, d/2 + 1, ..., the neighbours that llama.cpp turns; in parts of two that is undone.
    """
    heads = rows.reshape(-1, parts, head_rows // parts, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def _how_far(apart: float, size: float) -> tuple[str, str]:
    return ("not the model's", f" (relative difference {apart / max(size, 1e-30):.2g})") if apart else ("", "")


def _odd_numbers(config: dict[str, Any], head: Head) -> list[str]:
    """Metadata that are not what config.json says."""
    arch, found = gguf.MODEL_ARCH_NAMES[config["family"].arch], []
    for key, value in metadata(config).items():
        stated = head.singles.get(f"{arch}.{key}")
        if stated is None:
            found.append(f"{arch}.{key} is missing, and is to be {value}")
        elif stated != value and not (isinstance(value, float) and np.isclose(float(stated), value, rtol=1e-5)):
            found.append(f"{arch}.{key} is {_short(stated)}, and config.json has {_short(value)}")
    return found


def _short(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
