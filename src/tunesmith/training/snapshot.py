"""A copy of the training state that training does not change any more: taken in a moment, written later."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.files import DIGESTS, digest_folder
from tunesmith.model.adapter import adapter_tensors
from tunesmith.training.saved import ADAPTER, FORMAT, OPTIMIZER, STATE
from tunesmith.training.state import TrainState
from tunesmith.weights.tensorfile import TensorWriter


@dataclass(frozen=True)
class Snapshot:
    """The state after one step."""

    step: int
    evaluated_step: int
    best_step: int
    adapter: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    """What state.json says."""
    taken: Any
    """On a GPU: the event after which the copies there are whole."""

    def on_host(self) -> "Snapshot":
        """The same in main memory; waits for nothing that the GPU was given after the copies were made."""
        if not self.taken:
            return self
        stream = torch.cuda.Stream()
        stream.wait_event(self.taken)
        with torch.cuda.stream(stream):
            return replace(self, adapter=_fetched(self.adapter), optimizer=_fetched(self.optimizer), taken=None)

    def write(self, folder: Path) -> None:
        """Write the files of a checkpoint into an empty folder."""
        here = self.on_host()
        write_tensors(folder / ADAPTER, here.adapter)
        write_tensors(folder / OPTIMIZER, here.optimizer)
        (folder / STATE).write_text(json.dumps(self.numbers, indent=1) + "\n")
        (folder / DIGESTS).write_text(json.dumps(digest_folder(folder), indent=1) + "\n")


def _fetched(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def take(state: TrainState, about: Mapping[str, Any]) -> Snapshot:
    """Copy the state as it is after its last whole step, where it lies: on a GPU that costs its stream a moment.

    `about`: what state.json says beside the state's own numbers. Where the GPU has no room for a copy, it is made in
    main memory. By the thread that trains.
    """
    try:
        copies = _copies(state, torch.clone)
    except torch.OutOfMemoryError:
        copies = _copies(state, _to_host)
    on_gpu = any(tensor.is_cuda for tensor in copies[0].values())
    taken = torch.cuda.Event() if on_gpu else None
    if taken:
        taken.record()
    return _snapshot(state, copies, about, taken)


def take_beside(state: TrainState, about: Mapping[str, Any]) -> Snapshot:
    """As `take`, by a thread that does not train, under the state's lock: it waits for the last update alone, and for
    nothing that the GPU has been given to compute since. Plain copies to main memory need none of its processors, which
    may be busy for long.
    """
    if state.applied is None:
        return take(state, about)
    stream = torch.cuda.Stream()
    stream.wait_event(state.applied)
    with torch.cuda.stream(stream):
        copies = _copies(state, _to_host)
        stream.synchronize()
        return _snapshot(state, copies, about, None)  # in here too: fp16's scale is read from the GPU


def _copies(state: TrainState, copied: Callable[[Tensor], Tensor]) -> list[dict[str, Tensor]]:
    parts = (adapter_tensors(state.model), state.optimizer_tensors())
    return [{name: copied(tensor) for name, tensor in part.items()} for part in parts]


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.cpu() if tensor.is_cuda else tensor.clone()


def _snapshot(state: TrainState, copies: list[dict[str, Tensor]], about: Mapping[str, Any], taken: Any) -> Snapshot:
    at = state.progress
    numbers = {"format": FORMAT, **state.numbers(), **about}
    return Snapshot(at.step, at.evaluated_step, at.best_step, copies[0], copies[1], numbers, taken)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file of fp32 tensors in main memory, one at a time: no second copy of all is there."""
    entries = {name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()}
    with TensorWriter(path, entries) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.numpy())
