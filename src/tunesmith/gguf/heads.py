"""What a head does with its linear layer's output: config.json's fields for it, by model_type. Needs no torch."""

from typing import Any

DIVIDES = {"granite": "logits_scaling"}
MULTIPLIES = {"cohere": "logit_scale", "cohere2": "logit_scale"}
CAPS = {"gemma3_text": "final_logit_softcapping"}
NOTHING = {"logits_scaling": 1, "logit_scale": 1, "final_logit_softcapping": None, "attn_logit_softcapping": None}
"""Fields that scale or cap what a head or attention gives -> the value at which they do nothing. One name is not one
meaning: where Granite divides, others multiply. What is not known here the proof of packing finds, before the first
step."""


def head_numbers(config: dict[str, Any]) -> tuple[float, float | None]:
    """(scale, cap) of a config.json: its logits are cap * tanh(scale * x / cap) of what the linear layer gives, x;
    scale * x where cap is None.
    """
    kind = config.get("model_type")
    scale, cap = 1.0, config.get(CAPS.get(str(kind), ""))
    if (field := DIVIDES.get(str(kind))) is not None:
        scale = 1 / config.get(field, 1)
    elif (field := MULTIPLIES.get(str(kind))) is not None:
        scale = config.get(field, 1)
    return scale, cap


def not_computed(config: dict[str, Any]) -> str | None:
    """The first field by which a head or attention does what `head_numbers` does not say; None where there is none."""
    known = [of.get(str(config.get("model_type"))) for of in (DIVIDES, MULTIPLIES, CAPS)]
    changed = [field for field, nothing in NOTHING.items() if config.get(field, nothing) not in (nothing, None)]
    return next((field for field in changed if field not in known or not _is_scale(config[field])), None)


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
