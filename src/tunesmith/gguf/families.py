"""The architectures that become GGUF files and come back, one row each: what differs from Llama, and nothing more.

Facts: transformers' modeling and configuration files, and llama.cpp's src/models and conversion folders.
"""

from pathlib import Path
from typing import Any

from gguf import MODEL_ARCH

from tunesmith.errors import BaseError
from tunesmith.gguf.config import checked
from tunesmith.gguf.family import LLAMA_NORMS, Family
from tunesmith.weights.small_files import CONFIG, architectures, read_json

UNUSED = (".rotary_emb.inv_freq",)  # in weights of old transformers; computed from config.json by all that read them
LLAMA_ROPES = ("default", "linear", "yarn", "llama3")
BIASES = ("attention_bias", "mlp_bias")

FAMILIES = (
    Family("LlamaForCausalLM", "llama", MODEL_ARCH.LLAMA, switches=BIASES, ropes=LLAMA_ROPES),
    Family(
        "Qwen2ForCausalLM", "qwen2", MODEL_ARCH.QWEN2, interleaved=False, biased=("q_proj", "k_proj", "v_proj"),
        windows="if asked", defaults={"num_key_value_heads": 32},
    ),
    Family(
        "Qwen3ForCausalLM", "qwen3", MODEL_ARCH.QWEN3, interleaved=False, head_norms=True, windows="if asked",
        fixed={"attention_bias": False}, defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
    Family(
        "MistralForCausalLM", "mistral", MODEL_ARCH.LLAMA, ropes=LLAMA_ROPES, windows="if set",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        "Gemma3ForCausalLM", "gemma3_text", MODEL_ARCH.GEMMA3, interleaved=False, head_norms=True, norm_offset=1.0,
        norms=(*LLAMA_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        activation=("hidden_activation", "gelu_pytorch_tanh"), ropes=("default", "linear"),
        windows="if set", full_every=6,
        fixed={"attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None,
               "use_bidirectional_attention": False},
        defaults={"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "sliding_window": 4096,
                  "query_pre_attn_scalar": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
    Family(
        "SmolLM3ForCausalLM", "smollm3", MODEL_ARCH.SMOLLM3, windows="if asked", unrotated_every=4,
        fixed={"attention_bias": False, "mlp_bias": False},
        defaults={"num_key_value_heads": 4, "tie_word_embeddings": True, "rope_theta": 2e6},
    ),
    Family(
        "Phi3ForCausalLM", "phi3", MODEL_ARCH.PHI3, interleaved=False, fused=True, ropes=("default", "longrope"),
        partial_rotary=True, windows="if set", defaults={"original_max_position_embeddings": 4096},
    ),
    Family(
        "GraniteForCausalLM", "granite", MODEL_ARCH.GRANITE, switches=BIASES, ropes=LLAMA_ROPES,
        multipliers={"embedding_multiplier": "embedding_scale", "attention_multiplier": "attention.scale",
                     "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"},
    ),
)  # fmt: skip


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
    return checked(config, family_of(config, name or folder.name), folder)
