"""Rotary positions: the settings of a config.json of any age, looked at, and what a GGUF file says of them.

Formulas: transformers' modeling_rope_utils.py. Letters in names: F frequencies, half of the numbers rotated in a head.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import BaseError
from tunesmith.gguf.family import Family
from tunesmith.gguf.fields import number, odd, size

THETA = 10000.0  # transformers' default
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every Llama 3 has beside its factor; a GGUF keeps the table only."""
YARN_FIXED = {"attention_factor": None, "beta_fast": 32, "beta_slow": 1, "mscale": None, "mscale_all_dim": None,
              "truncate": True}  # fmt: skip
"""What llama.cpp computes where a file says nothing of it, and transformers too."""
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
ORIGINAL = "original_max_position_embeddings"

Table = NDArray[np.float32]


def rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config.json of any age, with rope_type and rope_theta; those of layer types as they are.

    Newer ones have rope_parameters, older ones rope_scaling with `type`, and the theta beside it.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = found if isinstance(found, dict) else {"rope_type": found}
    return {"rope_theta": config.get("rope_theta", THETA), "rope_type": found.get("type", "default")} | found


def checked_rope(config: dict[str, Any], family: Family, folder: Path) -> dict[str, Any]:
    """The rotary settings with `dims`, the numbers that are rotated in a head, and for layers with a window that have
    their own, `local_theta`. Raises BaseError for what llama.cpp does not compute.
    """
    rope = rotary(config)
    if family.full_every:
        rope = _of_both(rope, config, folder)
    if rope["rope_type"] not in family.ropes:
        raise BaseError(
            f"rotary scaling {rope['rope_type']} cannot be exported to GGUF for {family.architecture}",
            fix=f"use a base with one of these: {', '.join(family.ropes)}",
            where=str(folder),
        )
    rope["rope_theta"] = number(rope, "rope_theta", folder)
    part = rope.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    if part != 1 and not family.partial_rotary:
        raise odd("partial_rotary_factor", part, "is not 1: llama.cpp rotates whole heads in this family", folder)
    rope["dims"] = int(config["head_dim"] * number({"partial_rotary_factor": part}, "partial_rotary_factor", folder))
    if rope["dims"] % 2 or not 0 < rope["dims"] <= config["head_dim"]:
        raise odd("partial_rotary_factor", part, f"gives {rope['dims']} rotated numbers in a head", folder)
    return CHECKS[rope["rope_type"]](rope, config, folder)


def _of_both(rope: dict[str, Any], config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of layers that see all, with the theta of those that see a window."""
    full = rope.get("full_attention", rope)
    local = rope.get("sliding_attention", {"rope_theta": config["rope_local_base_freq"]})
    for name, value in (("full_attention", full), ("sliding_attention", local)):
        if not isinstance(value, dict):
            raise odd(name, value, "is no table of rotary settings", folder)
    if (kind := local.get("rope_type", "default")) != "default":
        raise odd("sliding_attention", kind, "is a rotary scaling that llama.cpp does not compute there", folder)
    theta = number({"rope_theta": config["rope_local_base_freq"]} | local, "rope_theta", folder)
    return {"rope_type": "default", "rope_theta": config["rope_theta"]} | full | {"local_theta": theta}


def _plain(rope: dict[str, Any], _: dict[str, Any], __: Path) -> dict[str, Any]:
    return rope


def _linear(rope: dict[str, Any], _: dict[str, Any], folder: Path) -> dict[str, Any]:
    return rope | {"factor": number(rope, "factor", folder)}


def _llama3(rope: dict[str, Any], _: dict[str, Any], folder: Path) -> dict[str, Any]:
    rope |= {name: number(rope, name, folder) for name in ("factor", *LLAMA3_ROPE)}
    if rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise odd("low_freq_factor", rope["low_freq_factor"], "is not below high_freq_factor", folder)
    return rope


def _yarn(rope: dict[str, Any], config: dict[str, Any], folder: Path) -> dict[str, Any]:
    for name, value in YARN_FIXED.items():
        if rope.get(name, value) != value:
            raise odd(name, rope[name], f"is not {value}, which llama.cpp computes", folder)
    original = size({ORIGINAL: config["max_position_embeddings"]} | rope, ORIGINAL, folder)
    return rope | {"factor": number(rope, "factor", folder), ORIGINAL: original}


def _longrope(rope: dict[str, Any], config: dict[str, Any], folder: Path) -> dict[str, Any]:
    original = size({ORIGINAL: config[ORIGINAL]} | rope, ORIGINAL, folder)
    for name in ("long_factor", "short_factor"):
        table = rope.get(name)
        if not isinstance(table, list) or len(table) != rope["dims"] // 2:
            raise odd(name, table, f"is no list of {rope['dims'] // 2} numbers", folder)
        rope[name] = [number({name: value}, name, folder) for value in table]
    factor = number({"factor": config["max_position_embeddings"] / original} | _set(rope, "factor"), "factor", folder)
    scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    scale = number({"attention_factor": scale} | _set(rope, "attention_factor"), "attention_factor", folder)
    return rope | {ORIGINAL: original, "attention_factor": scale}


def _set(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: values[name]} if values.get(name) is not None else {}


CHECKS = {"default": _plain, "linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}


def longest_alike(rope: dict[str, Any]) -> int | None:
    """Tokens up to which transformers and llama.cpp compute alike; None: whatever the model knows.

    Of two tables transformers takes the long one where a text is longer than this, llama.cpp where its context is.
    """
    return int(rope[ORIGINAL]) if rope["rope_type"] == "longrope" else None


def rope_metadata(rope: dict[str, Any]) -> dict[str, int | float | str]:
    """What a GGUF says of them, by key. A table of divisors is a tensor, and no scaling to llama.cpp."""
    found: dict[str, int | float | str] = {"rope.freq_base": rope["rope_theta"], "rope.dimension_count": rope["dims"]}
    if "local_theta" in rope:
        found["rope.freq_base_swa"] = rope["local_theta"]
    if rope["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] in ("yarn", "longrope"):
        found["rope.scaling.original_context_length"] = rope[ORIGINAL]
    if rope["rope_type"] == "longrope":
        found["rope.scaling.attn_factor"] = rope["attention_factor"]
    return found


def rope_tables(rope: dict[str, Any]) -> dict[str, Table]:
    """The tensors of divisors [F] that a GGUF has for them, by name."""
    if rope["rope_type"] == "llama3":
        return {FREQUENCIES: llama3_factors(rope, rope["dims"])}
    if rope["rope_type"] == "longrope":
        return {LONG: np.array(rope["long_factor"], "f4"), SHORT: np.array(rope["short_factor"], "f4")}
    return {}


def llama3_factors(rope: dict[str, Any], head_dim: int) -> Table:
    """Divisors of the rotary frequencies [head_dim / 2] (transformers' _compute_llama3_parameters).

    `rope` as in config.json: rope_theta, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings.
    """
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope[ORIGINAL]
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)  # 0: long waves, 1: short ones
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
