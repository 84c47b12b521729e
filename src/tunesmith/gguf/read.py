"""A GGUF file of the Llama architecture, dequantised into a normal Hugging Face folder.

The way back from llama.cpp's convert_hf_to_gguf.py: names, the rotary permutation of q and k, the tokenizer.
"""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tunesmith.errors import BaseError
from tunesmith.gguf.config import LLAMA3_ROPE, llama3_factors
from tunesmith.gguf.pretokenizers import PRE_TOKENIZERS
from tunesmith.machine import need_disk
from tunesmith.weights.tensorfile import Array, TensorWriter

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
CONFIG = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "max_position_embeddings": "context_length",
}  # fmt: skip
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class _Source:
    """An open GGUF file: metadata by key, tensors by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            what = f"{path.name} is no whole GGUF file: {error}"
            raise BaseError(what, fix="fetch it again", where=str(path)) from error
        self.fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def get(self, key: str, *default: Any) -> Any:
        if key not in self.fields and not default:
            raise self.refused(f"its metadata lacks {key}")
        return self.fields[key].contents() if key in self.fields else default[0]

    def refused(self, what: str) -> BaseError:
        fix = "name the Hugging Face model this file was made from, by its Hub id or as a folder"
        return BaseError(f"{self.path.name} cannot be a base: {what}", fix=fix, where=str(self.path))


def convert(path: Path, folder: Path) -> None:
    """Fill `folder` with the model and tokenizer of a GGUF file. F32, F16 and BF16 tensors keep their type and bits;
    quantised ones become F32, by the gguf package's own dequantisation.

    Raises BaseError for another architecture, tokenizer or rotary scaling, and for a file without a chat template.
    """
    source = _Source(path)
    if (architecture := source.get("general.architecture")) != "llama":
        raise source.refused(f"its architecture is {architecture}, known is llama")
    if source.get("split.count", 1) > 1 or "token_embd.weight" not in source.tensors:
        raise source.refused("it does not hold a whole model")
    need_disk(folder, sum(4 * int(tensor.n_elements) for tensor in source.tensors.values()), f"unpacking {path.name}")
    eos = source.get("tokenizer.ggml.eos_token_id")
    ids = {"bos": source.get("tokenizer.ggml.bos_token_id", None), "eos": eos}
    ids["pad"] = source.get("tokenizer.ggml.padding_token_id", eos)
    stops = {f"{name}_token_id": token for name, token in ids.items()}
    _dump(folder / "config.json", _config(source) | stops)
    _dump(folder / "generation_config.json", stops)
    _write_tokenizer(source, folder, ids)
    if licence := source.get("general.license", ""):
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    _write_weights(source, folder / "model.safetensors")


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(source: _Source, path: Path) -> None:
    tensors = {_hf_name(source, name): tensor for name, tensor in source.tensors.items() if name != "rope_freqs.weight"}
    entries = {name: (_stored(tensor), tuple(map(int, reversed(tensor.shape)))) for name, tensor in tensors.items()}
    heads = source.get("llama.attention.head_count")
    key_heads = source.get("llama.attention.head_count_kv", heads)
    with TensorWriter(path, entries) as writer:
        for name, tensor in tensors.items():
            values = _values(tensor).reshape(entries[name][1])
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                values = _unpermute(values, heads if "q_proj" in name else key_heads)
            writer.write(name, values)


def _hf_name(source: _Source, name: str) -> str:
    """model.layers.0.mlp.up_proj.weight for blk.0.ffn_up.weight."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if not match or match[2] not in NAMES:
        raise source.refused(f"its tensor {name} is none of a plain Llama model")
    return f"model.layers.{match[1]}.{NAMES[match[2]]}.weight" if match[1] else f"{NAMES[match[2]]}.weight"


def _stored(tensor: Any) -> str:
    return tensor.tensor_type.name if tensor.tensor_type.name in DTYPES else "F32"


def _values(tensor: Any) -> Array:
    if tensor.tensor_type.name == "BF16":
        return tensor.data.view(np.uint16)
    return tensor.data if tensor.tensor_type.name in DTYPES else gguf.dequantize(tensor.data, tensor.tensor_type)


def _unpermute(values: Array, heads: int) -> Array:
    """GGUF interleaves the two halves of each rotated head; Hugging Face stores one after the other."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(source: _Source) -> dict[str, Any]:
    config = {name: source.get(f"llama.{key}") for name, key in CONFIG.items()}
    heads = config["num_attention_heads"]
    head_dim = source.get("llama.attention.key_length", config["hidden_size"] // heads)
    theta = float(source.get("llama.rope.freq_base", 10000.0))
    return config | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": source.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        # read as 9.99999975e-06; the shortest decimal of that float32 is what was meant
        "rms_norm_eps": float(str(np.float32(source.get("llama.attention.layer_norm_rms_epsilon")))),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, **_rope(source, theta, head_dim)},
        "vocab_size": int(source.tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "dtype": DTYPES[_stored(source.tensors["token_embd.weight"])],
    }


def _rope(source: _Source, theta: float, head_dim: int) -> dict[str, Any]:
    """Rotary scaling: none, or Llama 3's, which a GGUF keeps as a table of divisors, one for each frequency."""
    kind = source.get("llama.rope.scaling.type", "none")
    if "rope_freqs.weight" in source.tensors:
        table = source.tensors["rope_freqs.weight"].data
        rope = {"factor": float(table.max()), **LLAMA3_ROPE}
        if np.allclose(table, llama3_factors({"rope_theta": theta, **rope}, head_dim), rtol=1e-4):
            return {"rope_type": "llama3", **rope}
        kind = "a table of its own"
    if kind != "none":
        raise source.refused(f"its rotary scaling is {kind}, known are none and Llama 3's")
    return {"rope_type": "default"}


def _write_tokenizer(source: _Source, folder: Path, ids: dict[str, Any]) -> None:
    pre = source.get("tokenizer.ggml.pre", source.get("tokenizer.ggml.model"))
    if source.get("tokenizer.ggml.model") != "gpt2" or pre not in PRE_TOKENIZERS:
        raise source.refused(f"its tokenizer is {pre}, known are {', '.join(PRE_TOKENIZERS)}")
    tokens = source.get("tokenizer.ggml.tokens")
    types = source.get("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in source.get("tokenizer.ggml.merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    raw = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    raw.decoder = decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    raw.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in added])
    named = {f"{name}_token": tokens[token] for name, token in ids.items() if token is not None}
    add_bos = bool(source.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"))  # llama.cpp's default
    if add_bos:
        bos = named["bos_token"]
        raw.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, ids["bos"])])
    raw.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _dump(folder / "tokenizer_config.json", settings | named | {"add_bos_token": add_bos})
    if not (template := source.get("tokenizer.chat_template", "")):
        raise source.refused("it has no chat template; use an instruct model")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
