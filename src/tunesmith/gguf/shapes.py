"""The tensors that a config.json asks for, and their names in a GGUF file."""

from typing import Any

import gguf

from tunesmith.gguf.family import Family

Shapes = dict[str, tuple[int, ...]]


def shapes(config: dict[str, Any]) -> Shapes:
    """Names and shapes, rows first, of every tensor of transformers' class. `config` as read_config gives it."""
    family, width, inner = config["family"], config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    attention = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width)}
    mlp = {"gate_proj": (inner, width), "up_proj": (inner, width)}
    if family.fused:
        attention, mlp = {"qkv_proj": (queries + 2 * keys, width)}, {"gate_up_proj": (2 * inner, width)}
    attention["o_proj"], mlp["down_proj"] = (width, queries), (width, inner)
    found: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    for layer in range(config["num_hidden_layers"]):
        for norm in family.norms:
            found[f"model.layers.{layer}.{norm}.weight"] = (width,)
        for norm in ("q_norm", "k_norm") if family.head_norms else ():
            found[f"model.layers.{layer}.self_attn.{norm}.weight"] = (config["head_dim"],)
        for part, matrices in (("self_attn", attention), ("mlp", mlp)):
            for name, shape in matrices.items():
                found[f"model.layers.{layer}.{part}.{name}.weight"] = shape
                if name in family.biased or config["attention_bias" if part == "self_attn" else "mlp_bias"]:
                    found[f"model.layers.{layer}.{part}.{name}.bias"] = shape[:1]
    return found


def gguf_name(name: str, family: Family, layers: int) -> str | None:
    """blk.0.ffn_up.weight for model.layers.0.mlp.up_proj.weight; None for what has no place in a GGUF."""
    names = gguf.get_tensor_name_map(family.arch, layers)
    return names.get_name(name, try_suffixes=(".weight", ".bias"))


def head_rows(name: str, config: dict[str, Any]) -> int:
    """Rows of each head whose two halves llama.cpp wants interleaved; 0: the rows stay as they are."""
    rotated = config["family"].interleaved and any(part in name for part in (".q_proj.", ".k_proj."))
    return int(config["head_dim"]) if rotated else 0
