"""The adapter in PEFT's file format, in and out."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tunesmith.errors import ResumeError
from tunesmith.model.lora import adapted_layers, attach
from tunesmith.recipe import LoraConfig
from tunesmith.weights.locate import LocatedBase
from tunesmith.weights.peft_files import CONFIG, PREFIX, WEIGHTS, A, B


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """PEFT's names -> the adapter's tensors (not copies), in model order."""
    tensors: dict[str, Tensor] = {}
    for name, layer in adapted_layers(model):
        tensors[f"{PREFIX}{name}{A}"] = layer.a_RI.data
        tensors[f"{PREFIX}{name}{B}"] = layer.b_OR.data
    return tensors


def adapter_digest(model: nn.Module) -> str:
    """sha256 in hex of the model's adapter as it is now; what verify finds by training the same steps again."""
    return tensors_digest(adapter_tensors(model))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 in hex over tensors sorted by name: the name in UTF-8, then the numbers in fp32, little-endian."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def set_adapter(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Write tensors with PEFT's names into the model's adapter. Raises ResumeError if they do not fit."""
    ours = adapter_tensors(model)
    if wrong := sorted(n for n in ours.keys() | tensors.keys() if n not in ours or n not in tensors
                       or ours[n].shape != tensors[n].shape):  # fmt: skip
        raise ResumeError(
            f"the adapter does not fit the model: {len(wrong)} tensors differ, the first is {wrong[0]}",
            fix="use the recipe and base it was trained with",
        )
    for name, tensor in ours.items():
        tensor.copy_(tensors[name])


@contextmanager
@torch.no_grad()
def without_adapter(model: nn.Module) -> Iterator[None]:
    """In the block the model computes as its base does; then it has its adapter again."""
    kept = {name: tensor.clone() for name, tensor in adapter_tensors(model).items()}
    for _, layer in adapted_layers(model):
        layer.b_OR.zero_()
    try:
        yield
    finally:
        set_adapter(model, kept)


def save_adapter(folder: Path, checkpoint: Path, config: LoraConfig, base: LocatedBase) -> None:
    """Write an adapter folder that AutoPeftModelForCausalLM.from_pretrained reads, from a checkpoint's adapter file.

    It names the base by what has these very weights: id and commit on the Hub, else the folder on this machine, which
    for a GGUF file and the built-in base is the one it was unpacked to.
    """
    tensors = load_file(checkpoint)
    targets = sorted({name.removesuffix(".lora_A.weight").rpartition(".")[2] for name in tensors if ".lora_A." in name})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name if base.revision else str(base.folder.resolve()),
        "revision": base.revision,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    (folder / WEIGHTS).write_bytes(save(tensors, {"format": "pt"}))


def attach_saved(model: nn.Module, folder: Path, device: torch.device) -> None:
    """Give the model, whose own weights need not be there, the adapter of a folder."""
    settings = json.loads((folder / CONFIG).read_text())
    config = LoraConfig(rank=settings["r"], alpha=settings["lora_alpha"], targets=tuple(settings["target_modules"]))
    attach(model, config, seed=0)
    for _, layer in adapted_layers(model):
        for name in ("a_RI", "b_OR"):
            empty = torch.empty(getattr(layer, name).shape, device=device)
            setattr(layer, name, nn.Parameter(empty, requires_grad=False))
    set_adapter(model, load_file(folder / WEIGHTS))


def load_adapter(folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """({layer name: (A [R, I], B [O, R])}, scale) of an adapter folder."""
    settings = json.loads((folder / CONFIG).read_text())
    tensors = load_file(folder / WEIGHTS)
    layers = {
        name.removeprefix(PREFIX).removesuffix(A): (a_RI, tensors[name.removesuffix(A) + B])
        for name, a_RI in tensors.items()
        if name.endswith(A)
    }
    return layers, settings["lora_alpha"] / settings["r"]
