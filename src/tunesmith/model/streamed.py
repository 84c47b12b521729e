"""A model in fp32 of which only what computes is in memory: one decoder layer at a time, read from disk.

The classes are transformers' own; a layer's weights come before it computes and go after it. So the 13 GB that
Llama 3.2 3B has in fp32 are computed in two.

Shapes: T tokens of all rows, D hidden width, C words of the vocabulary at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith import machine
from tunesmith.errors import BaseError
from tunesmith.gguf.heads import head_numbers
from tunesmith.model.attention import PACKED, Packing
from tunesmith.model.base import Head, decoder_layers, hidden_states
from tunesmith.weights.tensorfile import TensorInfo, read_index, read_rows, to_f32

META = torch.device("meta")
PART = 1024  # tokens that an MLP computes at a time
PASS_TOKENS = 2048  # of rows that go through at once; the weights are read once a pass
ACTIVATIONS = 8  # of the hidden width, in memory together for all tokens; and of the widest matrix's for a part's
SPARE_BYTES = 512 << 20
Of = TypeVar("Of")
Place = tuple[nn.Module, str, TensorInfo]
"""A module, the name of one of its parameters, and where that lies on disk."""


class StreamedModel:
    """The model of a Hugging Face folder, for forward passes in fp32. Its `model` may be given adapters."""

    def __init__(self, folder: Path) -> None:
        """Make the model without its weights. Raises BaseError where the folder lacks one by transformers' name."""
        machine.give_back_what_is_freed()
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with _NoRoomForWeights():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=PACKED)
        self.model, self.device = model.eval().requires_grad_(False), torch.device("cpu")
        self._infos, self._names = read_index(folder), {module: name for name, module in model.named_modules()}
        self._head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        self._layers = {layer: self._places(layer.modules()) for layer in decoder_layers(model)}
        inside = {self._head, embedding, *(owner for places in self._layers.values() for owner, _, _ in places)}
        self._rest = self._places(module for module in model.modules() if module not in inside)
        self._words = self._info(embedding, "weight")
        tied = self._head.weight is embedding.weight and f"{self._names[self._head]}.weight" not in self._infos
        self._head_weight = self._words if tied else self._info(self._head, "weight")
        for layer in self._layers:
            layer.register_forward_pre_hook(self._fill)
            layer.register_forward_hook(self._empty)
            if isinstance(mlp := getattr(layer, "mlp", None), nn.Module):
                mlp.forward = partial(_in_parts, mlp.forward)
        if odd := [name for name, buffer in model.named_buffers() if buffer.is_meta or name in self._infos]:
            raise BaseError(f"{odd[0]} of the base is stored and is no weight", fix="report this base")
        embedding.padding_idx = None  # counts for gradients only, and is no number of the few words read below
        embedding.register_forward_pre_hook(self._read_words)

    @property
    def vocabulary(self) -> int:
        """Words that the output layer knows."""
        return self._head_weight.shape[0]

    def needed_bytes(self, tokens: int) -> int:
        """About what `hidden` of so many tokens takes at most: a layer while it is read, and its activations."""
        shapes = [[info.shape for _, _, info in places] for places in self._layers.values()]
        layer_bytes = 4 * max(sum(map(prod, of_layer)) for of_layer in shapes)
        widest = max(max(shape) for of_layer in shapes for shape in of_layer)
        activations = ACTIVATIONS * (tokens * self._words.shape[1] + min(tokens, PART) * widest)
        return 2 * layer_bytes + 4 * activations + SPARE_BYTES

    def to(self, device: torch.device) -> None:
        """Compute there. To be called before the first pass."""
        self.device = device
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        for owner, name, info in self._rest:
            setattr(owner, name, self._parameter(info))

    @torch.no_grad()
    def hidden(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Last hidden states [T, D] of rows of token ids, one row after another, in one pass."""
        lengths = tuple(map(len, rows))
        ids_T = torch.tensor(list(chain.from_iterable(rows)), device=self.device)
        positions_T = torch.cat([torch.arange(length) for length in lengths]).to(self.device)
        return hidden_states(self.model, ids_T, positions_T, Packing(lengths, None, max(lengths)))

    def head_pieces(self, words: int) -> Iterator[Head]:
        """The output layer, so many words of the vocabulary at a time."""
        bias = None if getattr(self._head, "bias", None) is None else self._info(self._head, "bias")
        vocabulary = self._head_weight.shape[0]
        for start in range(0, vocabulary, words):
            part = (start, min(start + words, vocabulary))
            yield Head(
                read_f32(self._head_weight, *part, self.device),
                None if bias is None else read_f32(bias, *part, self.device),
                *head_numbers(self.model.config.to_dict()),
            )

    def _places(self, modules: Iterator[nn.Module]) -> list[Place]:
        return [(m, name, self._info(m, name)) for m in modules for name, _ in m.named_parameters(recurse=False)]

    def _info(self, owner: nn.Module, name: str) -> TensorInfo:
        full = f"{self._names[owner]}.{name}"
        if full not in self._infos:
            raise BaseError(f"no weight of the base is stored as {full}", fix="report this base")
        return self._infos[full]

    def _parameter(self, info: TensorInfo) -> nn.Parameter:
        return nn.Parameter(read_f32(info, 0, info.shape[0], self.device), requires_grad=False)

    def _fill(self, layer: nn.Module, arguments: Any) -> None:
        for owner, name, info in self._layers[layer]:
            setattr(owner, name, self._parameter(info))

    def _empty(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        for owner, name, info in self._layers[layer]:
            setattr(owner, name, nn.Parameter(torch.empty(info.shape, device=META), requires_grad=False))

    def _read_words(self, embedding: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        """Give the embedding the rows of the words that are asked for alone, and their numbers among these."""
        words, numbers = arguments[0].unique(return_inverse=True)
        rows = torch.cat([read_f32(self._words, word, word + 1, self.device) for word in words.tolist()])
        embedding.weight = nn.Parameter(rows, requires_grad=False)
        return (numbers,)


def opened(folder: Path, tokens: int) -> StreamedModel | str:
    """The model of a folder, where so many tokens can go through at once; or why they cannot: memory, or the model."""
    try:
        model = StreamedModel(folder)
        device, reason = roomiest(model.needed_bytes(tokens))
    except BaseError as error:  # stored by names of its own, as the experts of a mixture are
        return error.what
    if device is None:
        return reason
    model.to(device)
    return model


def in_passes(rows: Iterable[Of], tokens: Callable[[Of], int]) -> Iterator[list[Of]]:
    """Rows in groups that have PASS_TOKENS tokens at most; one that is longer is alone."""
    now: list[Of] = []
    for row in rows:
        if now and sum(map(tokens, now)) + tokens(row) > PASS_TOKENS:
            yield now
            now = []
        now.append(row)
    yield now


def _in_parts(forward: Callable[[Tensor], Any], states_1TD: Tensor) -> Any:
    """An MLP's forward for some tokens after others: it looks at each alone, and is wide."""
    parts = [forward(part_1TD) for part_1TD in states_1TD.split(PART, dim=1)]
    return torch.cat(parts, dim=1) if isinstance(parts[0], Tensor) else forward(states_1TD)


class _NoRoomForWeights(TorchFunctionMode):
    """Weights, for which torch.empty makes room, have no memory; buffers are computed as ever (rotary frequencies)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": META} if func is torch.empty else {}))


def read_f32(info: TensorInfo, start: int, stop: int, device: torch.device) -> Tensor:
    """Rows start..stop of a stored tensor, in fp32. Raises BaseError for a type that is no float."""
    stored = read_rows(info, start, stop)
    if info.dtype == "BF16":
        return torch.from_numpy(stored).view(torch.bfloat16).to(device, torch.float32)
    return torch.from_numpy(to_f32(stored, info.dtype)).to(device)


def roomiest(needed_bytes: int) -> tuple[torch.device | None, str]:
    """Where so much memory is free: the first GPU, else the CPU, else nowhere, and the reason."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what training no longer uses
        if torch.cuda.mem_get_info()[0] > needed_bytes:
            return torch.device("cuda:0"), ""
    free_bytes = machine.free_memory_bytes()
    if free_bytes > needed_bytes:
        return torch.device("cpu"), ""
    return None, f"it needs {needed_bytes / 1e9:.1f} GB of memory, {free_bytes / 1e9:.1f} GB are free"
