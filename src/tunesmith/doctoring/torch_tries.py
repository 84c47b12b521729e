"""What training computes with, each tried and compared: numbers, attention and torch.compile on every device.

A process of its own (tries.py). Shapes: T tokens, I and O widths of a linear layer, B = 1 row, H heads, K key and value
heads, D head width.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.doctoring.finding import Finding
from tunesmith.doctoring.tries import Try, serve
from tunesmith.machine import free_memory_bytes
from tunesmith.model.attention import has_varlen_kernel, packed_attention
from tunesmith.recipe import Recipe
from tunesmith.training.memory import decide_autos
from tunesmith.weights.tensorfile import read_index

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LIMITS = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
"""Relative difference to the same in fp64: some times the rounding of each, for fp32 that of TF32."""
SLOW = 1.5  # times as slow as fp32 from which on a type is no gain
TOKENS, WIDTH = 256, 512
GPU_TOKENS, GPU_WIDTH = 4096, 2048  # to be timed: of fewer a GPU's time is that of starting its kernels
HEADS = 8
LENGTHS = (37, 64, 11)  # conversations in the packed row
WINDOW = 16
HEAD_WIDTH, SCALE = 64, 64**-0.5
ENOUGH_S = 0.5  # of timing one type: one that is a hundred times slower is known sooner
COMPILE_LIMIT_S = 240.0  # the first time its compiler is built
CUDA_TORCH = "install torch with CUDA: pip install --force-reinstall torch, without an index of CPU builds"
REINSTALL = "install torch again: pip install --force-reinstall 'torch>=2.11'"


def tries_for(job: dict[str, Any]) -> Iterator[Try]:
    """All that is to be tried here. job["gpu"]: the GPU that the driver knows; job["recipe"], job["base"]: its folder,
    where it is on this machine.
    """
    yield Try("numbers", "torch", partial(_torch, job["gpu"]), REINSTALL)
    devices = [torch.device("cpu"), *(torch.device(f"cuda:{index}") for index in range(torch.cuda.device_count()))]
    for device in devices:
        for name in TYPES:
            fix = REINSTALL if name == "fp32" else "leave train.precision at auto, or use another"
            yield Try("numbers", _on(name, device), partial(_numbers, name, device), fix)
        kernel = [dtype for dtype in (torch.bfloat16, torch.float16) if has_varlen_kernel(device, dtype)]
        if kernel:
            name = _on("varlen", device)
            yield Try("numbers", name, partial(_attention, name, device, kernel, True), REINSTALL)
        name = _on("SDPA", device)
        yield Try("numbers", name, partial(_attention, name, device, [torch.float32], False), REINSTALL)
        if device.type == "cuda":
            fix = "set train.deterministic: true, which does not compile"
            yield Try("numbers", _on("compile", device), partial(_compiled, device), fix, COMPILE_LIMIT_S)
    if job["base"]:
        recipe = Recipe.model_validate(job["recipe"])
        yield Try("recipe", "memory", partial(_fits, recipe, Path(job["base"]), devices[min(1, len(devices) - 1)]))


def _on(name: str, device: torch.device) -> str:
    return f"{name} on {'CPU' if device.type == 'cpu' else f'GPU {device.index}'}"


def _short(dtype: torch.dtype) -> str:
    return next(name for name, each in TYPES.items() if each is dtype)


def _torch(gpu: str | None) -> Finding:
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    says = f"{torch.__version__}, built with {built}, {torch.get_num_threads()} threads"
    if gpu and not torch.cuda.is_available():
        return Finding("numbers", "torch", "lacks", f"{says}: it cannot use the {gpu}", CUDA_TORCH)
    seen = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("numbers", "torch", "ok", says + (f", sees {', '.join(seen)}" if seen else ""))


def _numbers(name: str, device: torch.device) -> Finding:
    """A linear layer and attention, forward and backward, against the same in fp64, and timed against fp32."""
    dtype, inputs = TYPES[name], _inputs(TOKENS, WIDTH)
    exact, found = (_step(inputs, *how) for how in ((torch.device("cpu"), torch.float64), (device, dtype)))
    difference = max(map(_difference, found, exact))
    timed = inputs if device.type == "cpu" else [each.to(device) for each in _inputs(GPU_TOKENS, GPU_WIDTH)]
    times = _times_s([partial(_step, timed, device, each) for each in (dtype, torch.float32)], device)
    ratio, facts = times[0] / times[1], {"difference": difference, "seconds": times[0], "fp32_seconds": times[1]}
    done, where = f"right, off by {difference:.0e}", _on(name, device)
    if not difference <= LIMITS[name]:
        says = f"computes wrongly: off by {difference:.1g}, and {LIMITS[name]:g} is its rounding"
        return Finding("numbers", where, "lacks", says, REINSTALL, facts)
    if name == "fp32":
        return Finding("numbers", where, "ok", done, facts=facts)
    if ratio > SLOW:
        return Finding("numbers", where, "note", f"{done}, but takes {ratio:.1f} times as long as fp32", facts=facts)
    speed = f"{1 / ratio:.1f} times as fast as fp32" if ratio < 0.95 else "about as fast as fp32"
    return Finding("numbers", where, "ok", f"{done}, {speed}", facts=facts)


def _inputs(tokens: int, width: int) -> list[Tensor]:
    """[T, I] and the weight of q, k and v, [3 I, I]."""
    generator = torch.Generator().manual_seed(0)
    x_TI = torch.randn(tokens, width, generator=generator)
    return [x_TI, torch.randn(3 * width, width, generator=generator) / width**0.5]


def _step(inputs: list[Tensor], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the gradients of both inputs, of q, k, v = x W and causal attention."""
    x, weight = (each.to(device, dtype, copy=True).requires_grad_() for each in inputs)
    q, k, v = F.linear(x, weight).view(1, len(x), 3, -1, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out.backward(out.detach())  # no mean: its gradients would be below fp16's smallest
    assert x.grad is not None and weight.grad is not None
    return out.detach(), x.grad, weight.grad


def _difference(found: Tensor, exact: Tensor) -> float:
    """Relative to the norm of what is exact; nan stays nan, which is below no limit."""
    return float((found.double().cpu() - exact).norm() / exact.norm())


def _times_s(works: list[Callable[[], object]], device: torch.device) -> list[float]:
    """Seconds of each, the best of at most five in turn, so that what else the machine does meets all."""
    best = [float("inf")] * len(works)
    began = time.perf_counter()
    for _ in range(5):
        for index, work in enumerate(works):
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[index] = min(best[index], time.perf_counter() - started)
        if time.perf_counter() - began > ENOUGH_S:
            break
    return best


def _attention(name: str, device: torch.device, dtypes: list[torch.dtype], kernel: bool) -> Finding:
    """Packed conversations, with and without a window, against plain attention over the whole row with a mask."""
    shape, generator = (1, HEADS, sum(LENGTHS), HEAD_WIDTH), torch.Generator().manual_seed(0)
    query = torch.randn(shape, generator=generator)
    key, value = (torch.randn(1, HEADS // 2, *shape[2:], generator=generator) for _ in range(2))
    bounds = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32, device=device)
    kernels: dict[str, Any] = {"cu_seq_lens_q": bounds, "max_length_q": max(LENGTHS)}
    how = kernels if kernel else {"conversation_lengths": LENGTHS}
    worst = dict.fromkeys(map(_short, dtypes), 0.0)
    for window, dtype in itertools.product((None, WINDOW), dtypes):
        packed = partial(_packed, window=window, **how)
        found = _gradients(packed, query, key, value, device, dtype)
        exact = _gradients(partial(_plain, window=window), query, key, value, torch.device("cpu"), torch.float64)
        worst[_short(dtype)] = max(worst[_short(dtype)], *map(_difference, found, exact))
    shown = ", ".join(f"{each} off by {difference:.0e}" for each, difference in worst.items())
    if not all(difference <= LIMITS[each] for each, difference in worst.items()):
        return Finding("numbers", name, "lacks", f"differs from plain attention: {shown}", REINSTALL, worst)
    return Finding("numbers", name, "ok", f"packed = plain attention ({shown})", facts=worst)


def _packed(query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, window: int | None, **how: Any) -> Tensor:
    """As training computes it, [B, T, H, D]."""
    inputs = (query_BHTD, key_BKTD, value_BKTD)
    return packed_attention(nn.Module(), *inputs, None, scaling=SCALE, sliding_window=window, **how)[0]


def _gradients(
    attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Output and gradients of the three."""
    inputs = [each.to(device, dtype, copy=True).requires_grad_() for each in (query, key, value)]
    out = attend(*inputs)
    out.backward(out.detach())
    return [out.detach(), *(each.grad for each in inputs if each.grad is not None)]


def _plain(query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, window: int | None) -> Tensor:
    """softmax(q k / sqrt(D)) v with a mask, [B, T, H, D]: the definition."""
    key, value = (each.repeat_interleave(2, dim=1) for each in (key_BKTD, value_BKTD))
    of_T = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place_T = torch.arange(sum(LENGTHS))
    back_TT = place_T[:, None] - place_T
    sees_TT = (of_T[:, None] == of_T) & (back_TT >= 0) & (back_TT < (window or sum(LENGTHS)))
    scores = (query_BHTD @ key.transpose(2, 3) * SCALE).masked_fill(~sees_TT, float("-inf"))
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


def _compiled(device: torch.device) -> Finding:
    """A small module, forward and backward, compiled and not."""
    name = _on("compile", device)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64)).to(device)
    x = torch.randn(32, 64, device=device)
    started, results = time.perf_counter(), list[list[Tensor]]()
    for each in (module, torch.compile(module)):
        module.zero_grad(set_to_none=True)
        out = each(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
    took_s = time.perf_counter() - started
    worst = max(_difference(found, exact.double().cpu()) for exact, found in zip(*results, strict=True))
    if not worst <= 1e-2:  # TF32's rounding
        fix = "set train.deterministic: true, which does not compile"
        return Finding("numbers", name, "lacks", f"compiled code differs by {worst:.1g}", fix)
    return Finding("numbers", name, "ok", f"compiled = eager (off by {worst:.0e}), in {took_s:.0f} s")


def _fits(recipe: Recipe, base: Path, device: torch.device) -> Finding:
    """What the plan of training says of this device's memory. Raises ResourceError where it does not fit."""
    train = decide_autos(recipe, base, device).train
    numbers = f"{train.precision}, {train.micro_batch_tokens:,} tokens at once"
    facts = {"precision": train.precision, "device": str(device), "micro_batch_tokens": train.micro_batch_tokens}
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        says = f"{numbers}, recompute {train.recompute}, in {free / 1e9:.1f} GB of free GPU memory"
        return Finding("recipe", "memory", "ok", says, facts=facts)
    count = sum(prod(info.shape) for info in read_index(base).values())
    needed, free = count * (4 if train.precision == "fp32" else 2), free_memory_bytes()
    says = f"the base takes {needed / 1e9:.2f} GB of memory, {free / 1e9:.1f} GB are free"
    if needed > free:
        fix = "end other programs, or choose a smaller base"
        return Finding("recipe", "memory", "lacks", f"{numbers}; {says}", fix, facts)
    return Finding("recipe", "memory", "ok", f"{numbers}; {says}", facts=facts)


if __name__ == "__main__":
    serve(tries_for)
