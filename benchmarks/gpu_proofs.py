"""The proofs on a GPU, with the built-in base: how far apart equal things are there, and that planted faults are seen.

Prints a line for each: compiled against eager gradients in bf16 and fp16, with and without dropout; the same where the
compiled layers lose the dropout (must be called a fault); graphs compiled; the merge proof on the GPU and on the CPU.
Usage: python benchmarks/gpu_proofs.py
"""

import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

from tunesmith.errors import ProofError
from tunesmith.gguf.read import convert
from tunesmith.model.adapter import adapter_tensors, save_adapter
from tunesmith.model.base import compile_layers, load_base
from tunesmith.model.batch import Batching
from tunesmith.model.lora import adapted_layers, attach
from tunesmith.proof import compiling
from tunesmith.proof.merged import prove_merged
from tunesmith.proof.packing import prove_packing
from tunesmith.recipe import LoraConfig
from tunesmith.release.merge import merge_weights
from tunesmith.tokens.rows import TokenRows
from tunesmith.weights.locate import locate_base

GPU = torch.device("cuda:0")


def rows_of(lengths):
    """Rows of random tokens, all supervised."""
    ids = np.random.default_rng(0).integers(3, 40000, sum(lengths)).astype(np.int32)
    return TokenRows(ids, np.ones(len(ids), bool), np.cumsum([0, *lengths]), np.array(lengths))


def forget_dropout(model, backend):
    """Compile, but as if there were no dropout."""
    for _, layer in adapted_layers(model):
        layer.dropout = 0.0
    compile_layers(model, backend)


def compiled(base, precision, dropout, compile_with=compile_layers):
    """The compiling proof and the packing proof of a fresh model."""
    model = load_base(base.folder, precision=precision, device=GPU)
    rows, batching = rows_of([300, 40, 500, 60, 900]), Batching(2048, 1024, GPU, kernel=True, static=True)
    packed = prove_packing(model, (rows, batching))
    keys = attach(model, LoraConfig(rank=16, dropout=dropout), seed=0)
    torch._dynamo.utils.counters.clear()
    with mock.patch.object(compiling, "compile_layers", compile_with):
        try:
            said = str(compiling.prove_compiling(model, keys, rows, batching))
        except ProofError as error:
            said = f"caught: {error.what}"
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print(f"{precision}, dropout {dropout}: {packed}; {said}; {graphs} graphs", flush=True)


def merged(base, folder):
    """The merge proof of a random adapter, on the GPU and on the CPU."""
    model, config = load_base(base.folder, precision="fp32", device=torch.device("cpu")), LoraConfig(rank=16)
    attach(model, config, seed=0)
    for _, layer in adapted_layers(model):
        torch.nn.init.normal_(layer.b_OR, std=0.002)  # more breaks the model: docs/log.md, 2026-11-25
    save_file({name: tensor.contiguous() for name, tensor in adapter_tensors(model).items()}, folder / "c.safetensors")
    save_adapter(folder, folder / "c.safetensors", config, base)
    (folder / "merged").mkdir()
    merge_weights(base.folder, folder, folder / "merged")
    for path in base.folder.glob("*.json"):
        (folder / "merged" / path.name).write_bytes(path.read_bytes())
    for on_gpu in (True, False):
        torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        with mock.patch.object(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu):
            proofs = prove_merged(base.folder, folder, folder / "merged", rows_of([512] * 8))
        peak = torch.cuda.max_memory_allocated() / 1e6
        print(f"merge on {'GPU' if on_gpu else 'CPU'}, {time.monotonic() - started:.1f} s, {peak:.0f} MB of the GPU's:")
        print(*(f"  {proof}" for proof in proofs), sep="\n", flush=True)


def main():
    """Print every line."""
    print(torch.cuda.get_device_name(), torch.__version__)
    base = locate_base("builtin:smollm2-135m-instruct", convert)
    for precision in ("bf16", "fp16"):
        for dropout in (0.0, 0.05, 0.1):
            compiled(base, precision, dropout)
        compiled(base, precision, 0.05, forget_dropout)
    with tempfile.TemporaryDirectory() as name:
        merged(base, Path(name))


if __name__ == "__main__":
    main()
