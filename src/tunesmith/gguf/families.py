"""The architectures that become GGUF files and come back, one row each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from tunesmith.errors import BaseError
from tunesmith.gguf.config import checked
from tunesmith.weights.small_files import CONFIG, architectures, read_json

Shapes = dict[str, tuple[int, ...]]
UNUSED = (".rotary_emb.inv_freq",)  # in weights of old transformers; computed from config.json by all that read them


@dataclass(frozen=True)
class Family:
    """One architecture: its name in config.json, and llama.cpp's."""

    architecture: str
    arch: gguf.MODEL_ARCH
    rotated: tuple[str, ...]
    """Parts of the names of weights whose rows llama.cpp's rotary wants interleaved."""
    shapes: Callable[[dict[str, Any]], Shapes]
    """Every tensor that a config.json asks for."""


def llama_shapes(config: dict[str, Any]) -> Shapes:
    """Names and shapes, rows first, of the tensors of transformers' LlamaForCausalLM."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    attention = {
        "q_proj": (queries, width),
        "k_proj": (keys, width),
        "v_proj": (keys, width),
        "o_proj": (width, queries),
    }
    mlp = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (width,)
        for part, matrices in (("self_attn", attention), ("mlp", mlp)):
            for name, shape in matrices.items():
                shapes[f"model.layers.{layer}.{part}.{name}.weight"] = shape
                if config["attention_bias" if part == "self_attn" else "mlp_bias"]:
                    shapes[f"model.layers.{layer}.{part}.{name}.bias"] = shape[:1]
    return shapes


FAMILIES = (Family("LlamaForCausalLM", gguf.MODEL_ARCH.LLAMA, rotated=(".q_proj.", ".k_proj."), shapes=llama_shapes),)


def family_of(config: dict[str, Any], name: str) -> Family:
    """The family of a config.json. Raises BaseError, with the list, for one that is not supported."""
    known = {family.architecture: family for family in FAMILIES}
    stated = architectures(config)
    if stated[0] not in known:
        raise BaseError(
            f"{name} is {', '.join(stated)}, an architecture that cannot be exported to GGUF",
            fix=f"use a base of one of these: {', '.join(known)}",
        )
    return known[stated[0]]


def read_config(folder: Path, name: str | None = None) -> dict[str, Any]:
    """config.json with what it may leave out, and its family. Raises BaseError for a model that cannot be exported."""
    config = read_json(folder / CONFIG)
    family = family_of(config, name or folder.name)
    return checked(config, folder) | {"family": family}
