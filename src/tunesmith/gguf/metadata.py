"""The single values in a GGUF file's metadata, and where its arrays and tensors lie; arrays are stepped over.

The gguf package's reader makes numpy objects of every token and merge, 4 to 6 s for 49,152 tokens, where a proof asks
for two numbers. The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, Keys
from gguf import GGUFValueType as Type

from tunesmith.errors import BaseError

Single = int | float | bool | str
CODES = {
    Type.UINT8: "B", Type.INT8: "b", Type.UINT16: "H", Type.INT16: "h", Type.UINT32: "I", Type.INT32: "i",
    Type.UINT64: "Q", Type.INT64: "q", Type.FLOAT32: "f", Type.FLOAT64: "d", Type.BOOL: "?",
}  # fmt: skip
LEAST = {Type.STRING: "Q", Type.ARRAY: "IQ"} | CODES
"""The fewest bytes of an item: an empty text is its length, an empty array its type and length."""
LARGE = 1 << 20  # bytes; to ask for the file's size before each of 100,000 texts takes as long as reading them
SIZES = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
"""Numbers and bytes of a block of each type."""
MOST_DIMENSIONS = 4  # of a tensor (GGML_MAX_DIMS)
MADE_HERE = "delete it, and type the command that makes it"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `offset` is in bytes from the start of the file."""

    kind: int
    """Its number among GGMLQuantizationType."""
    shape: tuple[int, ...]
    """Rows first."""
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Head:
    """What a GGUF file has before its tensors' numbers."""

    singles: dict[str, Single]
    arrays: dict[str, tuple[Type, int, int]]
    """Key -> type of the items, how many they are, where the first one is."""
    tensors: dict[str, StoredTensor]


def read_singles(path: Path, fix: str = MADE_HERE) -> dict[str, Single]:
    """Numbers, texts and truth values by key.

    Raises BaseError where the file ends early, counts more items than it can hold, is big-endian or is no GGUF.
    """
    return _read_head(path, fix, tensors=False).singles


def read_head(path: Path, fix: str = MADE_HERE) -> Head:
    """The single values, and where arrays and tensors lie. Raises BaseError as `read_singles`, and for a cut file."""
    head = _read_head(path, fix, tensors=True)
    end, size = max((tensor.offset + tensor.nbytes for tensor in head.tensors.values()), default=0), path.stat().st_size
    if size < end:
        raise BaseError(
            f"{path.name} is cut: its tensors need {end:,} bytes, it has {size:,}", fix=fix, where=str(path)
        )
    return head


def read_item(path: Path, place: tuple[Type, int, int], number: int) -> Single | None:
    """One item of an array of a file that is whole, at `place` as `read_head` gives it; None where it has no such."""
    kind, count, offset = place
    if not 0 <= number < count:
        return None
    with path.open("rb") as file:
        if kind != Type.STRING:
            file.seek(offset + number * struct.calcsize(CODES[kind]))
            item: Single = _take(file, CODES[kind])[0]
            return item
        file.seek(offset)
        for _ in range(number):
            file.seek(_take(file, "Q")[0], os.SEEK_CUR)
        return _text(file)


def _read_head(path: Path, fix: str, *, tensors: bool) -> Head:
    head = Head({}, {}, {})
    try:
        with path.open("rb") as file:
            magic, version, count, keys = _take(file, "4sIQQ")
            if magic != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            refuse_big_endian(path, version)
            for _ in range(keys):
                key, kind = _text(file), Type(*_take(file, "I"))
                if kind == Type.ARRAY:
                    head.arrays[key] = _step_over(file, key)
                else:
                    head.singles[key] = _text(file) if kind == Type.STRING else _take(file, CODES[kind])[0]
            if tensors:
                head.tensors.update(_tensors(file, count, head.singles.get(Keys.General.ALIGNMENT)))
    except (ValueError, RecursionError) as error:
        raise BaseError(f"{path.name} is no whole GGUF file: {error}", fix=fix, where=str(path)) from error
    return head


def _tensors(file: BinaryIO, count: int, stated: Single | None) -> dict[str, StoredTensor]:
    """Each tensor's name, number of dimensions, widths with the columns first, type, and place in the data."""
    found = {}
    for _ in range(count):
        name = _text(file)
        shape = _take(file, "Q" * min(*_take(file, "I"), MOST_DIMENSIONS))[::-1]
        kind, place = _take(file, "IQ")
        block, block_bytes = SIZES.get(kind, (1, 0))  # a type newer than the gguf package has no size here
        found[name] = StoredTensor(kind, shape, place, prod(shape) // block * block_bytes)
    alignment = stated if isinstance(stated, int) and stated > 0 else GGUF_DEFAULT_ALIGNMENT
    start = file.tell() + -file.tell() % alignment
    return {name: StoredTensor(one.kind, one.shape, start + one.offset, one.nbytes) for name, one in found.items()}


def refuse_big_endian(path: Path, version: int) -> None:
    """Raise BaseError if a GGUF's version, read as little-endian, has its bytes the other way round."""
    if version and version % 2**16 == 0:
        raise BaseError(
            f"{path.name} is a big-endian GGUF file, and little-endian ones are read",
            fix="fetch the little-endian file of this model, or convert a copy in place with the gguf package: "
            "gguf-convert-endian FILE little",
            where=str(path),
        )


def _take(file: BinaryIO, codes: str) -> tuple[Any, ...]:
    layout = struct.Struct(f"<{codes}")
    return layout.unpack(_read(file, layout.size))


def _read(file: BinaryIO, size: int) -> bytes:
    if size > LARGE and size > _left(file):  # it would be made room for
        raise ValueError("it ends inside its metadata")
    if len(data := file.read(size)) < size:
        raise ValueError("it ends inside its metadata")
    return data


def _left(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size - file.tell()


def _text(file: BinaryIO) -> str:
    return _read(file, *_take(file, "Q")).decode()


def _step_over(file: BinaryIO, key: str) -> tuple[Type, int, int]:
    """An array: the type of its items, how many they are, the items. Returns these two, and where the items begin."""
    kind, count = _take(file, "IQ")
    start = file.tell()
    if count * struct.calcsize(f"<{LEAST[Type(kind)]}") > _left(file):
        raise ValueError(f"its {key} counts {count} items, more than the file can hold")
    if kind == Type.STRING:
        _step_over_texts(file, count)
    elif kind == Type.ARRAY:
        for _ in range(count):
            _step_over(file, key)
    else:
        file.seek(count * struct.calcsize(CODES[Type(kind)]), os.SEEK_CUR)
    return Type(kind), count, start


def _step_over_texts(file: BinaryIO, count: int) -> None:
    """Go on after so many texts, looking at their lengths alone: a vocabulary and its merges are 400,000."""
    length_of = struct.Struct("<Q").unpack_from
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        place, last = file.tell(), len(whole) - 8
        for _ in range(count):
            if place > last:
                raise ValueError("it ends inside its metadata")
            place += 8 + length_of(whole, place)[0]
        if place > len(whole):
            raise ValueError("it ends inside its metadata")
    file.seek(place)
