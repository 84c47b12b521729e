"""What may differ between the architectures that become GGUF files: the columns of the table in families.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gguf

LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Family:
    """One architecture: its names, and what it does otherwise than transformers' LlamaForCausalLM."""

    architecture: str
    """In config.json."""
    model_type: str
    """In config.json."""
    arch: gguf.MODEL_ARCH
    """llama.cpp's."""
    interleaved: bool = True
    """Whether llama.cpp rotates neighbouring rows of q and k, so that theirs are written in another order."""
    biased: tuple[str, ...] = ()
    """Matrices of the attention that always have a bias."""
    switches: tuple[str, ...] = ()
    """Fields of config.json that give a bias to every matrix of attention or MLP."""
    head_norms: bool = False
    """Whether the heads of q and k have norms."""
    norms: tuple[str, ...] = LLAMA_NORMS
    """Of a layer."""
    norm_offset: float = 0.0
    """What the weights of norms stand for beyond their value; in a GGUF it is in the weights."""
    fused: bool = False
    """Whether q, k and v are one matrix, and gate and up."""
    activation: tuple[str, str] = ("hidden_act", "silu")
    """Field of config.json, and the one that llama.cpp computes."""
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    """Rotary scalings that llama.cpp computes for it."""
    partial_rotary: bool = False
    """Whether a part of each head may be rotated, and not the whole."""
    multipliers: Mapping[str, str] = field(default_factory=dict)
    """Fields of config.json that scale something -> their keys in a GGUF."""
    windows: Literal["none", "if set", "if asked"] = "none"
    """Which config.json has layers that see a window alone: one with sliding_window, or with use_sliding_window too."""
    full_every: int = 0
    """llama.cpp gives every layer a window but those that this divides; 0: it knows none, and its context ends there"""
    unrotated_every: int = 0
    """llama.cpp rotates every layer but those that this divides."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of config.json -> the one value that llama.cpp computes."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """transformers' own, where a config.json leaves them out."""

    def layer_types(self, layers: int) -> list[str]:
        """Of each layer, what it sees in llama.cpp: all tokens, or a window of them (`full_every`)."""
        return ["sliding_attention" if (n + 1) % self.full_every else "full_attention" for n in range(layers)]

    def rotated(self, layers: int) -> list[int]:
        """Of each layer, whether llama.cpp rotates it (`unrotated_every`), as no_rope_layers says it: 1 or 0."""
        return every(self.unrotated_every, layers)


def every(step: int, layers: int) -> list[int]:
    """1 for each layer but every `step`th, which is 0."""
    return [int((layer + 1) % step != 0) for layer in range(layers)]
