"""Safetensors files read and written by rows with plain file reads, so that peak memory stays that of one piece.

Format: 8 bytes of header length (little endian), a JSON header, then the tensors one after another
(https://github.com/huggingface/safetensors#format). BF16, which numpy lacks, is held as uint16.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tunesmith.errors import BaseError

Array = np.ndarray[Any, np.dtype[Any]]
NUMPY_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `offset` is in bytes from the start of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: those the index names, else model.safetensors, else all.

    Raises BaseError if the index names a file that is not there.
    """
    index = folder / INDEX
    if not index.exists():
        single = folder / "model.safetensors"
        return [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise BaseError(
            f"weights are missing: {INDEX} names {', '.join(missing)}",
            fix="fetch the model again; a download may have been cut",
            where=str(folder),
        )
    return files


def read_index(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of the folder's weight files by name. Raises BaseError for a damaged file or a name held twice."""
    index: dict[str, TensorInfo] = {}
    for file in weight_files(folder):
        for name, info in read_header(file).items():
            if name in index:
                raise BaseError(
                    f"tensor {name} is in {file.name} and in {index[name].file.name}",
                    fix="keep one set of weights in the folder",
                    where=str(folder),
                )
            index[name] = info
    return index


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, in file order. Raises BaseError for a file that is none or is cut."""
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        infos = {
            name: TensorInfo(
                file=path,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                offset=8 + header_bytes + entry["data_offsets"][0],
                nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [-1]))
            if name != "__metadata__"
        }
        if path.stat().st_size != max((info.offset + info.nbytes for info in infos.values()), default=8 + header_bytes):
            raise ValueError("its size is not the one its header states")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise BaseError(
            f"{path.name} is no whole safetensors file: {error}",
            fix="fetch or write the file again",
            where=str(path),
        ) from error
    return infos


def read_rows(info: TensorInfo, start: int, stop: int) -> Array:
    """Rows start..stop of dimension 0 in the stored type (BF16 as uint16); a scalar counts as one row."""
    row_shape = info.shape[1:]
    dtype = np.dtype(NUMPY_TYPES[info.dtype])
    row_values = prod(row_shape)
    stop = min(stop, info.shape[0] if info.shape else 1)
    count = (stop - start) * row_values
    values = np.fromfile(info.file, dtype, count, offset=info.offset + start * row_values * dtype.itemsize)
    return values.reshape((stop - start, *row_shape) if info.shape else ())


def to_f32(array: Array, dtype: str) -> Array:
    """Stored values as float32; exact for F32, F16 and BF16."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    _need_float(dtype)
    return array.astype(np.float32, copy=False)


def from_f32(array: Array, dtype: str) -> Array:
    """float32 values in a stored type, rounded to nearest, ties to even. Raises BaseError where F16 overflows."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
        return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)  # a NaN stays one
    _need_float(dtype)
    try:
        with np.errstate(over="raise"):
            return array.astype(NUMPY_TYPES[dtype], copy=False)
    except FloatingPointError as error:
        raise BaseError(
            "a weight is above 65504 and does not fit F16", fix="store this model as BF16 or F32"
        ) from error


def _need_float(dtype: str) -> None:
    if dtype not in ("F64", "F32", "F16"):
        raise BaseError(f"weights of type {dtype} cannot be read", fix="use a base stored as F32, F16 or BF16")


class TensorWriter:
    """Writes one safetensors file front to back: the header at once, then the tensors' rows in header order.

    `entries`: name -> (dtype, shape). `write` takes arrays in the stored type (BF16 as uint16), whole tensors or some
    rows at a time. Leaving the block checks that every row came.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
    ) -> None:
        self._entries = dict(entries)
        header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
        offset = 0
        for name, (dtype, shape) in self._entries.items():
            stop = offset + prod(shape) * np.dtype(NUMPY_TYPES[dtype]).itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
            offset = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that tensors start at a multiple of 8
        self._left = {name: prod(shape) for name, (_, shape) in self._entries.items()}
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, array: Array) -> None:
        """Append rows of tensor `name`, which must be the next one that is not complete."""
        dtype, shape = self._entries[name]
        expected = next((other for other, left in self._left.items() if left), None)
        assert name == expected, f"{name} written where {expected} comes next"
        assert array.dtype == np.dtype(NUMPY_TYPES[dtype]), f"{name} is stored as {dtype}, given {array.dtype}"
        assert array.shape[1:] == shape[1:] and array.size <= self._left[name], f"{name}: {array.shape} into {shape}"
        self._left[name] -= array.size
        self._file.write(np.ascontiguousarray(array).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        missing = [name for name, left in self._left.items() if left]
        assert error or not missing, f"never completed: {missing[:3]}"
