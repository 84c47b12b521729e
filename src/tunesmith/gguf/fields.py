"""One field of a config.json at a time: what is missing or odd is a BaseError by name."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import BaseError

LARGEST = 2**31 - 1  # llama.cpp keeps these in 32 bits


def number(values: Mapping[str, Any], name: str, folder: Path) -> float:
    """A number above zero. Raises BaseError for anything else."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise odd(
            name, value, "is missing or no number above zero" if value is None else "is no number above zero", folder
        )
    return float(value)


def size(values: Mapping[str, Any], name: str, folder: Path) -> int:
    """A whole number above zero. Raises BaseError for anything else."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
        what = "is missing" if value is None else "is no whole number above zero"
        raise odd(name, value, what, folder)
    return value


def said(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not null."""
    return {name: value for name, value in values.items() if value is not None}


def odd(name: str, value: Any, what: str, folder: Path) -> BaseError:
    """What to raise where a field of config.json cannot be used."""
    shown = "" if value is None else f" is {value!r}, which"
    fix = "fetch the model again, or use another base, if its config.json was not changed"
    return BaseError(f"config.json: {name}{shown} {what}", fix=fix, where=str(folder))
