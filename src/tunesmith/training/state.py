"""Everything that changes during training, in one object. The learning rate and the order of rows are functions of
the step and are not here."""

import math
import threading
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ProofError
from tunesmith.model.adapter import adapter_tensors, set_adapter
from tunesmith.model.lora import DropoutKeys, adapted_layers
from tunesmith.recipe import EarlyStopping, TrainConfig
from tunesmith.training.score import BITS_PER_BYTE_DEFINITION, HeldOut

INFINITY = float("inf")


@dataclass
class Progress:
    """The part of the state that is plain numbers."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    """Time spent training, all processes of this run together."""
    evaluated_step: int = -1
    """Last step at which the held-out loss was measured."""
    base_loss: float = INFINITY
    """Held-out loss of the base, untouched."""
    best_loss: float = INFINITY
    best_step: int = 0
    base_text_nats: float = INFINITY
    start_loss: float = INFINITY
    """Held-out loss at step 0: the base's, or in a fork that of the adapter that it began with."""
    best_text_nats: float = INFINITY
    bits_per_byte_definition: int = BITS_PER_BYTE_DEFINITION
    """The one this run began with."""
    reference_loss: float = INFINITY
    """Held-out loss that the next one must beat by early_stopping.min_gain."""
    without_gain: int = 0
    """Evaluations in a row that did not."""
    interruptions: int = 0
    """Times this run was resumed."""
    skipped: int = 0
    """Steps in a row whose loss or gradient was not finite, which the loss scaler does not explain."""
    skipped_in_all: int = 0
    """Steps that were not applied, those of fp16's loss scaling too."""
    not_finite: list[int] = field(default_factory=list)
    """The steps that were not applied and that the loss scaler does not explain; they are not trained again."""
    notes: list[str] = field(default_factory=list)
    """What the record must say about this run."""

    @classmethod
    def read(cls, saved: dict[str, Any]) -> Self:
        """As a checkpoint of any version has it: what it lacks is at its default, what is not known here is left."""
        known = {one.name for one in fields(cls)}
        older = {"bits_per_byte_definition": 1, "start_loss": saved.get("base_loss", INFINITY)}
        return cls(**{name: value for name, value in (older | saved).items() if name in known})

    @property
    def base(self) -> HeldOut:
        """What was measured of the base, untouched."""
        return HeldOut(self.base_loss, self.base_text_nats)

    @property
    def best(self) -> HeldOut:
        """What was measured of the best adapter."""
        return HeldOut(self.best_loss, self.best_text_nats)

    @property
    def began_with(self) -> str:
        """What step 0 was, in words."""
        return "the base" if self.start_loss == self.base_loss else "the ancestor"

    def note_base(self, found: HeldOut) -> None:
        """Take in what was measured of the base, untouched."""
        self.base_loss, self.base_text_nats = found.loss, found.text_nats

    def note_held_out(self, found: HeldOut, rule: EarlyStopping | None) -> bool:
        """Take in what was measured at the current step; True if it is the best of a trained adapter."""
        loss = found.loss
        if not math.isfinite(loss):
            raise ProofError(
                f"the held-out loss at step {self.step} is {loss}",
                fix="lower train.lr, or set train.precision to fp32 or bf16; checkpoints made before are whole",
            )
        self.evaluated_step = self.step
        if self.step == 0:
            self.start_loss = self.reference_loss = loss
            if self.base_loss == INFINITY:  # no fork: the model is the base as yet
                self.note_base(found)
            return False
        if rule and loss < self.reference_loss - rule.min_gain:
            self.reference_loss, self.without_gain = loss, 0
        else:
            self.without_gain += 1
        if loss < self.best_loss:
            self.best_loss, self.best_text_nats, self.best_step = loss, found.text_nats, self.step
            return True
        return False

    def stopped_early(self, rule: EarlyStopping | None) -> bool:
        """Whether the held-out loss has not gained for too long."""
        return rule is not None and self.without_gain >= rule.patience


@dataclass
class TrainState:
    """Save this and a resumed run gives the same bits."""

    model: PreTrainedModel
    keys: DropoutKeys
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a step or a measurement is taken in: who holds it finds the state whole, as after a step."""
    applied: Any = None
    """On a GPU: the event after which the last update is done there."""

    def numbers(self) -> dict[str, Any]:
        """The part that goes into JSON."""
        return {"progress": asdict(self.progress), "scaler": self.scaler.state_dict()}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's moments and step counts, by the adapter's tensor names."""
        moments = self.optimizer.state_dict()["state"]
        names = list(adapter_tensors(self.model))
        return {
            f"{names[index]}.{key}": value.contiguous()
            for index, values in moments.items()
            for key, value in values.items()
        }

    def load(self, adapter: dict[str, Tensor], optimizer: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Take on a saved state."""
        set_adapter(self.model, adapter)
        moments: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(adapter_tensors(self.model)):
            found = {
                key.removeprefix(f"{name}."): value for key, value in optimizer.items() if key.startswith(f"{name}.")
            }
            if found:
                moments[index] = found
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.progress = Progress.read(numbers["progress"])
        if numbers["scaler"]:
            self.scaler.load_state_dict(numbers["scaler"])


def new_state(model: PreTrainedModel, keys: DropoutKeys, config: TrainConfig, device: torch.device) -> TrainState:
    """The state before the first step. AdamW as in torch, on the adapter alone."""
    parameters = [p for _, layer in adapted_layers(model) for p in (layer.a_RI, layer.b_OR)]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    return TrainState(model, keys, optimizer, scaler)
