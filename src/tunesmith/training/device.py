"""The device that trains: which one, under which conditions the bits are the same, how much memory was used."""

import os
from typing import Any

import torch

from tunesmith import machine
from tunesmith.recipe import TrainConfig


def pick_device() -> torch.device:
    """The first CUDA GPU, else the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def conditions(train: TrainConfig, device: torch.device) -> dict[str, Any]:
    """What must be the same for the same bits, beside the recipe."""
    versions = machine.versions()
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "micro_batch_tokens": train.micro_batch_tokens,
        "recompute": train.recompute,
        "deterministic": train.deterministic,
        "versions": {name: versions[name] for name in ("torch", "transformers", "tunesmith") if name in versions},
    }


def device_name(device: torch.device) -> str:
    """Such as "NVIDIA H100 80GB HBM3" or "CPU AMD EPYC"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {machine.processor()}"


def set_determinism(train: TrainConfig) -> None:
    """Only kernels that give the same bits each time, where the recipe asks for it."""
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS, read at its first call
    torch.use_deterministic_algorithms(train.deterministic)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: of the GPU, or of this process on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else machine.peak_memory_bytes()
