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
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from tunesmith.errors import BaseError, ResourceError
from tunesmith.recipe import GgufType
from tunesmith.weights.tensorfile import from_f32

DEFAULT: dict[GgufType, Type] = {
    "F16": Type.F16, "BF16": Type.BF16, "Q8_0": Type.Q8_0, "Q6_K": Type.Q6_K, "Q5_K_M": Type.Q5_K, "Q4_K_M": Type.Q4_K,
    "Q4_0": Type.Q4_0, "Q3_K_M": Type.Q3_K,
}  # fmt: skip
"""Type of most matrices of a file."""
FALLBACK = {Type.Q3_K: Type.Q4_0, Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
"""Where a row is no multiple of 256."""
UNWEIGHTED = ("F16", "BF16", "Q8_0")  # files whose bytes an importance matrix does not change
GAINS: tuple[GgufType, ...] = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M")
"""Where it lowers the mean KL to F16 by more than chance on both bases tried (benchmarks/RESULTS.md)."""
SMALL_BLOCK = 32  # numbers in a block of the types that the K-quants fall back to
LAYERS_70B = 80  # llama.cpp gives attn_v of the grouped 80-layer Llama more bits (LLM_TYPE_70B)
VALUES = ("attn_v", "attn_qkv")  # what llama.cpp's rules for values hold for
F16_MAX = 65504.0
LIBRARIES = (("xllamacpp", "*.so"), ("libggml", "*ggml-base*"))  # the second where the first hides the symbol (Windows)


def takes_importance(gguf_type: GgufType, wish: Literal["auto", "on", "off"]) -> bool:
    """Whether a file is quantised with an importance matrix, as the recipe's export.importance says."""
    return gguf_type in GAINS if wish == "auto" else wish == "on" and gguf_type not in UNWEIGHTED


def tensor_types(
    shapes: Mapping[str, Sequence[int]], gguf_type: GgufType, *, layers: int, grouped: bool, weighted: bool = False
) -> dict[str, Type]:
    """Type of each tensor by its GGUF name and shape (rows first), as llama_model_quantize chooses.

    `grouped`: fewer key-value heads than heads. `weighted`: there is an importance matrix.
    """
    tied = "output.weight" not in shapes
    types = {}
    for name, shape in shapes.items():
        if len(shape) < 2 or name.endswith("_norm.weight"):
            types[name] = Type.F32
        elif DEFAULT[gguf_type] in (Type.F16, Type.BF16):
            types[name] = DEFAULT[gguf_type]
        else:
            kind = name.split(".")[-2]
            if kind == "output" or (tied and kind == "token_embd"):  # a tied embedding is the output matrix too
                wanted = _head(shape[-1], DEFAULT[gguf_type])
            else:
                wanted = _wanted(name, gguf_type, layers, weighted)
            if kind in VALUES and layers == LAYERS_70B and grouped and wanted in (Type.Q3_K, Type.Q4_K):
                wanted = Type.Q5_K
            types[name] = _that_fits(wanted, shape[-1])
    return types


def _head(columns: int, default: Type) -> Type:
    return Type.Q8_0 if default == Type.Q8_0 or columns % GGML_QUANT_SIZES[default][0] else Type.Q6_K


def _wanted(name: str, gguf_type: GgufType, layers: int, weighted: bool) -> Type:
    """The type of a matrix that is no output matrix, whatever the length of its rows."""
    place, kind = name.split(".")[1], name.split(".")[-2]
    layer = int(place) if place.isdigit() else 0
    wanted = DEFAULT[gguf_type]
    if gguf_type in ("Q4_K_M", "Q5_K_M") and kind in (*VALUES, "ffn_down") and _more_bits(layer, layers):
        wanted = Type.Q6_K
    elif gguf_type == "Q3_K_M" and kind in (*VALUES, "ffn_down"):
        wanted = Type.Q5_K if layer < (layers // 16 if kind == "ffn_down" else 2) else Type.Q4_K
    elif gguf_type == "Q3_K_M" and kind == "attn_output":
        wanted = Type.Q4_K
    elif gguf_type == "Q4_0" and weighted and kind == "ffn_down" and layer < layers // 8:
        wanted = Type.Q4_1
    return wanted


def _that_fits(wanted: Type, columns: int) -> Type:
    """The type itself, or what llama.cpp takes for rows that are no whole number of its blocks."""
    if columns % GGML_QUANT_SIZES[wanted][0] == 0:
        return wanted
    return FALLBACK.get(wanted, Type.F16) if columns % SMALL_BLOCK == 0 else Type.F16


def _more_bits(layer: int, layers: int) -> bool:
    """use_more_bits of llama.cpp: the first and the last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensor_bytes(shape: Sequence[int], kind: Type) -> int:
    """Size of a tensor of this type."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * block_bytes


def quantise_rows(
    rows: NDArray[np.float32], kind: Type, where: str, importance_C: NDArray[np.float32] | None = None
) -> NDArray[Any]:
    """Rows [R, C] or a vector, in `kind`. Quantised types start from F16, as llama.cpp does from an F16 file; BF16 from
    the numbers themselves, as its converter does.

    `importance_C`: how much the error of each column counts. Other threads run meanwhile. Raises BaseError, with
    `where`, for numbers F16 cannot hold; ResourceError without the library.
    """
    if kind == Type.F32:
        return rows
    if not (rows.min() >= -F16_MAX and rows.max() <= F16_MAX):  # also False for a NaN
        what = f"a weight is {np.abs(rows).max()}, F16 ends at {F16_MAX:.0f}"
        raise BaseError(what, fix="train with a lower train.lr; see the loss", where=where)
    if kind == Type.BF16:
        return from_f32(rows, "BF16")
    half = to_half(rows)
    if kind == Type.F16:
        return half
    source_RC = to_single(half)
    count, columns = source_RC.shape
    target = np.empty(tensor_bytes(source_RC.shape, kind), np.uint8)
    weights = None if importance_C is None else np.ascontiguousarray(importance_C, np.float32)
    assert weights is None or weights.shape == (columns,), f"{where}: {columns} columns, importance of {weights.shape}"
    address = None if weights is None else weights.ctypes.data
    written = _quantize_chunk()(kind, source_RC.ctypes.data, target.ctypes.data, 0, count, columns, address)
    assert written == target.nbytes, f"{kind.name}: {written} bytes instead of {target.nbytes}"
    return target


def to_half(rows: NDArray[np.float32]) -> NDArray[np.float16]:
    """fp32 as F16, to nearest, ties to even; by llama.cpp's code where there is any, ten times as fast as numpy's."""
    return _converted(rows, np.float16, "ggml_cpu_fp32_to_fp16")


def to_single(rows: NDArray[np.float16]) -> NDArray[np.float32]:
    """F16 as fp32, exactly."""
    return _converted(rows, np.float32, "ggml_cpu_fp16_to_fp32")


def _converted(rows: NDArray[Any], kind: type[np.floating[Any]], name: str) -> NDArray[Any]:
    rows = np.ascontiguousarray(rows)
    function, begin = _function(name), _function("ggml_cpu_init")
    if function is None or begin is None:
        return rows.astype(kind)
    begin()  # fills the table that the last few numbers are looked up in; once, whoever calls it first
    target = np.empty(rows.shape, kind)
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    function(rows.ctypes.data, target.ctypes.data, rows.size)
    return target


@functools.cache
def _quantize_chunk() -> Callable[..., int]:
    """ggml_quantize_chunk(type, float * src, void * dst, start, nrows, n_per_row, float * imatrix) -> bytes written."""
    function = _function("ggml_quantize_chunk")
    if function is None:
        raise ResourceError(
            "the installed xllamacpp does not export llama.cpp's quantiser",
            fix="pip install libggml-python, or export F16",
        )
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]
    function.restype = ctypes.c_size_t
    return function


@functools.cache
def _function(name: str) -> Any:
    """A C function of llama.cpp's library; None where no library that is installed exports it."""
    for package, pattern in LIBRARIES:
        found = importlib.util.find_spec(package)
        for path in sorted(Path(found.origin).parent.rglob(pattern)) if found and found.origin else []:
            with contextlib.suppress(OSError, AttributeError):
                return getattr(ctypes.CDLL(str(path)), name)
    return None
