"""A GGUF file of the Llama architecture, dequantised into a normal Hugging Face folder.

The way back from llama.cpp's convert_hf_to_gguf.py: names, the rotary permutation of q and k, the tokenizer.
"""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from tunesmith.errors import BaseError
from tunesmith.runs import need_disk
from tunesmith.weights.tensorfile import Array, TensorWriter

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS: dict[str, list[Any]] = {  # by tokenizer.ggml.pre; each equals llama.cpp's own regexes of that name
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class Source:
    """An open GGUF file: `get(key)` reads its metadata, `tensors` by GGUF name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise BaseError(
                f"{path.name} is no whole GGUF file: {error}", fix="fetch the file again", where=str(path)
            ) from error
        self.fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key."""
        return self.fields[key].contents() if key in self.fields else default

    def refuse(self, what: str) -> BaseError:
        """The error to raise when this file cannot be a base."""
        return BaseError(
            f"{self.path.name}: {what}",
            fix="name the Hugging Face model this file was made from, by its Hub id or as a folder",
            where=str(self.path),
        )


def convert(path: Path, folder: Path) -> None:
    """Fill `folder` with the model and tokenizer of a GGUF file. F32, F16 and BF16 tensors keep their type and bits;
    quantised ones become F32, by the gguf package's own dequantisation.

    Raises BaseError for another architecture, tokenizer or rotary scaling, and for a file without a chat template.
    """
    source = Source(path)
    if (architecture := source.get("general.architecture")) != "llama":
        raise source.refuse(f"its architecture is {architecture}; a GGUF file can be a base if it is of type llama")
    if source.get("split.count", 1) > 1:
        raise source.refuse("it is one part of a split model")
    need_disk(folder, sum(int(tensor.n_elements) * 4 for tensor in source.tensors.values()), f"unpacking {path.name}")
    dtype = _write_weights(source, folder / "model.safetensors")
    ids = {name: source.get(f"tokenizer.ggml.{key}_token_id") for name, key in TOKEN_KEYS.items()}
    _dump(folder / "config.json", _config(source, dtype, ids))
    stops = sorted({ids["eos"], source.get("tokenizer.ggml.eot_token_id", ids["eos"])} - {None})
    _dump(
        folder / "generation_config.json",
        {f"{name}_token_id": ids[name] for name in ("bos", "pad")} | {"eos_token_id": stops},
    )
    _write_tokenizer(source, folder, ids)
    (folder / "README.md").write_text(f"---\nlicense: {source.get('general.license', 'unknown')}\n---\n")


TOKEN_KEYS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(source: Source, path: Path) -> str:
    """Write every tensor but the rotary table; returns the type of the embedding, which stands for the model's."""
    tensors = {hf_name(source, name): tensor for name, tensor in source.tensors.items() if name != "rope_freqs.weight"}
    entries = {
        name: (_stored(tensor), tuple(int(size) for size in reversed(tensor.shape))) for name, tensor in tensors.items()
    }
    with TensorWriter(path, entries) as writer:
        for name, tensor in tensors.items():
            writer.write(name, _values(source, name, tensor, entries[name][1]))
    return DTYPES[entries["model.embed_tokens.weight"][0]]


def hf_name(source: Source, name: str) -> str:
    """The Hugging Face name of a Llama tensor, such as model.layers.0.mlp.up_proj.weight for blk.0.ffn_up.weight."""
    if match := re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name):
        layer, part = match.groups()
        known = LAYER_NAMES.get(part) if layer else NAMES.get(part)
        if known:
            return f"model.layers.{layer}.{known}.weight" if layer else f"{known}.weight"
    raise source.refuse(f"its tensor {name} is none of a plain Llama model")


def _stored(tensor: Any) -> str:
    return tensor.tensor_type.name if tensor.tensor_type.name in DTYPES else "F32"


def _values(source: Source, name: str, tensor: Any, shape: tuple[int, ...]) -> Array:
    if _stored(tensor) == "BF16":
        values = tensor.data.view(np.uint16)
    elif tensor.tensor_type.name in DTYPES:
        values = tensor.data
    else:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
    values = values.reshape(shape)
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return values
    heads = source.get(f"llama.attention.head_count{'_kv' if 'k_proj' in name else ''}")
    # GGUF stores the two halves of each rotated head interleaved; Hugging Face stores them one after the other
    return values.reshape(heads, shape[0] // heads // 2, 2, shape[1]).swapaxes(1, 2).reshape(shape)


def _config(source: Source, dtype: str, ids: dict[str, int | None]) -> dict[str, Any]:
    def need(key: str) -> Any:
        if (value := source.get(f"llama.{key}")) is None:
            raise source.refuse(f"its metadata lacks llama.{key}")
        return value

    theta = float(source.get("llama.rope.freq_base", 10000.0))
    head_dim = int(source.get("llama.attention.key_length", need("embedding_length") // need("attention.head_count")))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": need("embedding_length"),
        "intermediate_size": need("feed_forward_length"),
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": need("attention.head_count"),
        "num_key_value_heads": source.get("llama.attention.head_count_kv", need("attention.head_count")),
        "head_dim": head_dim,
        "hidden_act": "silu",
        # the file holds 1e-5 as float32, 9.99999975e-06; the shortest decimal of that float32 is what was meant
        "rms_norm_eps": float(str(np.float32(need("attention.layer_norm_rms_epsilon")))),
        "max_position_embeddings": need("context_length"),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta} | _rope(source, theta, head_dim),
        "vocab_size": int(source.tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "dtype": dtype,
    } | {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}


def _rope(source: Source, theta: float, head_dim: int) -> dict[str, Any]:
    """Rotary scaling: none, or Llama 3's, which a GGUF keeps as a table of divisors, one for each frequency."""
    kind = source.get("llama.rope.scaling.type", "none")
    if "rope_freqs.weight" not in source.tensors and kind == "none":
        return {"rope_type": "default"}
    if "rope_freqs.weight" in source.tensors:
        table = source.tensors["rope_freqs.weight"].data
        factor = float(table.max())
        wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
        turns = LLAMA3_ROPE["original_max_position_embeddings"] / wavelengths
        smooth = np.clip((turns - LLAMA3_ROPE["low_freq_factor"]) / 3.0, 0, 1)  # 3 = high - low
        if np.allclose(table, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
            return {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
    raise source.refuse(f"its rotary scaling ({kind}) is not known")


def _write_tokenizer(source: Source, folder: Path, ids: dict[str, int | None]) -> None:
    pre = source.get("tokenizer.ggml.pre")
    if source.get("tokenizer.ggml.model") != "gpt2" or pre not in PRE_TOKENIZERS:
        raise source.refuse(
            f"its tokenizer is {pre or source.get('tokenizer.ggml.model')}; known are {', '.join(PRE_TOKENIZERS)}"
        )
    template = source.get("tokenizer.chat_template")
    if not template:
        raise source.refuse("it has no chat template; use an instruct model")
    tokens = source.get("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in source.get("tokenizer.ggml.merges")]
    raw = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges, ignore_merges=pre == "llama-bpe"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    raw.decoder = decoders.ByteLevel()
    types = source.get("tokenizer.ggml.token_type")
    raw.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    named = {f"{name}_token": tokens[token] for name, token in ids.items() if token is not None}
    add_bos = bool(source.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"))  # the default is llama.cpp's
    if add_bos:
        bos = named["bos_token"]
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids["bos"])]
        )
    raw.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.get("llama.context_length"),
    }
    _dump(folder / "tokenizer_config.json", settings | named)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
