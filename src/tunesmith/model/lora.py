"""LoRA: y = W x + s B A d(x), s = alpha / rank, d = dropout   (Hu et al. 2021, equation 3).

The base weight W is frozen, so its gradient is never formed; forward and backward write the low-rank part into the
output of the base product instead of adding two tensors.

Shapes: T tokens (all leading dimensions), I input width, O output width, R rank.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.errors import BaseError
from tunesmith.recipe import LoraConfig
from tunesmith.recipe_problems import no_such_target
from tunesmith.weights.tensorfile import read_index

MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64 (Steele et al. 2014)
SIGNED = [m - (1 << 64) if m >= 1 << 63 else m for m in MIX]  # the same bits as torch's signed 64-bit integers


@dataclass
class DropoutKeys:
    """What the dropout of the current micro-batch depends on, shared by all layers of a model."""

    keys_T: Tensor | None = None
    """One integer a token, made of seed, step, conversation and position; None switches dropout off."""


def mix(bits: Tensor) -> Tensor:
    """Scramble 64-bit integers so that nearby ones share nothing (splitmix64; sign-extending shifts serve as well)."""
    bits = (bits ^ (bits >> 30)) * SIGNED[1]
    bits = (bits ^ (bits >> 27)) * SIGNED[2]
    return bits ^ (bits >> 31)


def channel_bits(width: int, device: torch.device) -> Tensor:
    """64 bits for each channel [width]. Made outside the compiled layer: torch 2.11's Triton code counts channels in 32
    bits and does not compile the product.
    """
    return torch.arange(width, device=device) * SIGNED[0]


def keep_mask(keys_T: Tensor, layer: Tensor, channels_I: Tensor, dropout: float, dtype: torch.dtype) -> Tensor:
    """[T, I] of 0 and 1 / (1 - dropout): a function of token key, layer (one int64) and channel (its bits) alone.

    So it is the same for any packing, number of ranks, and when activations are computed again.
    """
    bits_TI = mix(mix(keys_T + layer * 0x632BE5AB)[:, None] ^ channels_I[None, :])
    kept = (bits_TI & 0xFFFFFF) >= int(dropout * (1 << 24))
    return kept.to(dtype) / (1 - dropout)


class _LoraProduct(torch.autograd.Function):
    """W x + bias + s B A (m * x) with gradients for x, A and B only."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - a Function takes its tensors one by one
        ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor,
        scale: float, mask_TI: Tensor | None,
    ) -> Tensor:  # fmt: skip
        low_TR = (x_TI if mask_TI is None else x_TI * mask_TI) @ a_RI.T
        out_TO = F.linear(x_TI, weight_OI, bias_O)
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, low_TR, mask_TI)
        ctx.scale = scale
        return out_TO.addmm_(low_TR, b_OR.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI, a_RI, b_OR, low_TR, mask_TI = ctx.saved_tensors
        (grad_TO,) = grads
        grad_low_TR = (grad_TO @ b_OR).mul_(ctx.scale)
        grad_b_OR = (grad_TO.T @ low_TR).mul_(ctx.scale)
        grad_a_RI = grad_low_TR.T @ (x_TI if mask_TI is None else x_TI * mask_TI)
        grad_x_TI = None
        if ctx.needs_input_grad[0]:  # not in the first layer: the embedding is frozen
            grad_x_TI = grad_TO @ weight_OI
            if mask_TI is None:
                grad_x_TI.addmm_(grad_low_TR, a_RI)
            else:
                grad_x_TI.addcmul_(grad_low_TR @ a_RI, mask_TI)
        return grad_x_TI, None, None, grad_a_RI, grad_b_OR, None, None


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trainable low-rank update. A and B are fp32 whatever the base computes in."""

    layer: Tensor
    channels_I: Tensor

    def __init__(self, base: nn.Linear, config: LoraConfig, *, layer: int, keys: DropoutKeys) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = config.alpha / config.rank
        self.dropout, self.keys = config.dropout, keys
        device = base.weight.device
        # a tensor, since torch compiles a layer anew for each value of a Python number; computed, so it is not saved
        self.register_buffer("layer", torch.tensor(layer, device=device), persistent=False)
        self.register_buffer("channels_I", channel_bits(base.in_features, device), persistent=False)
        self.a_RI = nn.Parameter(torch.empty(config.rank, base.in_features, device=device))
        self.b_OR = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))  # step 0 equals the base

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Base output plus the scaled update, in the numbers of the input."""
        x_TI = x_BTI.reshape(-1, x_BTI.shape[-1])
        mask_TI = None
        if self.dropout and self.keys.keys_T is not None:
            mask_TI = keep_mask(self.keys.keys_T, self.layer, self.channels_I, self.dropout, x_TI.dtype)
        a_RI, b_OR = self.a_RI.to(x_TI.dtype), self.b_OR.to(x_TI.dtype)
        if torch.compiler.is_compiling():  # torch 2.11 loses the gradients of A and B of a Function it compiles
            low_TR = (x_TI if mask_TI is None else x_TI * mask_TI) @ a_RI.T
            out_TO = F.linear(x_TI, self.base.weight, self.base.bias) + self.scale * (low_TR @ b_OR.T)
        else:
            out_TO = _LoraProduct.apply(x_TI, self.base.weight, self.base.bias, a_RI, b_OR, self.scale, mask_TI)
        return out_TO.view(*x_BTI.shape[:-1], -1)

    @torch.no_grad()
    def merge_in_place(self) -> None:
        """Add the update to the base weight, in fp32, and take it out of the adapter."""
        self.base.weight.copy_(merged_weight(self.base.weight, self.a_RI, self.b_OR, self.scale))
        self.b_OR.zero_()


def merged_weight(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """W + s B A in fp32, for a whole weight or some of its rows (with the same rows of B)."""
    return torch.addmm(weight_OI.float(), b_OR.float(), a_RI.float(), alpha=scale)


def attach(model: nn.Module, config: LoraConfig, *, seed: int) -> DropoutKeys:
    """Put an adapter on every linear layer that `config.targets` names, in place, and freeze all else.

    A is drawn from (seed, name of the layer), the distribution that nn.Linear starts with; so a layer starts the same
    whichever others are adapted. Raises RecipeError for a target that matches nothing.
    """
    found = dict(_targets(model, config))
    model.requires_grad_(False)
    keys = DropoutKeys()
    for layer, (name, linear) in enumerate(found.items()):
        adapted = LoraLinear(linear, config, layer=layer, keys=keys)
        generator = torch.Generator().manual_seed((seed << 32) ^ _name_seed(name))
        bound = math.sqrt(3) * math.sqrt(1 / (3 * linear.in_features))  # kaiming uniform with a = sqrt(5), as in peft
        start_RI = torch.empty(adapted.a_RI.shape).uniform_(-bound, bound, generator=generator)
        adapted.a_RI.data.copy_(start_RI)
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent).register_module(child, adapted)
    return keys


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Name and layer of everything that has an adapter, in model order."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def refuse_unmergeable(model: nn.Module, folder: Path) -> None:
    """Raise BaseError for a layer with an adapter whose weights have another name in the base: merge finds none."""
    stored = read_index(folder)
    if other := [name for name, _ in adapted_layers(model) if f"{name}.weight" not in stored]:
        raise BaseError(
            f"transformers has the layer {other[0]}, and the base's weights have none of that name: what is trained "
            "could not be merged into them",
            fix="load the base with transformers, save it with save_pretrained, and use that folder as the base",
            where=str(folder),
        )


def _targets(model: nn.Module, config: LoraConfig) -> Iterator[tuple[str, nn.Linear]]:
    get_head = getattr(model, "get_output_embeddings", lambda: None)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not get_head()}
    if config.targets == "all-linear":
        yield from linears.items()
        return
    last = {name: name.rpartition(".")[2] for name in linears}
    if missing := sorted(set(config.targets) - set(last.values())):
        raise no_such_target(missing, set(last.values()))
    yield from ((name, linear) for name, linear in linears.items() if last[name] in config.targets)


def _name_seed(name: str) -> int:
    """32 bits of a name, the same in every process (Python's own hash is not): FNV-1a."""
    bits = 0x811C9DC5
    for byte in name.encode():
        bits = (bits ^ byte) * 0x01000193 & 0xFFFFFFFF
    return bits
