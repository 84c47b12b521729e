"""Peak memory of merge, its proof and F16 export on a model of Llama-3.2-3B's shape with random bf16 weights.

The limit of what is written is three times the largest tensor plus 500 MB; that of the proof, on eight held-out rows of
512 tokens, 1.5 GB above the imports. Needs 20 GB of disk, which it frees again; on two cores about half an hour. With
a GPU the proof runs there, and its memory is shown too.
usage: python benchmarks/export_memory.py [FOLDER]     rows for benchmarks/RESULTS.md on standard output
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import numpy as np

from tunesmith.gguf.read import convert
from tunesmith.gguf.write import About, write_gguf
from tunesmith.machine import peak_memory_bytes, processor
from tunesmith.recipe import ChatConfig
from tunesmith.tokens.rows import TokenRows
from tunesmith.weights.locate import locate_base
from tunesmith.weights.tensorfile import TensorWriter, from_f32

HIDDEN, WIDE, LAYERS, HEADS, GROUPS, HEAD_DIM, VOCABULARY = 3072, 8192, 28, 24, 8, 128, 128256
RANK, ROWS = 16, 2048  # rows of random numbers written at a time
LIMIT_EXTRA_BYTES, LIMIT_PROOF_BYTES = 500e6, 1.5e9
ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": HEAD_DIM,
    "vocab_size": VOCABULARY, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_parameters": ROPE,
    "tie_word_embeddings": True, "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LINEARS = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN), "self_attn.k_proj": (GROUPS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (GROUPS * HEAD_DIM, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE),
}  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the model."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in LINEARS.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{norm}.weight"] = (HIDDEN,)
    return found | {"model.norm.weight": (HIDDEN,)}


def write_random(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str) -> None:
    """A safetensors file of small random numbers, a few rows at a time."""
    rng = np.random.default_rng(0)
    with TensorWriter(path, {name: (dtype, shape) for name, shape in tensors.items()}) as writer:
        for name, shape in tensors.items():
            for start in range(0, shape[0], ROWS):
                rows = (min(ROWS, shape[0] - start), *shape[1:])
                writer.write(name, from_f32(rng.standard_normal(rows, dtype=np.float32) * np.float32(0.02), dtype))


def make(folder: Path) -> None:
    """The base, with the tokenizer of the built-in one, and an adapter on every linear layer."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(locate_base("builtin:smollm2-135m-instruct", convert).folder / name, base / name)
    (base / "config.json").write_text(json.dumps(CONFIG))
    write_random(base / "model.safetensors", shapes(), "BF16")
    pairs: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        for name, (out, width) in LINEARS.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            pairs |= {f"{module}.lora_A.weight": (RANK, width), f"{module}.lora_B.weight": (out, RANK)}
    write_random(adapter / "adapter_model.safetensors", pairs, "F32")
    targets = [name.rpartition(".")[2] for name in LINEARS]
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "lora_dropout": 0.0, "target_modules": targets}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))


def held_out() -> TokenRows:
    """Eight rows of 512 random tokens, the most that the proof looks at."""
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 8 * 512).astype(np.int32)
    return TokenRows(tokens, np.ones(len(tokens), bool), np.arange(9) * 512, np.full(8, 512))


def child(what: str, folder: Path) -> None:
    """Do one of the steps and print seconds, and peak bytes before and after it."""
    gpu_bytes, said = 0, []
    if what != "F16":  # torch is no part of the export
        from tunesmith.proof.merged import prove_merged
        from tunesmith.release.merge import merge_weights
    before, started = peak_memory_bytes(), time.monotonic()
    if what == "merge":
        merge_weights(folder / "base", folder / "adapter", folder / "merged")
        shutil.copyfile(folder / "base" / "config.json", folder / "merged" / "config.json")
    elif what == "proof":
        import torch

        proofs = prove_merged(folder / "base", folder / "adapter", folder / "merged", held_out())
        said = [str(proof) for proof in proofs]
        gpu_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    else:
        write_gguf(folder / "base", folder / "F16.gguf", "F16", About("3b", "random", None, ChatConfig()))
    found = {"seconds": time.monotonic() - started, "before": before, "peak": peak_memory_bytes(), "gpu": gpu_bytes}
    print(json.dumps(found | {"said": said}))


def main(place: str) -> int:
    """Make the model, run each step, print the rows; 1 if a limit is broken or a proof was not done."""
    largest = max(prod(shape) for shape in shapes().values()) * 2
    failed = False
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        make(folder)
        (folder / "merged").mkdir()
        size = os.path.getsize(folder / "base" / "model.safetensors")
        print(f"model of {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB, on {processor()}")
        print(
            "| step | seconds | peak MB | of it imports MB | limit MB | GPU MB |\n|---|---|---|---|---|---|", flush=True
        )
        for what in ("merge", "proof", "F16"):
            command = [sys.executable, __file__, "--child", what, str(folder)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            limit = found["before"] + LIMIT_PROOF_BYTES if what == "proof" else 3 * largest + LIMIT_EXTRA_BYTES
            failed |= found["peak"] > limit or any("NOT proved" in line for line in found["said"])
            memory = [f"{found[key] / 1e6:.0f}" for key in ("peak", "before")]
            print(
                f"| {what} | {found['seconds']:.0f} | {' | '.join(memory)} | {limit / 1e6:.0f} "
                f"| {found['gpu'] / 1e6:.0f} |",
                *found["said"], sep="\n", flush=True,
            )  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()))
