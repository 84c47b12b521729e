"""Where a report may be written: not onto a file of the user's."""

import os
from pathlib import Path

from tunesmith.errors import RecipeError

MARK = b": tunesmith report</title>"
"""In the head of every report, also of version 0.1."""
HEAD_BYTES = 1 << 16


def refuse_other_file(report: Path) -> None:
    """Raise RecipeError if something is there that is no report of ours."""
    if report.is_dir():
        raise RecipeError(f"{report} is a folder", fix="name a file with --report, such as report.html")
    above = next(place for place in report.absolute().parents if os.path.lexists(place))
    if not above.is_dir():
        raise RecipeError(f"{report} cannot be written: {above} is no folder", fix="name a file in a folder, --report")
    if report.exists() and not _is_report(report):
        raise RecipeError(
            f"{report} is there already and is no report of tunesmith's; it is not overwritten",
            fix="name another file with --report, such as comparison.html",
        )


def _is_report(path: Path) -> bool:
    if not path.is_file():  # a pipe would wait for ever
        return False
    with path.open("rb") as file:
        return MARK in file.read(HEAD_BYTES)
