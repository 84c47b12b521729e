"""Whether a GGUF file can answer here, before it is loaded: it is a model, it is whole, and memory is enough.

llama.cpp maps the file into memory: where that is short it is read from disk again for every token, or killed. Of the
built-in base's Q8_0 with 4,096 tokens the sum below is 337 MB, and a process that answers had 343 MB at its peak.
"""

import re
import struct
from pathlib import Path

from tunesmith import machine
from tunesmith.errors import BaseError, ResourceError
from tunesmith.gguf.metadata import Head, read_head, read_item, refuse_big_endian
from tunesmith.inference.ended import MAKE_ANEW

GGUF_VERSIONS = (2, 3)  # what llama.cpp reads
CELL_NUMBER_BYTES = 2  # keys and values are F16
TOGETHER = 512  # tokens of which the logits are computed at a time, in fp32 (n_ubatch)
LEAST_CONTEXT = 256  # what the recipe allows
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def check_file(path: Path) -> Head:
    """What a GGUF file says of itself. Raises BaseError for one that is none, is cut, or is no model."""
    _check_magic(path)
    head = read_head(path, fix=MAKE_ANEW)
    kind = head.singles.get("general.type", "model")
    if kind != "model" or not head.tensors:
        what = f"is a GGUF file of type {kind}, and no model that answers" if kind != "model" else "has no tensors"
        raise BaseError(f"{path.name} {what}", fix="name the .gguf file of the model itself", where=str(path))
    return head


def known_context(head: Head, wanted: int) -> int:
    """Tokens of a conversation: as many as are wanted, or as the model knows."""
    return min(wanted, _number(head, "context_length", wanted) or wanted)


def need_memory(path: Path, head: Head, context: int, slots: int) -> None:
    """Raise ResourceError where the file, the keys and values of `slots` conversations of `context` tokens, and the
    logits do not fit in free memory.
    """
    free, each = machine.free_memory_bytes(), cell_bytes(path, head)
    cells, logits = _window(head, context) * slots, 4 * TOGETHER * _vocabulary(head)
    file_bytes = sum(part.stat().st_size for part in _parts(path))
    needed = file_bytes + each * cells + logits
    if needed <= free:
        return
    what = (
        f"{path.name} needs {needed / 1e9:.2f} GB of memory, {free / 1e9:.2f} GB are free; the file takes "
        f"{file_bytes / 1e9:.2f}, {slots} x {context:,} tokens of conversation {each * cells / 1e9:.2f}"
    )
    fix = (
        f"free some memory, or take a smaller GGUF type; in the chat also a smaller chat.context (now {context}) or "
        f"fewer chat.slots (now {slots})"
    )
    fits = (free - file_bytes - logits) // max(each * slots, 1) // LEAST_CONTEXT * LEAST_CONTEXT
    if LEAST_CONTEXT <= fits < context:
        fix += f"; a context of {fits} fits"
    raise ResourceError(what, fix=fix, where=str(path))


def cell_bytes(path: Path, head: Head) -> int:
    """Keys and values of one token, of all layers."""
    layers, heads = _number(head, "block_count"), _number(head, "attention.head_count")
    width = _number(head, "embedding_length") // max(heads, 1)
    stated = head.arrays.get(f"{head.singles.get('general.architecture')}.attention.head_count_kv")
    if stated:  # each layer has its own
        groups = sum(int(read_item(path, stated, layer) or 0) for layer in range(min(layers, stated[1])))
    else:
        groups = layers * _number(head, "attention.head_count_kv", heads)
    lengths = [_number(head, f"attention.{name}_length", width) for name in ("key", "value")]
    return CELL_NUMBER_BYTES * groups * sum(lengths)


def _window(head: Head, context: int) -> int:
    """Tokens that are kept at least: where layers see no further back than a window, which of them do is not known."""
    return min(context, _number(head, "attention.sliding_window", context) or context)


def _vocabulary(head: Head) -> int:
    tokens = head.arrays.get("tokenizer.ggml.tokens")
    return tokens[1] if tokens else 0


def _number(head: Head, key: str, default: int = 0) -> int:
    found = head.singles.get(f"{head.singles.get('general.architecture')}.{key}", default)
    return int(found) if isinstance(found, int | float) else default


def _parts(path: Path) -> list[Path]:
    """The files of a model: llama.cpp finds the others of a split one by their names."""
    match = PART.search(path.name)
    return sorted(path.parent.glob(f"{path.name[: match.start()]}-*-of-{match[1]}.gguf")) if match else [path]


def _check_magic(path: Path) -> None:
    """Raise BaseError unless the file begins as a GGUF (specification: ggml's docs/gguf.md, "File structure")."""
    try:
        with path.open("rb") as file:
            magic, version = struct.unpack("<4sI", file.read(8))
        problem = "is no GGUF file" if magic != b"GGUF" else f"is GGUF version {version}, which llama.cpp does not read"
    except struct.error:
        magic, version, problem = b"", 0, "is no GGUF file"
    except OSError as error:
        magic, version, problem = b"", 0, f"cannot be read: {error.strerror}"
    if magic == b"GGUF":
        refuse_big_endian(path, version)
    if magic != b"GGUF" or version not in GGUF_VERSIONS:
        raise BaseError(f"{path.name} {problem}", fix=f"name a .gguf file, or {MAKE_ANEW}", where=str(path))
