"""Which type each tensor of a GGUF file gets, by llama.cpp's rules, and its bytes, by llama.cpp's own code.

Rules: llama.cpp, src/llama-quant.cpp (tensor_allows_quantization, llama_tensor_get_type_impl, tensor_type_fallback),
the part that concerns dense decoders and the types of the recipe. Bytes: ggml_quantize_chunk in the library that
xllamacpp ships, called by ctypes. Both are compared with llama_model_quantize in tests/test_quantise.py.

Letters in names: R rows, C columns (numbers in a row).
"""

import contextlib
import ctypes
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from tunesmith.errors import BaseError, ResourceError
from tunesmith.recipe import GgufType

DEFAULT: dict[GgufType, Type] = {"F16": Type.F16, "Q8_0": Type.Q8_0, "Q4_K_M": Type.Q4_K}
FALLBACK = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}  # where a row is no multiple of 256
K_BLOCK, SMALL_BLOCK = 256, 32  # numbers in a block of the K-quants, and of the types they fall back to
LAYERS_70B = 80  # llama.cpp gives attn_v of the grouped 80-layer Llama more bits (LLM_TYPE_70B)
F16_MAX = 65504.0
LIBRARIES = (("xllamacpp", "*.so"), ("libggml", "*ggml-base*"))  # the second where the first hides the symbol (Windows)


def tensor_types(
    shapes: Mapping[str, Sequence[int]], gguf_type: GgufType, *, layers: int, grouped: bool
) -> dict[str, Type]:
    """Type of each tensor by its GGUF name and shape (rows first), as llama_model_quantize chooses.

    `grouped`: fewer key-value heads than heads.
    """
    tied = "output.weight" not in shapes
    types = {}
    for name, shape in shapes.items():
        if len(shape) < 2 or name.endswith("_norm.weight"):
            types[name] = Type.F32
        elif gguf_type == "F16":
            types[name] = Type.F16
        else:
            types[name] = _wanted(name, shape[-1], gguf_type, tied=tied, layers=layers, grouped=grouped)
            if shape[-1] % GGML_QUANT_SIZES[types[name]][0]:
                types[name] = FALLBACK.get(types[name], Type.F16) if shape[-1] % SMALL_BLOCK == 0 else Type.F16
    return types


def _wanted(name: str, columns: int, gguf_type: GgufType, *, tied: bool, layers: int, grouped: bool) -> Type:
    kind = name.split(".")[-2]
    if kind == "output" or (tied and kind == "token_embd"):  # a tied embedding is the output matrix too
        return Type.Q6_K if gguf_type == "Q4_K_M" and columns % K_BLOCK == 0 else Type.Q8_0
    if gguf_type == "Q4_K_M" and kind in ("attn_v", "ffn_down") and _more_bits(int(name.split(".")[1]), layers):
        return Type.Q6_K
    if gguf_type == "Q4_K_M" and kind == "attn_v" and layers == LAYERS_70B and grouped:
        return Type.Q5_K
    return DEFAULT[gguf_type]


def _more_bits(layer: int, layers: int) -> bool:
    """use_more_bits of llama.cpp: the first and the last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensor_bytes(shape: Sequence[int], kind: Type) -> int:
    """Size of a tensor of this type."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * block_bytes


def quantise_rows(rows: NDArray[np.float32], kind: Type, where: str) -> NDArray[Any]:
    """Rows [R, C] or a vector, in `kind`. Quantised types start from F16, as llama.cpp does from an F16 file.

    Other threads run meanwhile. Raises BaseError, with `where`, for numbers F16 cannot hold; ResourceError without
    the library.
    """
    if kind == Type.F32:
        return rows
    if not (rows.min() >= -F16_MAX and rows.max() <= F16_MAX):  # also False for a NaN
        what = f"a weight is {np.abs(rows).max()}, F16 ends at {F16_MAX:.0f}"
        raise BaseError(what, fix="train with a lower train.lr; see the loss", where=where)
    half = rows.astype(np.float16)
    if kind == Type.F16:
        return half
    source_RC = np.ascontiguousarray(half, dtype=np.float32)
    count, columns = source_RC.shape
    target = np.empty(tensor_bytes(source_RC.shape, kind), np.uint8)
    written = _quantize_chunk()(kind, source_RC.ctypes.data, target.ctypes.data, 0, count, columns, None)
    assert written == target.nbytes, f"{kind.name}: {written} bytes instead of {target.nbytes}"
    return target


@functools.cache
def _quantize_chunk() -> Callable[..., int]:
    """ggml_quantize_chunk(type, float * src, void * dst, start, nrows, n_per_row, float * imatrix) -> bytes written."""
    for package, pattern in LIBRARIES:
        found = importlib.util.find_spec(package)
        for path in sorted(Path(found.origin).parent.rglob(pattern)) if found and found.origin else []:
            with contextlib.suppress(OSError, AttributeError):
                function = ctypes.CDLL(str(path)).ggml_quantize_chunk
                whole, pointer = ctypes.c_int64, ctypes.c_void_p
                function.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]
                function.restype = ctypes.c_size_t
                return function
    raise ResourceError(
        "the installed xllamacpp does not export llama.cpp's quantiser", fix="pip install libggml-python, or export F16"
    )
