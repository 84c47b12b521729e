"""An adapter in PEFT's format as a GGUF file that llama.cpp puts on the base's GGUF (`--lora`), written without torch.

Names and metadata: llama.cpp's convert_lora_to_gguf.py; the scale is alpha over the rank, which is B's row length.
Rows of B are ordered as those of the weight they add to. Shapes: R rank, I and O input and output width of a layer.
"""

import json
from pathlib import Path

import gguf

from tunesmith.errors import BaseError
from tunesmith.gguf.families import read_config
from tunesmith.gguf.shapes import gguf_name, head_rows
from tunesmith.gguf.write import About, Tensor, list_tensors, write_out
from tunesmith.weights.peft_files import CONFIG, PREFIX, WEIGHTS, A, B
from tunesmith.weights.tensorfile import read_header

PARTS = {A: ".lora_a", B: ".lora_b"}
"""Ends of PEFT's names -> of llama.cpp's."""


def write_adapter(adapter: Path, base: Path, out: Path, about: About) -> int:
    """Write the adapter of a folder, in F16, for the base in another one; returns the file's bytes.

    Raises BaseError for a tensor that has no place in the base's GGUF.
    """
    config = read_config(base)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[config["family"].arch])
    tensors = []
    for source, info in read_header(adapter / WEIGHTS).items():
        end = next((end for end in PARTS if source.endswith(end)), None)
        layer = source.removeprefix(PREFIX).removesuffix(end or "")
        name = gguf_name(f"{layer}.weight", config["family"], config["num_hidden_layers"])
        if name is None or end is None:
            raise BaseError(f"tensor {source} has no place in a GGUF adapter", fix="set export.adapter to false")
        rows = head_rows(f"{layer}.weight", config) if end == B else 0
        tensors.append(Tensor(name + PARTS[end], info.shape, gguf.GGMLQuantizationType.F16, info, rows))
    list_tensors(writer, tensors)
    writer.add_type("adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(json.loads((adapter / CONFIG).read_text())["lora_alpha"]))
    writer.add_name(about.name)
    writer.add_license(about.licence or "")
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about.base)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_out(writer, out, tensors)
    return out.stat().st_size
