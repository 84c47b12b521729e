"""The architectures that become GGUF files and come back, one row each; what reader and writer share."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import BaseError


@dataclass(frozen=True)
class Family:
    """One architecture: its name in config.json, and llama.cpp's."""

    architecture: str
    arch: gguf.MODEL_ARCH
    rotated: tuple[str, ...]
    """Parts of the names of weights whose rows llama.cpp's rotary wants interleaved."""


FAMILIES = (Family("LlamaForCausalLM", gguf.MODEL_ARCH.LLAMA, rotated=(".q_proj.", ".k_proj.")),)
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every Llama 3 has beside its factor; a GGUF keeps the table only."""


def family_of(config: dict[str, Any], name: str = "this base") -> Family:
    """The family of a config.json. Raises BaseError, with the list, for one that is not supported."""
    known = {family.architecture: family for family in FAMILIES}
    stated = config.get("architectures") or ["of no stated architecture"]
    found = [known[architecture] for architecture in stated if architecture in known]
    if not found:
        raise BaseError(
            f"{name} is {', '.join(stated)}, an architecture that cannot be exported to GGUF",
            fix=f"use a base of one of these: {', '.join(known)}",
        )
    return found[0]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json with what it may leave out, and its family. Raises BaseError for a model that cannot be exported."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["family"] = family_of(config, folder.name)
    heads = config["num_attention_heads"]
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // heads
    config["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}  # old configs have theta beside it
    rope = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": scaling.get("type", "default")} | scaling
    if rope["rope_type"] not in ("default", "llama3"):
        raise BaseError(
            f"rotary scaling {rope['rope_type']} cannot be exported", fix="use a base with none, or llama3's"
        )
    config["rope"] = rope
    return config


def llama3_factors(rope: dict[str, Any], head_dim: int) -> NDArray[np.float32]:
    """Divisors of the rotary frequencies [head_dim / 2] (transformers' _compute_llama3_parameters).

    `rope` as in config.json: rope_theta, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings.
    """
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)  # 0: long waves, 1: short ones
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
