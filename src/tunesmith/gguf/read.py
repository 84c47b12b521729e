"""A GGUF file of a family in families.py, dequantised into a normal Hugging Face folder.

The way back from write.py and from llama.cpp's own converter: names, the order of rotated rows, the tokenizer.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tunesmith.errors import BaseError
from tunesmith.gguf.config import LAYERS_27B, checked, metadata
from tunesmith.gguf.families import FAMILIES
from tunesmith.gguf.family import Family
from tunesmith.gguf.rope import FREQUENCIES, LLAMA3_ROPE, LONG, ORIGINAL, SHORT, Table, llama3_factors
from tunesmith.gguf.shapes import gguf_name, head_rows, shapes
from tunesmith.gguf.source import Source
from tunesmith.gguf.unpacked_tokenizer import dump, write_tokenizer
from tunesmith.machine import need_disk
from tunesmith.weights.tensorfile import Array, TensorWriter

TABLES = (FREQUENCIES, LONG, SHORT)
CONFIG = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "max_position_embeddings": "context_length",
}  # fmt: skip
HARMLESS = {
    "context_length", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned",
    "rope.scaling.original_context_length", "expert_count", "expert_used_count", "tensor_data_layout",
}  # fmt: skip
"""What is looked at on its own, or changes nothing where no scaling and no expert is."""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BIASED = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}


def convert(path: Path, folder: Path) -> None:
    """Fill `folder` with the model and tokenizer of a GGUF file. F32, F16 and BF16 tensors keep their type and bits,
    but for an offset of norms; quantised ones become F32, by the gguf package's own dequantisation.

    Raises BaseError for another architecture, tokenizer or rotary scaling, and for a file without a chat template.
    """
    source = Source(path)
    family = _family(source)
    config = _config(source, family)
    names = _check_tensors(source, config, family)
    need_disk(folder, sum(4 * int(tensor.n_elements) for tensor in source.tensors.values()), f"unpacking {path.name}")
    eos = source.id_of("eos")
    ids = {"bos": source.id_of("bos", None), "eos": eos, "pad": source.id_of("padding", eos)}
    stops = {f"{name}_token_id": token for name, token in ids.items()}
    dump(folder / "config.json", config | stops)
    dump(folder / "generation_config.json", stops)
    write_tokenizer(source, folder, ids, config["vocab_size"])
    if isinstance(licence := source.fields.get("general.license"), str) and licence:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n", encoding="utf-8")
    _write_weights(source, folder / "model.safetensors", names, config | {"family": family})


def _family(source: Source) -> Family:
    """Of several that are one architecture to llama.cpp, as Llama and Mistral, the first."""
    known: dict[str, Family] = {}
    for family in FAMILIES:
        known.setdefault(gguf.MODEL_ARCH_NAMES[family.arch], family)
    if (architecture := source.get("general.architecture", str)) not in known:
        raise source.refused(f"its architecture is {architecture}, known are {', '.join(known)}")
    if source.get("split.count", int, 1) > 1 or "token_embd.weight" not in source.tensors:
        raise source.refused("it does not hold a whole model")
    if (experts := source.get(f"{architecture}.expert_count", int, 0)) > 0:
        raise source.refused(f"it is a mixture of {experts} experts, which would get no adapter")
    return known[architecture]


def _check_tensors(source: Source, config: dict[str, Any], family: Family) -> dict[str, str]:
    """The tensors' names in Hugging Face's form by those in the file. Raises BaseError unless the numbers are those of
    the family, and the tensors are what they ask for.
    """
    try:
        full = checked(config, family, source.path)
    except BaseError as error:
        raise source.refused(error.what.replace("config.json: ", "its ")) from None
    _check_metadata(source, full)
    wanted = shapes(full)
    names = {str(gguf_name(name, family, config["num_hidden_layers"])): name for name in wanted}
    here = {name: _shape(tensor) for name, tensor in source.tensors.items() if name not in TABLES}
    if odd := sorted(here.keys() - names.keys()):
        raise source.refused(f"its tensor {odd[0]} is none of a plain {family.architecture}")
    if wrong := sorted(names[name] for name in names if here.get(name) != wanted[names[name]]):
        found = {names[name]: shape for name, shape in here.items()}
        raise source.refused(f"its tensor {wrong[0]} is {found.get(wrong[0], 'missing')}, due is {wanted[wrong[0]]}")
    return {name: names[name] for name in here}


def _check_metadata(source: Source, config: dict[str, Any]) -> None:
    """What is said of the architecture is what we would say of it: another key may change what the numbers mean."""
    family, due = config["family"], metadata(config)
    prefix = f"{gguf.MODEL_ARCH_NAMES[family.arch]}."
    for key in sorted(source.fields):
        name, found = key.removeprefix(prefix), source.fields[key]
        if not key.startswith(prefix) or name in HARMLESS or (name, found) == ("attention.sliding_window", 0):
            continue
        if name == "attention.sliding_window" and family.windows == "if set" and not family.full_every:
            continue  # read, though llama.cpp gives every layer all tokens
        if name not in due:
            raise source.refused(f"its metadata has {key}, which a plain {family.architecture} has not")
        same = isinstance(found, int | float) and np.isclose(found, due[name], rtol=1e-6)
        if found != due[name] and not same:
            raise source.refused(f"its {name} is {str(found)[:40]}, and not {due[name]}")


def _write_weights(source: Source, path: Path, names: dict[str, str], config: dict[str, Any]) -> None:
    entries = {hf: (_stored(source.tensors[name]), _shape(source.tensors[name])) for name, hf in names.items()}
    offset = config["family"].norm_offset
    with TensorWriter(path, entries) as writer:
        for name, hf in names.items():
            values = _values(source.tensors[name]).reshape(entries[hf][1])
            if rows := head_rows(hf, config):
                # GGUF interleaves the two halves of each rotated head; Hugging Face stores one after the other
                values = values.reshape(-1, rows // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
            if offset and hf.endswith("norm.weight"):
                values = values - np.float32(offset)
            writer.write(hf, values)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(map(int, reversed(tensor.shape)))


def _stored(tensor: Any) -> str:
    return tensor.tensor_type.name if tensor.tensor_type.name in DTYPES else "F32"


def _values(tensor: Any) -> Array:
    if tensor.tensor_type.name == "BF16":
        return tensor.data.view(np.uint16)
    return tensor.data if tensor.tensor_type.name in DTYPES else gguf.dequantize(tensor.data, tensor.tensor_type)


def _config(source: Source, family: Family) -> dict[str, Any]:
    """config.json. What differs between families is what their row says."""
    arch = gguf.MODEL_ARCH_NAMES[family.arch]
    config: dict[str, Any] = {name: source.get(f"{arch}.{key}", int) for name, key in CONFIG.items()}
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    head_dim = source.get(f"{arch}.attention.key_length", int, config["hidden_size"] // max(1, heads))
    window = source.get(f"{arch}.attention.sliding_window", int, 0)
    config |= {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "num_key_value_heads": source.get(f"{arch}.attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        family.activation[0]: family.activation[1],
        "rms_norm_eps": _decimal(source.get(f"{arch}.attention.layer_norm_rms_epsilon", float)),
        **{switch: True for switch in family.switches if BIASED[switch] in source.tensors},
        **family.fixed,
    }
    if family.windows == "if set":
        config["sliding_window"] = window or None
    if family.full_every:
        config["layer_types"] = family.layer_types(layers)
        config["query_pre_attn_scalar"] = config["hidden_size"] // heads if layers == LAYERS_27B else head_dim
    if family.unrotated_every:
        config["no_rope_layers"] = family.rotated(layers)
    for field, key in family.multipliers.items():  # where a file is silent llama.cpp takes these
        silent = max(1, head_dim) ** -0.5 if key == "attention.scale" else 1.0
        config[field] = _decimal(source.get(f"{arch}.{key}", float, silent))
    config |= _rope(source, family, config)
    return config | {  # last, as version 0.1 wrote it: of these bytes is the digest that runs know their base by
        "vocab_size": _shape(source.tensors["token_embd.weight"])[0],
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "dtype": DTYPES[_stored(source.tensors["token_embd.weight"])],
    }


def _decimal(value: float) -> float:
    """1e-05 for 9.99999975e-06: the shortest decimal of a float32 is what was meant."""
    return float(str(np.float32(value)))


def _rope(source: Source, family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings. Llama 3's, and Phi-3's for long texts, a GGUF keeps as tables of divisors."""
    arch, head_dim = gguf.MODEL_ARCH_NAMES[family.arch], config["head_dim"]
    theta = source.get(f"{arch}.rope.freq_base", float, 10000.0)
    dims = source.get(f"{arch}.rope.dimension_count", int, head_dim)
    factor = source.get(f"{arch}.rope.scaling.factor", float, source.get(f"{arch}.rope.scale_linear", float, 0.0))
    scaled = "linear" if factor not in (0.0, 1.0) else "none"  # what llama.cpp takes where no type is named
    kind = source.get(f"{arch}.rope.scaling.type", str, scaled)
    tables = {name: source.tensors[name].data for name in TABLES if name in source.tensors}
    original = source.get(f"{arch}.rope.scaling.original_context_length", int, config["max_position_embeddings"])
    rope: dict[str, Any] = {"rope_theta": theta}
    if family.partial_rotary:
        rope["partial_rotary_factor"] = dims / max(1, head_dim)
    if kind == "none" and not tables:
        rope["rope_type"] = "default"
    elif kind in ("linear", "yarn") and kind in family.ropes and not tables:
        rope |= {"rope_type": kind, "factor": factor} | ({ORIGINAL: original} if kind == "yarn" else {})
    elif kind == "none" and "llama3" in family.ropes and (found := _llama3(tables, theta, dims)):
        rope |= found
    elif "longrope" in family.ropes and kind in ("none", "longrope") and set(tables) == {LONG, SHORT}:
        scale = source.get(f"{arch}.rope.scaling.attn_factor", float, 1.0)
        lists = {"long_factor": _decimals(tables[LONG]), "short_factor": _decimals(tables[SHORT])}
        rope |= {"rope_type": "longrope", "attention_factor": scale, ORIGINAL: original} | lists
    else:
        what = "a table of its own" if tables else kind
        raise source.refused(f"its rotary scaling is {what}, known are {', '.join(family.ropes)}")
    if family.full_every:
        local = source.get(f"{arch}.rope.freq_base_swa", float, 10000.0)  # llama.cpp's default
        return {"rope_parameters": {
            "full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": local}
        }}  # fmt: skip
    beside = {ORIGINAL: original} if "longrope" in family.ropes else {}
    return {"rope_theta": theta, "rope_parameters": rope, **beside}


def _llama3(tables: dict[str, Table], theta: float, dims: int) -> dict[str, Any] | None:
    """The settings whose table this is; None for another table."""
    if set(tables) != {FREQUENCIES} or theta <= 0:
        return None
    rope = {"factor": float(tables[FREQUENCIES].max()), **LLAMA3_ROPE}
    due = llama3_factors({"rope_theta": theta, **rope}, dims)
    same = tables[FREQUENCIES].shape == due.shape and np.allclose(tables[FREQUENCIES], due, rtol=1e-4)
    return {"rope_type": "llama3", **rope} if same else None


def _decimals(table: Table) -> list[float]:
    return [_decimal(value) for value in table]
