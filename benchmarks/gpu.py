"""Training on one GPU with Llama-3.2 shapes and random weights: speed, memory, and that every path computes the same.

Needs no network, tokenizer or data: rows are random ids with the lengths of chat data (log-normal, mean about 300).
Usage: python benchmarks/gpu.py [--shape 1b|3b] [--steps N]
"""

import argparse
import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.model.base import head, hidden_states, load_base
from tunesmith.model.batch import Batching
from tunesmith.model.loss import loss_sum
from tunesmith.recipe import Recipe
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.rows import RowWriter, load_rows
from tunesmith.training.stop import Paused
from tunesmith.training.train import train
from tunesmith.weights.locate import LocatedBase

SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
}


def make_base(folder, shape):
    """A random Llama 3.2 in bf16."""
    config = LlamaConfig(
        **SHAPES[shape], vocab_size=128256, num_key_value_heads=8, head_dim=64 if shape == "1b" else 128,
        tie_word_embeddings=True, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip
    with torch.device("cuda"):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return LocatedBase(f"random-{shape}", folder, shape, None, None)


def make_rows(run, rows, max_length):
    """Random conversations: the second 60 % of each row is supervised."""
    rng = np.random.default_rng(0)

    def work(draft):
        with RowWriter(draft) as writer:
            for length in np.clip(rng.lognormal(5.4, 0.8, rows), 16, max_length).astype(int):
                ids = rng.integers(0, 128000, length).tolist()
                writer.add(ids, [i >= 0.4 * length for i in range(length)], 4 * length)
        return {"train_rows": rows - 32, "held_out_rows": 32}

    commit_stage(run.data, {"rows": rows, "max_length": max_length}, {}, work)


def measure(name, base, run, steps, dropout=0.0, **settings):
    """Train `steps` steps; median tokens per second after the first five, peak memory, and all losses."""
    defaults = {"max_length": 2048, "evaluate_every": "1000 steps", "stop_after": f"{steps} steps", "epochs": 99}
    recipe = Recipe(
        name="gpu", base=base.name, data={"sources": [{"path": "x"}]}, train=defaults | settings,
        lora={"dropout": dropout}, checkpoint={"every": "1000 steps"},
    )  # fmt: skip
    for folder in (run.checkpoints, run.adapter):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (run.metrics, run.recipe):
        file.unlink(missing_ok=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    torch._dynamo.utils.counters.clear()
    with contextlib.suppress(Paused):
        train(recipe, run, base)
    lines = [line for line in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in line]
    speeds = sorted(line["tokens_per_s"] for line in lines[5:])
    losses = [line["loss"] for line in lines]
    print(
        f"| {name} | {speeds[len(speeds) // 2]:.0f} | {torch.cuda.max_memory_allocated() / 1e9:.1f} | "
        f"{lines[0]['seconds']:.1f} | {losses[0]:.4f} | {losses[-1]:.4f} | {time.monotonic() - started:.0f} | "
        f"{torch._dynamo.utils.counters['stats']['unique_graphs']} |",
        flush=True,
    )
    return losses


@torch.no_grad()
def same_loss(base, rows):
    """Held-out loss of a few rows by each backend and in each kind of number."""
    paths = [("fp32", False, False), ("bf16", True, False), ("bf16", True, True), ("bf16", False, False)]
    for precision, kernel, static in [*paths, ("fp16", True, False), ("fp16", False, False)]:
        model = load_base(base.folder, precision=precision, device=torch.device("cuda:0"))
        batching = Batching(4096, 2048, torch.device("cuda:0"), kernel, static)
        total, count = 0.0, 0
        for batch in batching.micro_batches(rows, range(12)):
            hidden_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
            total += loss_sum(hidden_TD[batch.at_S], head(model), batch.targets_S).item()
            count += len(batch.at_S)
        print(f"loss by {precision}, kernel {kernel}, padded {static}: {total / count:.5f}", flush=True)
        del model


def main():
    """Print one table row for each setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    with tempfile.TemporaryDirectory() as folder:
        base, run = make_base(Path(folder) / "base", options.shape), Run(Path(folder) / "run")
        make_rows(run, 4000, 2048)
        same_loss(base, load_rows(run.data)[0])
        print("| setting | tokens/s | peak GB | first step s | first loss | last loss | whole s | graphs |")
        print("|---|---|---|---|---|---|---|---|")
        steps = options.steps
        measure("auto (bf16, compiled)", base, run, steps)
        measure("auto, dropout 0.1", base, run, steps, dropout=0.1)
        measure("bf16, micro-batch 4096", base, run, steps, micro_batch_tokens=4096)
        measure("bf16, recompute", base, run, steps, recompute="on", micro_batch_tokens=16384)
        measure("fp16 (as on a T4, with the kernel)", base, run, steps, precision="fp16")
        measure("bf16, deterministic (no kernel, not compiled)", base, run, 10, deterministic=True)
        twice = [measure("the same again", base, run, 10, deterministic=True) for _ in range(2)]
        print("deterministic runs equal:", twice[0] == twice[1])


if __name__ == "__main__":
    main()
