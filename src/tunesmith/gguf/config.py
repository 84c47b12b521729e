"""The numbers of a config.json that a GGUF needs, each looked at: what is missing or odd is a BaseError by name."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import BaseError

LARGEST = 2**31 - 1  # llama.cpp keeps these in 32 bits
LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every Llama 3 has beside its factor; a GGUF keeps the table only."""
THETA = 10000.0  # transformers' default
SWITCHES = {
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}  # transformers' defaults for Llama


def checked(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """config.json with what it may leave out, and `rope`, its rotary settings. Raises BaseError for what is not there,
    is no such number, or is something that llama.cpp's Llama does not compute.
    """
    found = config | {name: _size(config, name, folder) for name in SIZES}
    if found["num_hidden_layers"] > LAYERS:
        raise odd("num_hidden_layers", found["num_hidden_layers"], f"is more than llama.cpp's {LAYERS}", folder)
    heads = found["num_attention_heads"]
    found["num_key_value_heads"] = _size({"num_key_value_heads": heads} | _said(config), "num_key_value_heads", folder)
    if heads % found["num_key_value_heads"]:
        raise odd("num_key_value_heads", found["num_key_value_heads"], f"does not divide {heads} heads", folder)
    if config.get("head_dim") is None and found["hidden_size"] % heads:
        raise odd(
            "hidden_size", found["hidden_size"], f"is not divided by {heads} heads, and head_dim is missing", folder
        )
    found["head_dim"] = _size({"head_dim": found["hidden_size"] // heads} | _said(config), "head_dim", folder)
    if found["head_dim"] % 2:
        raise odd("head_dim", found["head_dim"], "is no even number, as rotary positions need", folder)
    found["rms_norm_eps"] = number(config, "rms_norm_eps", folder)
    if found["rms_norm_eps"] >= 1:
        raise odd("rms_norm_eps", found["rms_norm_eps"], "is no small number", folder)
    for name, default in SWITCHES.items():
        found[name] = config.get(name, default)
        if not isinstance(found[name], bool):
            raise odd(name, found[name], "is neither true nor false", folder)
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):  # two names of one function
        raise odd("hidden_act", activation, "is not silu, which llama.cpp computes in a Llama", folder)
    return found | {"rope": _rope(config, folder)}


def number(values: dict[str, Any], name: str, folder: Path) -> float:
    """A number above zero. Raises BaseError for anything else."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise odd(
            name, value, "is missing or no number above zero" if value is None else "is no number above zero", folder
        )
    return float(value)


def odd(name: str, value: Any, what: str, folder: Path) -> BaseError:
    """What to raise where a field of config.json cannot be used."""
    shown = "" if value is None else f" is {value!r}, which"
    fix = "fetch the model again, or use another base, if its config.json was not changed"
    return BaseError(f"config.json: {name}{shown} {what}", fix=fix, where=str(folder))


def rotary(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of a config.json of any age, with rope_type and rope_theta; those of layer types as they are.

    Newer ones have rope_parameters, older ones rope_scaling with `type`, and the theta beside it.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = found if isinstance(found, dict) else {"rope_type": found}
    return {"rope_theta": config.get("rope_theta", THETA), "rope_type": found.get("type", "default")} | found


def llama3_factors(rope: dict[str, Any], head_dim: int) -> NDArray[np.float32]:
    """Divisors of the rotary frequencies [head_dim / 2] (transformers' _compute_llama3_parameters).

    `rope` as in config.json: rope_theta, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings.
    """
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)  # 0: long waves, 1: short ones
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _rope(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    rope = rotary(config)
    if rope["rope_type"] not in ("default", "llama3"):
        raise BaseError(
            f"rotary scaling {rope['rope_type']} cannot be exported to GGUF",
            fix="use a base with none, or llama3's",
            where=str(folder),
        )
    rope["rope_theta"] = number(rope, "rope_theta", folder)
    if rope.get("partial_rotary_factor", 1.0) != 1:
        what = "is not 1: a Llama in llama.cpp rotates whole heads"
        raise odd("partial_rotary_factor", rope["partial_rotary_factor"], what, folder)
    if rope["rope_type"] == "llama3":
        rope |= {name: number(rope, name, folder) for name in ("factor", *LLAMA3_ROPE)}
        if rope["low_freq_factor"] >= rope["high_freq_factor"]:
            raise odd("low_freq_factor", rope["low_freq_factor"], "is not below high_freq_factor", folder)
    return rope


def _size(values: dict[str, Any], name: str, folder: Path) -> int:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
        what = "is missing" if value is None else "is no whole number above zero"
        raise odd(name, value, what, folder)
    return value


def _said(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}
