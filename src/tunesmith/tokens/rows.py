"""Token rows on disk: flat numpy files, read through memory maps. N rows, T tokens of all rows together."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tunesmith.errors import DataError
from tunesmith.record import made_anew, read_record

Array = np.ndarray[Any, Any]
GOLDEN = (5**0.5 - 1) / 2  # multiples of it, less their whole part, are spread over 0 to 1 however many are taken
COLUMNS = {"tokens": np.int32, "supervised": np.bool_, "offsets": np.int64, "answer_bytes": np.int64}


@dataclass(frozen=True)
class TokenRows:
    """Some rows of a data folder. Row n is tokens_T[offsets_N1[n] : offsets_N1[n + 1]], whichever rows these are."""

    tokens_T: Array
    """int32 token ids."""
    supervised_T: Array
    """bool: the loss counts how well this token is predicted."""
    offsets_N1: Array
    """int64."""
    answer_bytes_N: Array
    """int64 UTF-8 bytes of the supervised text of each row, for bits per byte."""

    def __len__(self) -> int:
        return len(self.answer_bytes_N)

    @property
    def lengths_N(self) -> Array:  # noqa: N802 (its shape)
        """Tokens of each row."""
        return np.diff(self.offsets_N1)

    @property
    def supervised_N(self) -> Array:  # noqa: N802 (its shape)
        """Supervised tokens of each row."""
        before_T1 = np.concatenate([[0], np.cumsum(self.supervised_T[: self.offsets_N1[-1]])])
        return np.diff(before_T1[self.offsets_N1])

    def slice(self, first: int, end: int) -> "TokenRows":
        """The rows from `first` to before `end`, numbered from 0."""
        offsets_N1, answer_bytes_N = self.offsets_N1[first : end + 1], self.answer_bytes_N[first:end]
        return replace(self, offsets_N1=offsets_N1, answer_bytes_N=answer_bytes_N)

    def spread(self) -> list[int]:
        """The numbers of all rows, in an order whose every start has rows from all parts of the data."""
        return np.argsort(np.arange(len(self)) * GOLDEN % 1, kind="stable").tolist()


def load_rows(data_folder: Path) -> tuple[TokenRows, TokenRows]:
    """Training rows and held-out rows. Raises DataError if the folder is not complete."""
    record = read_record(data_folder)
    if record is None:
        raise DataError("the prepared data are missing", fix="run `tunesmith prepare` first", where=str(data_folder))
    rows, train = map_rows(data_folder), record.counts.get("train_rows")
    if not isinstance(train, int) or not 0 <= train <= len(rows):
        what = f"record.json says {train} training rows, and there are {len(rows)} rows"
        raise DataError(what, fix=made_anew(data_folder), where=str(data_folder))
    return rows.slice(0, train), rows.slice(train, len(rows))


def map_rows(folder: Path) -> TokenRows:
    """Every row that a RowWriter wrote to a folder."""
    return TokenRows(*(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in COLUMNS))


class RowWriter:
    """Appends rows to the files of a folder; memory stays that of one row. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, BinaryIO] = {name: (folder / f"{name}.npy").open("wb") for name in COLUMNS}
        self._counts = dict.fromkeys(COLUMNS, 0)
        for name, file in self._files.items():
            file.write(_header(name, 0))
        self._append("offsets", [0])

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for name, file in self._files.items():
            file.seek(0)
            file.write(_header(name, self._counts[name]))
            file.close()

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return self._counts["tokens"]

    def add(self, ids: Sequence[int] | Array, supervised: Sequence[bool] | Array, answer_bytes: int) -> None:
        """Append one row."""
        self._append("tokens", ids)
        self._append("supervised", supervised)
        self._append("offsets", [self.tokens])
        self._append("answer_bytes", [answer_bytes])

    def add_all(self, tokens_T: Array, supervised_T: Array, lengths_N: Array, answer_bytes_N: Array) -> None:
        """Append N rows, T tokens together."""
        self._append("offsets", self.tokens + np.cumsum(lengths_N))
        self._append("tokens", tokens_T)
        self._append("supervised", supervised_T)
        self._append("answer_bytes", answer_bytes_N)

    def add_run(self, rows: TokenRows, first: int, end: int) -> None:
        """Append the rows from `first` to before `end`."""
        part = slice(*rows.offsets_N1[[first, end]].tolist())
        lengths_N = np.diff(rows.offsets_N1[first : end + 1])
        self.add_all(rows.tokens_T[part], rows.supervised_T[part], lengths_N, rows.answer_bytes_N[first:end])

    def _append(self, name: str, values: Sequence[int] | Array) -> None:
        self._files[name].write(np.asarray(values, COLUMNS[name]).tobytes())
        self._counts[name] += len(values)


def _header(name: str, length: int) -> bytes:
    """A .npy header; numpy pads it so that it can be written again in place when the length is known (NEP 1)."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(COLUMNS[name]))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (length,)})
    return file.getvalue()
