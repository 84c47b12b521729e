"""Load a base model for training: frozen, in the chosen numbers, with packed attention.

Shapes: T tokens of a flat row, S positions, D hidden width, V vocabulary.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from tunesmith.errors import BaseError
from tunesmith.gguf.heads import head_numbers
from tunesmith.model.attention import PACKED, Packing

F16_END = 65504.0
OF_A_LAYER = re.compile(r"\.\d+\..*\.weight$")  # and not of another head, as a reward model has
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Head:
    """The output layer, or its part for some words: logits = cap * tanh(scale * (h W^T + b) / cap)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None
    """None leaves the tanh out."""

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Logits [S, V] in fp32."""
        return self.bend(F.linear(hidden_SD, self.weight_VD, self.bias_V).float())

    def bend(self, logits_SV: Tensor) -> Tensor:
        """Scale and cap what the linear layer gives, in place."""
        if self.scale != 1:
            logits_SV.mul_(self.scale)
        return logits_SV if self.cap is None else logits_SV.div_(self.cap).tanh_().mul_(self.cap)


def load_base(folder: Path, *, precision: str, device: torch.device) -> PreTrainedModel:
    """The model of a Hugging Face folder, frozen; no code of the folder runs.

    Raises BaseError if transformers cannot read it, would fill in a weight that is missing with random numbers, or
    would leave out one that is there.
    """
    disable_progress_bar()  # loading takes a second; the bar would garble our own lines
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[precision],
            attn_implementation=PACKED,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # those of config.json's fields have a class of their own, below Exception
        raise BaseError(
            f"transformers cannot load the base: {error}",
            fix="fetch the model again if a file of it was changed or cut; otherwise use another base",
            where=str(folder),
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise BaseError(
            f"the weights lack {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            fix="fetch the model again, or use another base: they would be random numbers",
            where=str(folder),
        )
    if left_out := sorted(name for name in found["unexpected_keys"] if OF_A_LAYER.search(name)):
        raise BaseError(
            f"the weights have {left_out[0]}"
            + (f" and {len(left_out) - 1} more" if left_out[1:] else "")
            + f", which {type(model).__name__} as config.json describes it has no place for",
            fix="fetch the model again, or use another base: a part of it would be left out",
            where=str(folder),
        )
    model.requires_grad_(False)
    return model.eval().to(device)


def refuse_odd_numbers(model: PreTrainedModel, folder: Path, precision: str, *, in_f16: bool) -> None:
    """Raise BaseError for a weight of the base that is no number, or (`in_f16`) one that F16 does not hold.

    What such a base computes would be blamed on packing, and on training where it is exported.
    """
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or not weight.numel():
            continue
        largest = float(torch.stack(torch.aminmax(weight.detach())).abs().max())  # a NaN stays one
        if not math.isfinite(largest):
            raise BaseError(
                f"the base's {name} has a number that is {largest} in {precision}",
                fix="fetch the base again; if it is so there too, set train.precision to fp32, or use another base",
                where=str(folder),
            )
        if in_f16 and weight.dim() == 2 and largest > F16_END:  # what is no matrix is F32 in a GGUF
            raise BaseError(
                f"the base's {name} has a number of size {largest:g}, and F16, from which each GGUF is made, ends at "
                f"{F16_END:,.0f}",
                fix="use another base; or write `export: {gguf: []}` in the recipe to train and merge it without one",
                where=str(folder),
            )


def backbone(model: PreTrainedModel) -> nn.Module:
    """The model without its head: token ids in, last hidden state out."""
    inner = model.base_model
    if inner is model or model.get_output_embeddings() is None:
        raise BaseError(f"{type(model).__name__} is no causal language model with a head", fix="use an instruct model")
    return inner


def head(model: PreTrainedModel) -> Head:
    """The output layer, with what the model's class does to its logits."""
    linear = model.get_output_embeddings()
    return Head(linear.weight, getattr(linear, "bias", None), *head_numbers(model.config.to_dict()))


def hidden_states(model: PreTrainedModel, ids_T: Tensor, positions_T: Tensor, packing: Packing) -> Tensor:
    """Last hidden state [T, D] of one flat row of packed conversations."""
    output = backbone(model)(input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False, **packing.kwargs())
    return output.last_hidden_state[0]


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that are compiled, and computed again in the backward pass, one by one."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def recompute_layers(model: PreTrainedModel) -> None:
    """Keep only the inputs of each layer and compute the rest again in the backward pass (Chen et al. 2016)."""
    older = not hasattr(model, "activation_checkpointing_enable")  # its name before transformers 5.24
    enable = model.gradient_checkpointing_enable if older else model.activation_checkpointing_enable
    enable({"use_reentrant": False})
    for layer in decoder_layers(model):
        layer.training = True  # the layer's own switch for it; its children stay in eval mode, so no torch dropout runs


def compile_layers(model: PreTrainedModel, backend: str) -> None:
    """Compile each decoder layer by itself: seconds instead of minutes, and one piece of code for all of them."""
    torch.compiler.reset()  # what an earlier model of this process left would count against the limit of variants
    for layer in decoder_layers(model):
        layer.compile(backend=backend)
