"""What `auto` means here: the numbers this machine is fast in, and how many tokens fit into its memory at once."""

import re
import time
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ResourceError
from tunesmith.recipe import Recipe, TrainConfig
from tunesmith.weights.small_files import CONFIG, read_json

BEYOND_FP16 = ("gemma3_text",)
"""Bases whose hidden states exceed 65,504, the largest number in fp16 (huggingface/transformers#36822)."""
CPU_MICRO_BATCH = 1024  # tokens; larger ones use more memory and are no faster on two cores


def decide_autos(recipe: Recipe, base_folder: Path, device: torch.device) -> Recipe:
    """The recipe with every `auto` of train decided for this machine."""
    train = recipe.train
    kind = read_json(base_folder / CONFIG).get("model_type") if device.type == "cuda" else None
    precision = _precision(device, kind) if train.precision == "auto" else train.precision
    train = train.model_copy(update={"precision": precision})
    if device.type == "cpu":
        micro = max(train.max_length, min(CPU_MICRO_BATCH, train.tokens_per_step))
        auto = {"micro_batch_tokens": micro, "recompute": "off"}
    else:
        auto = _fitting(train, read_json(base_folder / CONFIG), base_folder)
    chosen = {name: value for name, value in auto.items() if getattr(train, name) == "auto"}
    return recipe.model_copy(update={"train": train.model_copy(update=chosen)})


def full_memory(error: BaseException) -> str:
    """What an error says of memory that is full, in two sentences; nothing if it is about something else.

    torch has a class for a GPU's allocations only: cuBLAS and the CPU say it in a RuntimeError's text.
    """
    text = " ".join(re.split(r"(?<=\.) (?=[A-Z])", next(iter(str(error).splitlines()), ""))[:2])
    said = any(sign in str(error) for sign in ("CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory"))
    return (text or "out of memory") if said or isinstance(error, torch.OutOfMemoryError | MemoryError) else ""


def _precision(device: torch.device, kind: str | None) -> str:
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16"
        return "fp32" if kind in BEYOND_FP16 else "fp16"
    bf16_s, fp32_s = _products_s(torch.bfloat16, torch.float32)
    return "bf16" if bf16_s * 1.3 < fp32_s else "fp32"


def _products_s(*dtypes: torch.dtype) -> list[float]:
    """Seconds of a product as in training in each type, the best of five in turn: what else the machine does meets all.

    bf16 without its own instructions is 4 to 9 times slower, with them 2.5 to 3 times faster. As in training: the
    weight is transposed. As it is, torch 2.13 takes a hundred times as long for it in bf16.
    """
    times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dtypes}
    for _ in range(5):
        for dtype in dtypes:
            x_TI, weight_OI = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
            started = time.perf_counter()
            torch.nn.functional.linear(x_TI, weight_OI)
            times[dtype].append(time.perf_counter() - started)
    return [min(times[dtype]) for dtype in dtypes]


def _fitting(train: TrainConfig, config: dict[str, Any], base_folder: Path) -> dict[str, Any]:
    """Largest micro-batch, by halving the step, whose activations fit; recomputed ones if nothing else does.

    Bytes a token and layer, kept for the backward pass: about 12 hidden and 4 feed-forward widths in the chosen
    numbers (counted on the Llama layer: norms' inputs and outputs, q, k, v, attention out, gate, up, their product).
    Heads that are together wider than the hidden state (Qwen 3) count in its place; benchmarks/activations.py counts.
    """
    free_bytes, _ = torch.cuda.mem_get_info()
    width_bytes = 4 if train.precision == "fp32" else 2
    config = config.get("text_config", config)
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    inner = config.get("intermediate_size", 4 * hidden)
    stored = sum(path.stat().st_size for path in base_folder.glob("*.safetensors"))
    stored_bytes = 4 if config.get("torch_dtype", config.get("dtype")) == "float32" else 2
    budget = (
        0.85 * free_bytes - stored * width_bytes / stored_bytes - (1 << 30)
    )  # 1 GiB: logits chunks, adapter, kernels
    widest = max(hidden, config.get("num_attention_heads", 0) * (config.get("head_dim") or 0))
    layer_bytes = (12 * widest + 4 * inner) * width_bytes
    kept_bytes = {"off": layers * layer_bytes, "on": layers * hidden * width_bytes + layer_bytes}
    modes = list(kept_bytes) if train.recompute == "auto" else [train.recompute]
    for mode in modes:
        fixed = train.micro_batch_tokens
        micro = train.tokens_per_step if fixed == "auto" else fixed
        while fixed == "auto" and micro > train.max_length and micro * kept_bytes[mode] > budget:
            micro = max(train.max_length, micro // 2)
        if micro * kept_bytes[mode] <= budget:
            return {"micro_batch_tokens": micro, "recompute": mode}
    raise ResourceError(
        f"the base and {micro} tokens do not fit into {free_bytes / 1e9:.1f} GB of free GPU memory",
        fix="lower train.max_length or train.micro_batch_tokens, or choose a smaller base",
    )
