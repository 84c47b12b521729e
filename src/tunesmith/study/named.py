"""Which runs a comparison names."""

from collections.abc import Sequence
from pathlib import Path

from tunesmith.console import warn
from tunesmith.errors import RecipeError

BASE = "base"
"""The untouched base of the first run."""


def named_once(names: Sequence[str]) -> list[str]:
    """The names without those that are the same folder as one before, which is said."""
    seen: dict[Path | str, str] = {}
    for name in names:
        key = name if name == BASE else Path(name).resolve()
        if key in seen:
            warn(f"{name} is named twice, and shown once")
        seen.setdefault(key, name)
    return list(seen.values())


def first_run(names: Sequence[str]) -> str:
    """The first name that is a run. Raises RecipeError if there is none."""
    for name in names:
        if name != BASE:
            return name
    raise RecipeError("`base` alone says nothing: its numbers are kept with the runs", fix="name a run as well")


def titles(names: Sequence[str]) -> dict[str, str]:
    """What each is called on the page: the folder's name; the path as it was typed where two have the same."""
    short = {name: name if name == BASE else Path(name).resolve().name for name in names}
    return {name: name if list(short.values()).count(title) > 1 else title for name, title in short.items()}
