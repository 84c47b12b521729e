"""The gguf package's own reader over bytes: over a memory map, as it is, a vocabulary takes three times as long."""

from unittest import mock

import gguf
import numpy as np


def reader_of(path):
    """A GGUFReader that cannot write."""
    with mock.patch.object(np, "memmap", lambda path, mode: np.fromfile(path, np.uint8)):
        return gguf.GGUFReader(path)


def fields_of(path):
    """The metadata by key."""
    return {name: field.contents() for name, field in reader_of(path).fields.items()}
