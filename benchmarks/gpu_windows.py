"""Sliding windows on a GPU: rows longer than the window, packed in the kernel, against transformers' own attention.

Prints one JSON line. For small Mistral- and Gemma-3-like models in bf16: the largest and mean relative difference of a
token's logits, packed in the variable-length kernel, from those of the row alone through transformers' sdpa and eager;
how far sdpa and eager are apart, which is what bf16 costs; how far the row would be off without its window; the same of
the adapters' gradients; whether compiled layers keep them; seconds of a forward and backward pass with and without the
window at rows of 8,192 tokens.
Usage: python benchmarks/gpu_windows.py
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.model.attention import has_varlen_kernel
from tunesmith.model.base import head, hidden_states, load_base
from tunesmith.model.batch import Batching
from tunesmith.model.lora import adapted_layers, attach
from tunesmith.model.loss import loss_sum
from tunesmith.proof.compiling import prove_compiling
from tunesmith.proof.packing import prove_packing
from tunesmith.recipe import LoraConfig
from tunesmith.tokens.rows import TokenRows

GPU, WINDOW = torch.device("cuda:0"), 128
SHAPE = {
    "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6, "head_dim": 64,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 16384, "sliding_window": WINDOW,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS = {
    "mistral": {},
    "gemma3_text": {"sliding_window_pattern": 3, "query_pre_attn_scalar": 64, "final_logit_softcapping": 30.0},
}
LENGTHS = [100, 1500, 300, 129, 2000, 67]


def rows_of(lengths):
    """Rows of random tokens, all supervised."""
    ids = np.random.default_rng(0).integers(3, 32000, sum(lengths)).astype(np.int32)
    return TokenRows(ids, np.ones(len(ids), bool), np.cumsum([0, *lengths]), np.array(lengths))


def save_model(folder, kind):
    """A random model whose attention looks at single tokens."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **KINDS[kind]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 or kind != "mistral" else 1.0, 0.06)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits_of_rows(folder, attention, batch, **config):
    """Logits of each row alone, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation=attention, **config
    ).to(GPU)
    spans = [torch.from_numpy(np.flatnonzero(batch.row_of_T == row)).to(GPU) for row in range(len(LENGTHS))]
    return torch.cat([model(batch.ids_T[None, at], use_cache=False).logits[0].float() for at in spans])


def apart(one_TV, other_TV):
    """Largest and mean relative difference of a token's numbers."""
    difference_T = (one_TV - other_TV).norm(dim=1) / other_TV.norm(dim=1)
    return {"largest": round(float(difference_T.max()), 5), "mean": round(float(difference_T.mean()), 6)}


def gradients(folder, rows, *, kernel):
    """Gradients of the adapters over all rows, packed: in the kernel, or by masks."""
    model = load_base(folder, precision="bf16", device=GPU)
    attach(model, LoraConfig(rank=8), seed=0)
    torch.manual_seed(0)
    for _, layer in adapted_layers(model):
        torch.nn.init.normal_(layer.b_OR, std=0.02)
    batch = Batching(8192, 2048, GPU, kernel, static=kernel).micro_batch(rows, list(range(len(rows))))
    hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
    loss_sum(hidden_TD[batch.at_S], head(model), batch.targets_S).backward()
    return [parameter.grad for _, layer in adapted_layers(model) for parameter in (layer.a_RI, layer.b_OR)]


def seconds_of_a_pass(folder, **config):
    """Median of five forward and backward passes through one row of 8,192 tokens in the kernel."""
    model = load_base(folder, precision="bf16", device=GPU)
    for layer in model.modules():
        if hasattr(layer, "sliding_window") and config:
            layer.sliding_window = None
    model.config.sliding_window = config.get("sliding_window", model.config.sliding_window)
    attach(model, LoraConfig(rank=8), seed=0)
    batch = Batching(8192, 8192, GPU, kernel=True, static=True).micro_batch(rows_of([8192]), [0])
    times = []
    for _ in range(8):
        torch.cuda.synchronize()
        started = time.monotonic()
        hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
        loss_sum(hidden_TD[batch.at_S], head(model), batch.targets_S).backward()
        torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return round(sorted(times[3:])[2], 4)


def measure(folder, kind):
    """All figures of one model."""
    save_model(folder, kind)
    rows = rows_of(LENGTHS)
    batching = Batching(8192, 2048, GPU, kernel=True, static=True)
    model = load_base(folder, precision="bf16", device=GPU)
    batch = batching.micro_batch(rows, list(range(len(rows))))
    with torch.no_grad():
        hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
        packed_TV = head(model).logits(hidden_TD[: batch.tokens])
    sdpa_TV, eager_TV = (logits_of_rows(folder, name, batch) for name in ("sdpa", "eager"))
    mine, masked = (gradients(folder, rows, kernel=kernel) for kernel in (True, False))
    proof = prove_packing(model, (rows, batching))
    keys = attach(model, LoraConfig(rank=8, dropout=0.05), seed=0)
    compiled = prove_compiling(model, keys, rows_of([1500, 100]), batching)
    return {
        "packed against sdpa": apart(packed_TV, sdpa_TV),
        "packed against eager": apart(packed_TV, eager_TV),
        "sdpa against eager": apart(sdpa_TV, eager_TV),
        "sdpa without the window": apart(logits_of_rows(folder, "sdpa", batch, sliding_window=16384), sdpa_TV),
        "gradients, kernel against masks": round(
            max(float((a - b).norm() / b.norm()) for a, b in zip(mine, masked, strict=True)), 5
        ),
        "packing proof": [proof.value, proof.limit, proof.positions],
        "compiling proof": [compiled.value, compiled.limit],
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "seconds with the window": seconds_of_a_pass(folder),
        "seconds without": seconds_of_a_pass(folder, sliding_window=None),
    }


def main():
    """Measure each model; one JSON line."""
    assert has_varlen_kernel(GPU, torch.bfloat16), "needs a GPU of compute capability 8.0 or higher"
    found = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "window": WINDOW, "rows": LENGTHS}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            torch._dynamo.utils.counters.clear()
            found[kind] = measure(Path(folder) / kind, kind)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
