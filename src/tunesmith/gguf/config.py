"""The numbers of a config.json that a GGUF needs, each looked at, and the metadata that a GGUF has of them."""

from pathlib import Path
from typing import Any

from tunesmith.gguf.family import Family, every
from tunesmith.gguf.fields import number, odd, said, size
from tunesmith.gguf.rope import checked_rope, longest_alike, rope_metadata

LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
SWITCHES = {
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}  # transformers' defaults for Llama
LAYERS_27B = 62  # llama.cpp scales the attention of the Gemma 3 with so many by hidden_size over heads
SILU = ("silu", "swish")  # two names of one function


def checked(config: dict[str, Any], family: Family, folder: Path) -> dict[str, Any]:
    """config.json with what it may leave out, its `family`, `rope`, its rotary settings, and `window`, how many tokens
    its layers with a window see. Raises BaseError for what is not there, is no such number, or is something that
    llama.cpp does not compute in this family.
    """
    given = dict(family.defaults) | {name: value for name, value in config.items() if _is_given(name, value, family)}
    found = given | {name: size(given, name, folder) for name in SIZES} | {"family": family}
    if found["num_hidden_layers"] > LAYERS:
        raise odd("num_hidden_layers", found["num_hidden_layers"], f"is more than llama.cpp's {LAYERS}", folder)
    found |= _heads(found, folder)
    found["rms_norm_eps"] = number(given, "rms_norm_eps", folder)
    if found["rms_norm_eps"] >= 1:
        raise odd("rms_norm_eps", found["rms_norm_eps"], "is no small number", folder)
    for name, default in SWITCHES.items():
        found[name] = given.get(name, default)
        if not isinstance(found[name], bool):
            raise odd(name, found[name], "is neither true nor false", folder)
        if name not in ("tie_word_embeddings", *family.switches, *family.fixed):
            found[name] = False  # a field that transformers' class does not read
    _refuse_others(found, family, folder)
    found["rope"] = checked_rope(found, family, folder)
    found["window"] = _window(found, family, folder)
    return found


def _is_given(name: str, value: Any, family: Family) -> bool:
    """Null is a value only where it says that there are no windows."""
    return value is not None or name == "sliding_window" or name not in family.defaults


def _heads(found: dict[str, Any], folder: Path) -> dict[str, int]:
    heads, width = found["num_attention_heads"], found["hidden_size"]
    groups = size({"num_key_value_heads": heads} | said(found), "num_key_value_heads", folder)
    if heads % groups:
        raise odd("num_key_value_heads", groups, f"does not divide {heads} heads", folder)
    if found.get("head_dim") is None and width % heads:
        raise odd("hidden_size", width, f"is not divided by {heads} heads, and head_dim is missing", folder)
    head_dim = size({"head_dim": width // heads} | said(found), "head_dim", folder)
    if head_dim % 2:
        raise odd("head_dim", head_dim, "is no even number, as rotary positions need", folder)
    return {"num_key_value_heads": groups, "head_dim": head_dim}


def _refuse_others(found: dict[str, Any], family: Family, folder: Path) -> None:
    """What transformers computes by config.json, and llama.cpp computes in one way alone."""
    name, due = family.activation
    activation = found.get(name) or due
    if activation != due and not (activation in SILU and due in SILU):
        raise odd(name, activation, f"is not {due}, which llama.cpp computes in a {family.architecture}", folder)
    for field, value in family.fixed.items():
        if found.get(field) not in (value, None):
            due_value = "null" if value is None else value
            what = f"is not {due_value}, which llama.cpp computes in a {family.architecture}"
            raise odd(field, found[field], what, folder)
    for field in family.multipliers:
        found[field] = number({field: 1.0} | said(found), field, folder)
    layers, heads = found["num_hidden_layers"], found["num_attention_heads"]
    if "query_pre_attn_scalar" in found:
        due_scalar = found["hidden_size"] / heads if layers == LAYERS_27B else found["head_dim"]
        if found["query_pre_attn_scalar"] != due_scalar:
            what = f"is not the {due_scalar:g} of llama.cpp's attention"
            raise odd("query_pre_attn_scalar", found["query_pre_attn_scalar"], what, folder)
    if step := family.unrotated_every:
        rotated = found.get("no_rope_layers")
        if rotated is None:
            interval = size({"no_rope_layer_interval": step} | said(found), "no_rope_layer_interval", folder)
            rotated = every(interval, layers)
        if rotated != family.rotated(layers):
            what = f"is not every {step}th: llama.cpp rotates all layers but those"
            raise odd("no_rope_layers", rotated, what, folder)


def _window(found: dict[str, Any], family: Family, folder: Path) -> int | None:
    """Tokens that layers with a window see, None if no layer has one."""
    layers, asked = found["num_hidden_layers"], family.windows == "if set" or found.get("use_sliding_window") is True
    kinds = found.get("layer_types")
    if isinstance(kinds, list) and "sliding_attention" in kinds and found.get("sliding_window") is None:
        raise odd("sliding_window", None, "is missing or null, and layer_types has layers with a window", folder)
    if family.windows == "none" or not asked or found.get("sliding_window") is None:
        if family.full_every:
            raise odd(
                "sliding_window",
                None,
                "is missing or null, and llama.cpp needs the window",
                folder,
            )
        return None
    window = size(found, "sliding_window", folder)
    if family.full_every:
        period = found.get("sliding_window_pattern") or found.get("_sliding_window_pattern") or family.full_every
        due = family.layer_types(layers)
        if (kinds is None and period != family.full_every) or (kinds is not None and kinds != due):
            what = f"are not a window in all layers but every {family.full_every}th, as llama.cpp has it"
            raise odd("layer_types", kinds or period, what, folder)
        return window
    first = found.get("max_window_layers", 0)
    has_none = family.windows == "if asked" and isinstance(first, int) and first >= layers
    return None if (kinds is not None and "sliding_attention" not in kinds) or has_none else window


def context_length(config: dict[str, Any]) -> int:
    """Tokens of a conversation that llama.cpp computes as transformers does."""
    known: int = config["max_position_embeddings"]
    window = None if config["family"].full_every else config["window"]  # it has no windows in the other families
    return min(known, window or known, longest_alike(config["rope"]) or known)


def metadata(config: dict[str, Any]) -> dict[str, int | float | str]:
    """What a GGUF says of a model, by key without the architecture's name before it."""
    family = config["family"]
    found: dict[str, int | float | str] = {
        "block_count": config["num_hidden_layers"],
        "context_length": context_length(config),
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
    } | rope_metadata(config["rope"])
    if family.full_every:
        found["attention.sliding_window"] = config["window"]
    return found | {key: config[field] for field, key in family.multipliers.items()}
