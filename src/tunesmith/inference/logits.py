"""Logits of whole sequences: one pass of llama.cpp gives those after every token, over the whole vocabulary.

llama.cpp's server tells the probabilities of one position a request. The C functions that compute many at a time are in
the library of xllamacpp, which says nothing of how their structs lie in memory; so that is known here by version, shown
to be true before the first use, and used in a process of its own: a crash there is an error here.

Letters in names: C positions of a piece, V vocabulary.
"""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xllamacpp
from numpy.typing import NDArray
from xllamacpp import xllamacpp as native

from tunesmith.errors import BaseError, ResourceError, TunesmithError
from tunesmith.files import full_disk_named, write_all
from tunesmith.inference.child import Child, serve_parent, tell, wait_for_turn
from tunesmith.inference.ended import MAKE_ANEW

PIECE_BYTES = 64 << 20  # logits of a piece; llama.cpp holds them once more
CELLS = 256  # llama.cpp rounds a context up to so many tokens
LOG_WARNING, LOG_CONTINUED = 3, 5  # ggml_log_level: what is printed, with what follows on the same line
GUARD = 512  # bytes, more than a struct has

Logits = NDArray[np.float32]
Struct = tuple[tuple[str, Any, Any], ...]
"""Name, type and default of each field, in their order in memory."""
_i32, _u32, _f32, _bool, _size, _ptr = (
    ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_bool, ctypes.c_size_t, ctypes.c_void_p
)  # fmt: skip


PrintLog = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _ptr)


class Layout(NamedTuple):
    """The structs that are passed by value."""

    model: Struct
    context: Struct


B11549 = Layout(
    model=(
        ("devices", _ptr, None), ("tensor_buft_overrides", _ptr, None), ("n_gpu_layers", _i32, -1),
        ("split_mode", _i32, 1), ("load_mode", _i32, -1), ("lazy_mode", _i32, 1), ("main_gpu", _i32, 0),
        ("tensor_split", _ptr, None), ("progress_callback", _ptr, None), ("progress_callback_data", _ptr, None),
        ("kv_overrides", _ptr, None), ("vocab_only", _bool, False), ("check_tensors", _bool, False),
        ("use_extra_bufts", _bool, True), ("no_host", _bool, False), ("no_alloc", _bool, False),
        ("load_mtp", _bool, False),
    ),
    context=(
        ("n_ctx", _u32, 512), ("n_batch", _u32, 2048), ("n_ubatch", _u32, 512), ("n_seq_max", _u32, 1),
        ("n_rs_seq", _u32, 0), ("n_outputs_max", _u32, 0), ("n_outputs_max_per_seq", _u32, 1), ("n_threads", _i32, 4),
        ("n_threads_batch", _i32, 4), ("ctx_type", _i32, 0), ("rope_scaling_type", _i32, -1),
        ("pooling_type", _i32, -1), ("attention_type", _i32, -1), ("flash_attn_type", _i32, -1),
        ("rope_freq_base", _f32, 0.0), ("rope_freq_scale", _f32, 0.0), ("yarn_ext_factor", _f32, -1.0),
        ("yarn_attn_factor", _f32, -1.0), ("yarn_beta_fast", _f32, -1.0), ("yarn_beta_slow", _f32, -1.0),
        ("yarn_orig_ctx", _u32, 0), ("defrag_thold", _f32, -1.0), ("cb_eval", _ptr, None), ("cb_eval_data", _ptr, None),
        ("type_k", _i32, 1), ("type_v", _i32, 1), ("moe_cache_size", _size, 0), ("abort_callback", _ptr, None),
        ("abort_callback_data", _ptr, None), ("embeddings", _bool, False), ("offload_kqv", _bool, True),
        ("no_perf", _bool, True), ("op_offload", _bool, True), ("swa_full", _bool, True), ("kv_unified", _bool, False),
        ("samplers", _ptr, None), ("n_samplers", _size, 0), ("ctx_other", _ptr, None),
    ),
)  # fmt: skip
LAYOUTS = {"2026.10.11549": B11549}
"""Versions of xllamacpp whose structs are known: llama.h of the same build of llama.cpp."""


class Unavailable(Exception):  # noqa: N818 - no error: there is another way
    """Why this way cannot be taken here; the server's is left."""


def sequence_logits(
    gguf: Path,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    threads: int,
    window: Path,
    adapter: Path | None = None,
) -> Iterator[Logits]:
    """Logits [C, V] of a GGUF file after places of token sequences, in order, a piece of a sequence at a time.

    A sequence is (its token ids, the places after which logits are wanted, rising). `window`: a file for them.
    `adapter`: a GGUF file of one that is put on the model.
    Raises Unavailable before the first piece where the library is not known or not as it was; after it
    the error of a process that ended.
    """
    job = {"gguf": str(gguf), "threads": threads, "window": str(window), "adapter": str(adapter) if adapter else "",
           "sequences": [[list(map(int, part)) for part in sequence] for sequence in sequences]}  # fmt: skip
    with contextlib.closing(Child("tunesmith.inference.logits", job, gguf.name)) as child:
        try:
            first = child.read()
        except ResourceError as error:  # it crashed
            raise Unavailable(error.what) from error
        if first is None or "unavailable" in first:
            raise Unavailable(first["unavailable"] if first else "its process ended without a word")
        while (line := child.read()) is not None:
            numbers = np.fromfile(window, np.float32, line["positions"] * first["vocabulary"])
            yield numbers.reshape(line["positions"], first["vocabulary"])
            child.give_turn()


def compute(job: dict[str, Any]) -> None:
    """The child's work: tell {"vocabulary": V}, or {"unavailable": why}; then {"positions": C} for each piece, whose
    logits are in the window until the parent gives a turn.
    """
    try:
        library = Library()
        longest = max(len(ids) for ids, _ in job["sequences"])
        model = library.load(job["gguf"], longest, job["threads"], job["adapter"])
    except (Unavailable, AttributeError, OSError) as error:  # no such function, no such file
        tell({"unavailable": str(error)})
        return
    except TunesmithError as error:
        tell({"unavailable": error.what})
        return
    tell({"vocabulary": model.vocabulary})
    with open(job["window"], "w+b", buffering=0) as window:
        for ids, places in job["sequences"]:
            for logits_CV in model.logits(ids, places):
                window.seek(0)
                with full_disk_named(Path(job["window"])):
                    write_all(window, logits_CV.data)
                tell({"positions": len(logits_CV)})
                wait_for_turn()


class Library:
    """llama.cpp's C functions in xllamacpp's library, once its structs are known to lie as they are declared."""

    def __init__(self, path: str = native.__file__, version: str = xllamacpp.__version__) -> None:
        """Raises Unavailable for a version that is not known, or whose defaults are others."""
        if version not in LAYOUTS:
            known = ", ".join(LAYOUTS)
            raise Unavailable(f"how the structs of xllamacpp {version} lie in memory is not known (known: {known})")
        layout, self._c = LAYOUTS[version], ctypes.CDLL(path)
        self._model, self._context = _struct(layout.model), _struct(layout.context)
        self._declare()
        prove_struct(self._c.llama_model_default_params, self._model, layout.model)
        prove_struct(self._c.llama_context_default_params, self._context, layout.context)
        token = ctypes.c_int32(7)
        batch = self._c.llama_batch_get_one(ctypes.addressof(token), 1)
        found = [getattr(batch, name) for name, _ in Batch._fields_]
        if found != [1, ctypes.addressof(token), None, None, None, None, None]:
            raise Unavailable(f"llama_batch does not lie in memory as declared: {found}")

    def load(self, gguf: str, longest: int, threads: int, adapter: str = "") -> "Model":
        """A file, with an adapter's, and a context for sequences up to so many tokens.

        Raises BaseError where llama.cpp refuses them.
        """
        params = self._c.llama_model_default_params()
        params.n_gpu_layers = 0
        model = self._c.llama_model_load_from_file(os.fsencode(gguf), params)
        if not model:
            raise BaseError(f"llama.cpp cannot load {Path(gguf).name}", fix=MAKE_ANEW, where=gguf)
        vocabulary = self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(model))
        piece = max(1, min(longest, PIECE_BYTES // (4 * vocabulary)))
        wanted = self._c.llama_context_default_params()
        wanted.n_ctx = -(-longest // CELLS) * CELLS
        wanted.n_batch = wanted.n_ubatch = wanted.n_outputs_max = piece
        wanted.n_threads = wanted.n_threads_batch = threads
        context = self._c.llama_init_from_model(model, wanted)
        if not context or self._c.llama_n_ctx(context) != wanted.n_ctx or self._c.llama_n_batch(context) != piece:
            raise BaseError(f"llama.cpp makes no context for {Path(gguf).name}", fix=MAKE_ANEW, where=gguf)
        if adapter:
            lora = _ptr(self._c.llama_adapter_lora_init(model, os.fsencode(adapter)))
            whole = ctypes.c_float(1.0)  # of the scale that the file says
            if not lora or self._c.llama_set_adapters_lora(context, ctypes.byref(lora), 1, ctypes.byref(whole)):
                raise BaseError(f"llama.cpp cannot put {Path(adapter).name} on it", fix=MAKE_ANEW, where=adapter)
        return Model(self._c, context, vocabulary, piece)

    def _declare(self) -> None:
        """Types of the functions that are used: what they take and what they return."""
        for name, takes, returns in (
            ("llama_model_default_params", [], self._model), ("llama_context_default_params", [], self._context),
            ("llama_model_load_from_file", [ctypes.c_char_p, self._model], _ptr),
            ("llama_init_from_model", [_ptr, self._context], _ptr),
            ("llama_model_get_vocab", [_ptr], _ptr), ("llama_vocab_n_tokens", [_ptr], _i32),
            ("llama_n_ctx", [_ptr], _u32), ("llama_n_batch", [_ptr], _u32),
            ("llama_batch_get_one", [_ptr, _i32], Batch), ("llama_decode", [_ptr, Batch], _i32),
            ("llama_adapter_lora_init", [_ptr, ctypes.c_char_p], _ptr),
            ("llama_set_adapters_lora", [_ptr, _ptr, _size, _ptr], _i32),
            ("llama_get_logits", [_ptr], _ptr), ("llama_get_memory", [_ptr], _ptr),
            ("llama_memory_clear", [_ptr, _bool], None), ("llama_log_set", [PrintLog, _ptr], None),
        ):  # fmt: skip
            function = getattr(self._c, name)
            function.argtypes, function.restype = takes, returns
        self._c.llama_log_set(_log, None)


class Batch(ctypes.Structure):
    """llama_batch: tokens, their places and sequences, and after which of them logits are wanted."""

    _fields_ = (
        ("n_tokens", _i32), ("token", _ptr), ("embd", _ptr), ("pos", _ptr), ("n_seq_id", _ptr), ("seq_id", _ptr),
        ("logits", _ptr),
    )  # fmt: skip


class Model:
    """A file that is loaded, with its context."""

    def __init__(self, functions: Any, context: int, vocabulary: int, piece: int) -> None:
        self.vocabulary = vocabulary
        self._c, self._context, self._piece = functions, context, piece

    def logits(self, ids: Sequence[int], places: Sequence[int]) -> Iterator[Logits]:
        """Logits [C, V] after places of one sequence, a piece of it at a time; valid until the next one."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), False)
        wanted_T = np.zeros(len(ids), np.int8)
        wanted_T[list(places)] = 1
        for start in range(0, max(places) + 1, self._piece):
            part = slice(start, start + self._piece)
            if count := self._decode(np.array(ids[part], np.int32), start, wanted_T[part].copy()):
                address = self._c.llama_get_logits(self._context)
                numbers = (ctypes.c_float * (count * self.vocabulary)).from_address(address)
                yield np.ctypeslib.as_array(numbers).reshape(count, self.vocabulary)

    def _decode(self, token_T: NDArray[np.int32], start: int, wanted_T: NDArray[np.int8]) -> int:
        """Compute tokens that follow those before. Returns after how many of them logits are wanted."""
        place_T = np.arange(start, start + len(token_T), dtype=np.int32)
        sequence, one_T = np.zeros(1, np.int32), np.ones(len(token_T), np.int32)
        sequences_T = np.full(len(token_T), sequence.ctypes.data, np.uintp)
        arrays = (token_T, None, place_T, one_T, sequences_T, wanted_T)
        batch = Batch(len(token_T), *(None if array is None else array.ctypes.data for array in arrays))
        if code := self._c.llama_decode(self._context, batch):
            raise ResourceError(f"llama.cpp computes no logits: llama_decode gave {code}", fix="report it to xllamacpp")
        return int(wanted_T.sum())


def prove_struct(defaults: Any, struct: type[ctypes.Structure], fields: Struct) -> None:
    """Raise Unavailable unless a function that returns the defaults of a struct writes the known ones, and no more.

    Which bytes it writes can be seen where a struct is returned through a pointer that is the first argument: on
    x86-64. There are gaps between fields, which it may leave out.
    """
    found = defaults()
    for name, _, wanted in fields:
        if (value := getattr(found, name)) != wanted:
            raise Unavailable(f"{defaults.__name__} has {name} {value} where {wanted} is known")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return
    raw = ctypes.CFUNCTYPE(_ptr, _ptr)(ctypes.cast(defaults, _ptr).value or 0)
    images = []
    for filling in (b"\x55", b"\xaa"):
        image = ctypes.create_string_buffer(filling * GUARD, GUARD)
        raw(ctypes.addressof(image))
        images.append(image.raw)
    written = {place for place, (a, b) in enumerate(zip(*images, strict=True)) if a == b}
    places = [getattr(struct, name) for name, _, _ in fields]
    known = {at for place in places for at in range(place.offset, place.offset + place.size)}
    if not known <= written or max(written) >= ctypes.sizeof(struct):
        raise Unavailable(f"{defaults.__name__} writes other bytes than are known: {len(written)}, {max(written)} last")


def _struct(fields: Struct) -> type[ctypes.Structure]:
    return type("Params", (ctypes.Structure,), {"_fields_": tuple((name, kind) for name, kind, _ in fields)})


def _print_warning(level: int, text: bytes, _: Any) -> None:
    """Warnings and errors alone go to standard error: the last of them is the reason of an end."""
    if level >= LOG_WARNING and level != LOG_CONTINUED:
        os.write(2, text)


_log = PrintLog(_print_warning)  # as long as the process: llama.cpp may call it at any time


if __name__ == "__main__":
    serve_parent(compute)
