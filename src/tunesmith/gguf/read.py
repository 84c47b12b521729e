"""A GGUF file of the Llama architecture, dequantised into a normal Hugging Face folder.

The way back from llama.cpp's convert_hf_to_gguf.py: names, the rotary permutation of q and k, the tokenizer.
"""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tunesmith.errors import BaseError
from tunesmith.gguf.config import LLAMA3_ROPE, checked, llama3_factors
from tunesmith.gguf.families import llama_shapes
from tunesmith.gguf.metadata import read_singles
from tunesmith.gguf.pretokenizers import PRE_TOKENIZERS
from tunesmith.machine import need_disk
from tunesmith.weights.tensorfile import Array, TensorWriter

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
ROPE_TABLE = "rope_freqs.weight"
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
CONFIG = {
    "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length", "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count", "max_position_embeddings": "context_length",
}  # fmt: skip
KNOWN = {
    *CONFIG.values(), "attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size",
    "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
    "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "expert_count", "expert_used_count", "tensor_data_layout",
}  # fmt: skip
"""What is understood of llama.*: another key may change what the numbers mean, so it is not looked through."""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


Value = TypeVar("Value", bound=int | float | str | list)  # type: ignore[type-arg]


class _Source:
    """An open GGUF file: metadata by key, tensors by name."""

    def __init__(self, path: Path) -> None:
        self.path, again = path, "fetch it again"
        read_singles(path, again)  # first: the package's reader believes every count, and takes memory for it
        try:
            reader = gguf.GGUFReader(path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # numpy's, struct's and its own, by what is damaged
            what = f"{path.name} is no whole GGUF file: {error}"
            raise BaseError(what, fix=again, where=str(path)) from error

    def get(self, key: str, kind: type[Value], *default: Any) -> Value:
        """The value of a key, which is of this kind; the default where there is no such key."""
        if key not in self.fields and default:
            return default[0]
        value = self.fields.get(key)
        if value is None:
            raise self.refused(f"its metadata lacks {key}")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.refused(f"its {key} is {str(value)[:40]!r}, no {kind.__name__}")
        return value

    def id_of(self, name: str, *default: Any) -> int:
        """The id of a special token, which is one of the tokens."""
        key = f"tokenizer.ggml.{name}_token_id"
        found = self.get(key, int, *default)
        if key in self.fields and not 0 <= found < len(self.get("tokenizer.ggml.tokens", list)):
            raise self.refused(f"its {key} is {found}, which is none of its tokens")
        return found

    def refused(self, what: str) -> BaseError:
        fix = "name the Hugging Face model this file was made from, by its Hub id or as a folder"
        return BaseError(f"{self.path.name} cannot be a base: {what}", fix=fix, where=str(self.path))


def convert(path: Path, folder: Path) -> None:
    """Fill `folder` with the model and tokenizer of a GGUF file. F32, F16 and BF16 tensors keep their type and bits;
    quantised ones become F32, by the gguf package's own dequantisation.

    Raises BaseError for another architecture, tokenizer or rotary scaling, and for a file without a chat template.
    """
    source = _Source(path)
    if (architecture := source.get("general.architecture", str)) != "llama":
        raise source.refused(f"its architecture is {architecture}, known is llama")
    if source.get("split.count", int, 1) > 1 or "token_embd.weight" not in source.tensors:
        raise source.refused("it does not hold a whole model")
    if (experts := source.get("llama.expert_count", int, 0)) > 0:
        raise source.refused(f"it is a mixture of {experts} experts, which would get no adapter")
    config = _config(source)
    _check_tensors(source, config)
    need_disk(folder, sum(4 * int(tensor.n_elements) for tensor in source.tensors.values()), f"unpacking {path.name}")
    eos = source.id_of("eos")
    ids = {"bos": source.id_of("bos", None), "eos": eos, "pad": source.id_of("padding", eos)}
    stops = {f"{name}_token_id": token for name, token in ids.items()}
    _dump(folder / "config.json", config | stops)
    _dump(folder / "generation_config.json", stops)
    _write_tokenizer(source, folder, ids)
    if isinstance(licence := source.fields.get("general.license"), str) and licence:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n", encoding="utf-8")
    _write_weights(source, folder / "model.safetensors", config)


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_tensors(source: _Source, config: dict[str, Any]) -> None:
    """Raise BaseError unless the numbers are those of a Llama and the tensors are what they ask for."""
    try:
        wanted = llama_shapes(checked(config, source.path))
    except BaseError as error:
        raise source.refused(error.what.replace("config.json: ", "its ")) from None
    for key in ("attention.value_length", "rope.dimension_count"):
        if (found := source.get(f"llama.{key}", int, config["head_dim"])) != config["head_dim"]:
            raise source.refused(f"its {key} is {found}, and not the {config['head_dim']} of a head")
    here = {_hf_name(source, name): _shape(tensor) for name, tensor in source.tensors.items() if name != ROPE_TABLE}
    if wrong := sorted(name for name in here | wanted if here.get(name) != wanted.get(name)):
        name = wrong[0]
        raise source.refused(f"its tensor {name} is {here.get(name, 'missing')}, due is {wanted.get(name, 'none')}")


def _write_weights(source: _Source, path: Path, config: dict[str, Any]) -> None:
    tensors = {_hf_name(source, name): tensor for name, tensor in source.tensors.items() if name != ROPE_TABLE}
    entries = {name: (_stored(tensor), _shape(tensor)) for name, tensor in tensors.items()}
    with TensorWriter(path, entries) as writer:
        for name, tensor in tensors.items():
            values = _values(tensor).reshape(entries[name][1])
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                values = _unpermute(
                    values, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
                )
            writer.write(name, values)


def _hf_name(source: _Source, name: str) -> str:
    """model.layers.0.mlp.up_proj.weight for blk.0.ffn_up.weight."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if not match or match[2] not in NAMES:
        raise source.refused(f"its tensor {name} is none of a plain Llama model")
    return f"model.layers.{match[1]}.{NAMES[match[2]]}.weight" if match[1] else f"{NAMES[match[2]]}.weight"


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(map(int, reversed(tensor.shape)))


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
    if odd := sorted(key for key in source.fields if key.startswith("llama.") and key[len("llama.") :] not in KNOWN):
        raise source.refused(f"its metadata has {odd[0]}, which a plain Llama has not")
    config: dict[str, Any] = {name: source.get(f"llama.{key}", int) for name, key in CONFIG.items()}
    heads = config["num_attention_heads"]
    head_dim = source.get("llama.attention.key_length", int, config["hidden_size"] // max(1, heads))
    theta = source.get("llama.rope.freq_base", float, 10000.0)
    return config | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": source.get("llama.attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        # read as 9.99999975e-06; the shortest decimal of that float32 is what was meant
        "rms_norm_eps": float(str(np.float32(source.get("llama.attention.layer_norm_rms_epsilon", float)))),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, **_rope(source, theta, head_dim)},
        "vocab_size": _shape(source.tensors["token_embd.weight"])[0],
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "dtype": DTYPES[_stored(source.tensors["token_embd.weight"])],
    }


def _rope(source: _Source, theta: float, head_dim: int) -> dict[str, Any]:
    """Rotary scaling: none, or Llama 3's, which a GGUF keeps as a table of divisors, one for each frequency."""
    old = source.get("llama.rope.scale_linear", float, 0.0)
    factor = source.get("llama.rope.scaling.factor", float, old)
    scaled = "linear" if factor not in (0.0, 1.0) else "none"  # what llama.cpp takes where no type is named
    kind = source.get("llama.rope.scaling.type", str, scaled)
    if ROPE_TABLE in source.tensors:
        table = source.tensors[ROPE_TABLE].data
        rope = {"factor": float(table.max()), **LLAMA3_ROPE}
        due = llama3_factors({"rope_theta": theta, **rope}, head_dim) if theta > 0 else None
        if kind == "none" and due is not None and table.shape == due.shape and np.allclose(table, due, rtol=1e-4):
            return {"rope_type": "llama3", **rope}
        kind = "a table of its own"
    if kind != "none":
        raise source.refused(f"its rotary scaling is {kind}, known are none and Llama 3's")
    return {"rope_type": "default"}


def _write_tokenizer(source: _Source, folder: Path, ids: dict[str, Any]) -> None:
    model = source.get("tokenizer.ggml.model", str)
    pre = source.get("tokenizer.ggml.pre", str, model)
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        raise source.refused(f"its tokenizer is {pre}, known are {', '.join(PRE_TOKENIZERS)}")
    tokens, types = source.get("tokenizer.ggml.tokens", list), source.get("tokenizer.ggml.token_type", list)
    if len(tokens) != len(types) or len(tokens) > _shape(source.tensors["token_embd.weight"])[0]:
        raise source.refused(
            f"it has {len(tokens)} tokens, {len(types)} types of tokens, and an embedding of other size"
        )
    if not (template := source.get("tokenizer.chat_template", str, "")):
        names = ", ".join(map(str, source.get("tokenizer.chat_templates", list, [])))
        others = f": of {names} none is the default" if names else "; use an instruct model"
        raise source.refused(f"it has no chat template{others}")
    add_bos = source.get("tokenizer.ggml.add_bos_token", bool, pre == "llama-bpe")  # llama.cpp's default
    if add_bos and ids["bos"] is None:
        raise source.refused("its metadata lacks tokenizer.ggml.bos_token_id")
    try:
        raw = _tokenizer(tokens, types, source.get("tokenizer.ggml.merges", list), pre)
        named = {f"{name}_token": tokens[token] for name, token in ids.items() if token is not None}
        if add_bos:
            bos = named["bos_token"]
            raw.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, ids["bos"])])
        raw.save(str(folder / "tokenizer.json"))
    except BaseError:
        raise
    except Exception as error:  # tokenizers raises plain Exceptions, for a merge of tokens that are not there
        raise source.refused(f"its tokenizer cannot be read: {error}") from error
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _dump(folder / "tokenizer_config.json", settings | named | {"add_bos_token": add_bos})
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _tokenizer(tokens: list[str], types: list[int], merges: list[str], pre: str) -> Tokenizer:
    """Hugging Face's tokenizer of what a GGUF says of its own."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    raw = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre == "llama-bpe"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    raw.decoder = decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    raw.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in added])
    return raw
