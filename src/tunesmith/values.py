"""What the fields of a recipe are made of: sections without unknown keys, texts that files hold, times, switches."""

import datetime
import json
import math
import re
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, which ends a file name, and half a character, which is in no file
MOST = 2**53  # beyond it not every whole number is one in JSON (RFC 8259, section 6)
SECONDS = {"s": 1, "min": 60, "h": 3600}
FORMS = "write it as 200 steps, 30s, 5min or 2h"


class Cadence(NamedTuple):
    """Something that is counted in steps or in seconds; exactly one of the two is set."""

    steps: int | None = None
    seconds: float | None = None


def cadence(text: str) -> Cadence:
    """`200 steps` or `5min` (also s, h) as numbers. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(steps?|s|min|h)", text)
    if not found:
        raise ValueError(f'"{text}" is neither a number of steps nor a time; {FORMS}')
    if float(found[1]) <= 0:
        raise ValueError(f'"{text}" must be more than 0; {FORMS}')
    if found[2].startswith("step"):
        if "." in found[1]:
            raise ValueError(f'"{text}" is not a whole number of steps')
        return Cadence(steps=int(found[1]))
    return Cadence(seconds=float(found[1]) * SECONDS[found[2]])


def _cadence_text(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if value <= 0:
            raise ValueError(f'"{value}" must be more than 0; {FORMS}')  # as it was typed: a bare number is of steps
        value = f"{value} steps"
    if isinstance(value, str):
        cadence(value)
    return value


def _steps_text(value: Any) -> Any:
    value = _cadence_text(value)
    if isinstance(value, str) and cadence(value).steps is None:
        raise ValueError(f'"{value}" is a time; what decides the result is counted in steps, such as 200 steps')
    return value


def switch_text(value: Any) -> Any:
    """`on` or `off` for what YAML reads as true or false; anything else as it is."""
    return ("on" if value else "off") if isinstance(value, bool) else value  # YAML 1.1 reads a bare `off` as false


def share_or_number(value: Any) -> Any:
    """A share above 0 and up to 1, or a whole number from 2 on. Raises ValueError for anything else, and for true."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (0 < number <= 1 or (number >= 2 and number.is_integer())):
        shown = json.dumps(value, default=str)
        raise ValueError(f"{shown} is neither a share up to 1, such as 0.5, nor a whole number of rows from 2 on")
    return value


def date_text(value: Any) -> Any:
    """A day as YYYY-MM-DD. Raises ValueError for a text that is none."""
    if isinstance(value, datetime.date):  # YAML reads a bare 2026-01-31 as one
        return value.isoformat()
    if isinstance(value, str):
        try:
            datetime.date.fromisoformat(value)
        except ValueError:
            raise ValueError(f'"{value}" is no day; write it as 2026-01-31') from None
    return value


def share(text: str) -> float:
    """`1%` as 0.01. Raises ValueError for anything that is no percentage above 0 and below 100."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text)
    if not found or not 0 < float(found[1]) < 100:
        raise ValueError(f'"{text}" is no share of the time; write it as 1% or 0.5%')
    return float(found[1]) / 100


def _share_text(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{100 * value:g}%"
    if isinstance(value, str):
        share(value)
    return value


Every = Annotated[str, BeforeValidator(_cadence_text)]
TimeShare = Annotated[str, BeforeValidator(_share_text)]
EverySteps = Annotated[str, BeforeValidator(_steps_text)]


class Section(BaseModel):
    """Frozen, with no unknown keys, texts that every file and tokenizer can hold, and numbers that others can."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_held(cls, value: Any) -> Any:
        for held in value if isinstance(value, list | tuple) else [value]:
            if isinstance(held, str) and (found := NO_TEXT.search(held)):
                raise ValueError(f"it holds {json.dumps(found[0])}, which is no character of a text; take it out")
            if isinstance(held, int) and held > MOST:
                raise ValueError(f"it is more than {MOST:,}, the most that a whole number may be")
        return value
