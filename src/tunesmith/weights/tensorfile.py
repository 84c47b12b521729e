"""Safetensors files read and written by rows with plain file reads, so that peak memory stays that of one piece.

Format: 8 bytes of header length (little endian), a JSON header, then the tensors one after another
(https://github.com/huggingface/safetensors#format). BF16, which numpy lacks, is held as uint16.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from tunesmith.errors import BaseError

Array = np.ndarray[Any, np.dtype[Any]]
NUMPY_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types that weights may be stored in."""
PIECE_BYTES = 64 << 20  # fp32 bytes of the rows that are in memory at a time
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `offset` is in bytes from the start of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def weight_files(folder: Path) -> list[Path]:
    """The files of the model: those its index names (BaseError if one is missing), model.safetensors, or all.

    Where both are, and the index names other files, transformers reads model.safetensors, and so do we.
    """
    if not (folder / INDEX).exists():
        return list(folder.glob(WEIGHTS)) or sorted(folder.glob("*.safetensors"))
    try:
        names = {str(name) for name in json.loads((folder / INDEX).read_text())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{INDEX} does not say which files the weights are in: {error}"
        raise BaseError(what, fix="fetch the model again", where=str(folder)) from error
    if (folder / WEIGHTS).exists() and WEIGHTS not in names:
        return [folder / WEIGHTS]
    files = sorted(folder / Path(name).name for name in names)  # beside the index, and nowhere else
    missing = ", ".join(file.name for file in files if not file.exists())
    if missing:
        raise BaseError(f"weights are missing: {missing}", fix="fetch the model again; it was cut", where=str(folder))
    return files


def read_index(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of the folder by name. Raises BaseError for a damaged file."""
    return {name: info for file in weight_files(folder) for name, info in read_header(file).items()}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, in file order. Raises BaseError for a file that is none or is cut."""
    file_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            data_start = 8 + int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(min(data_start, file_bytes) - 8))
        header.pop("__metadata__", None)
        infos = {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            infos[name] = TensorInfo(path, entry["dtype"], tuple(entry["shape"]), data_start + start, stop - start)
            number = NUMPY_TYPES.get(entry["dtype"])  # None: a type that is refused where it is read
            if number and prod(entry["shape"]) * np.dtype(number).itemsize != stop - start:
                raise ValueError(f"{name} has {stop - start} bytes for the shape {entry['shape']}")
        if file_bytes != max((info.offset + info.nbytes for info in infos.values()), default=data_start):
            raise ValueError("it is not as long as its header says")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        what = f"{path.name} is no whole safetensors file: {error}"
        raise BaseError(what, fix="fetch or write the file again", where=str(path)) from error
    return infos


def read_rows(info: TensorInfo, start: int, stop: int) -> Array:
    """Rows start..stop of dimension 0 in the stored type (BF16 as uint16); a scalar is read whole."""
    dtype = np.dtype(NUMPY_TYPES[info.dtype])
    row_values = prod(info.shape[1:])
    rows = min(stop, info.shape[0] if info.shape else 1) - start
    values = np.fromfile(info.file, dtype, rows * row_values, offset=info.offset + start * row_values * dtype.itemsize)
    return values.reshape((rows, *info.shape[1:]) if info.shape else ())


def pieces(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """First and last row of parts of a tensor that are PIECE_BYTES or less as fp32."""
    rows = info.shape[0] if info.shape else 1
    step = max(1, PIECE_BYTES * rows // max(1, 4 * prod(info.shape)))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def to_f32(array: Array, dtype: str) -> Array:
    """Stored values as float32; exact for F32, F16 and BF16. Raises BaseError for a type that is no float."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype not in FLOATS:
        raise BaseError(f"weights of type {dtype} cannot be read", fix="use a base stored as F32, F16 or BF16")
    return array.astype(np.float32, copy=False)


def from_f32(array: Array, dtype: str) -> Array:
    """float32 values in a stored type, rounded to nearest, ties to even. Raises BaseError where F16 overflows."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
        return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)  # a NaN stays one
    try:
        with np.errstate(over="raise"):
            return array.astype(NUMPY_TYPES[dtype], copy=False)
    except FloatingPointError as error:
        raise BaseError(
            "a weight is above 65504 and does not fit F16", fix="store this model as BF16 or F32"
        ) from error


class TensorWriter:
    """Writes one safetensors file front to back: the header at once, then the tensors' rows in header order.

    `entries`: name -> (dtype, shape). Arrays come in the stored type (BF16 as uint16), whole or some rows at a time.
    Leaving the block checks that every row came.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
    ) -> None:
        header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
        stop = 0
        for name, (dtype, shape) in entries.items():
            start, stop = stop, stop + prod(shape) * np.dtype(NUMPY_TYPES[dtype]).itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors start at a multiple of 8
        self._entries = dict(entries)
        self._left = {name: prod(shape) for name, (_, shape) in entries.items()}
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, array: Array) -> None:
        """Append rows of tensor `name`, which must be the next one that is not complete."""
        dtype, shape = self._entries[name]
        assert name == self._next(), f"{name} written where {self._next()} comes next"
        assert array.dtype == np.dtype(NUMPY_TYPES[dtype]), f"{name} is stored as {dtype}, given {array.dtype}"
        assert array.shape[1:] == shape[1:] and array.size <= self._left[name], f"{name}: {array.shape} into {shape}"
        self._left[name] -= array.size
        self._file.write(np.ascontiguousarray(array).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._file.close()
        assert error or not self._next(), f"never completed: {self._next()}"

    def _next(self) -> str | None:
        return next((name for name, left in self._left.items() if left), None)
