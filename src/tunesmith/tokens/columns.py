"""Lists as Arrow columns, made from their buffers (Arrow columnar format 1.5).

pyarrow.array imports pandas wherever there is one, if only to ask whether it was given a series: a second and 60 MB of
every process that makes rows.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow

from tunesmith.errors import ResourceError
from tunesmith.tokens.rows import Array


def numbers(values: Array | Sequence[int], kind: pyarrow.DataType) -> pyarrow.Array:
    """Integers of the type `kind`."""
    data = np.ascontiguousarray(values, kind.to_pandas_dtype())
    return pyarrow.Array.from_buffers(kind, len(data), [None, pyarrow.py_buffer(data)])


def flags(values: Sequence[bool | None]) -> pyarrow.Array:
    """Booleans, or null."""
    bits = pyarrow.py_buffer(_bits([bool(value) for value in values]))
    return pyarrow.Array.from_buffers(pyarrow.bool_(), len(values), [_present(values), bits])


def texts(values: Sequence[str | None]) -> pyarrow.Array:
    """Texts, or null. Raises ResourceError where they have 2 GiB together."""
    parts = [(value or "").encode() for value in values]
    buffers = [_present(values), _ends(list(map(len, parts))), pyarrow.py_buffer(b"".join(parts))]
    return pyarrow.Array.from_buffers(pyarrow.string(), len(values), buffers)


def structs(kind: pyarrow.StructType, columns: Sequence[pyarrow.Array]) -> pyarrow.Array:
    """Structs of the type `kind`, given field by field."""
    return pyarrow.Array.from_buffers(kind, len(columns[0]), [None], children=list(columns))


def lists(kind: pyarrow.ListType, lengths: Sequence[int], items: pyarrow.Array) -> pyarrow.Array:
    """Lists of the type `kind`: the items one list after another, and how many each has."""
    return pyarrow.Array.from_buffers(kind, len(lengths), [None, _ends(lengths)], children=[items])


def _ends(lengths: Sequence[int]) -> pyarrow.Buffer:
    """Where each part begins, and where the last one ends."""
    ends = np.cumsum([0, *lengths])
    if ends[-1] > np.iinfo(np.int32).max:
        raise ResourceError(
            f"256 rows of {ends[-1] / 2**30:.1f} GiB together are more than a table takes (2 GiB)",
            fix="lower train.max_length, to which rows are cut",
        )
    return pyarrow.py_buffer(ends.astype(np.int32))


def _present(values: Sequence[object]) -> pyarrow.Buffer | None:
    """Which values are not null; None where all are."""
    is_present = [value is not None for value in values]
    return None if all(is_present) else pyarrow.py_buffer(_bits(is_present))


def _bits(values: Sequence[bool]) -> Array:
    return np.packbits(np.array(values, np.bool_), bitorder="little")
