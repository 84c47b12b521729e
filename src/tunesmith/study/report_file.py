"""Where a report may be written: not onto a file of the user's."""

import os
from pathlib import Path

from tunesmith.errors import RecipeError

MARK = b": tunesmith report</title>"
"""In the head of every report, also of version 0.1."""
HEAD_BYTES = 1 << 16


def report_file(named: str) -> Path:
    """The file that a user names for a report. Raises RecipeError for a folder, also for one that is not there yet."""
    if named.endswith(os.sep):
        raise _folder(named)
    return Path(named)


def _folder(named: str | Path) -> RecipeError:
    return RecipeError(f"{named} is a folder", fix=f"name a file with --report, such as {Path(named, 'report.html')}")


def refuse_other_file(report: Path) -> None:
    """Raise RecipeError if something is there that is no report of ours."""
    if report.is_dir():
        raise _folder(report)
    above = next(place for place in report.absolute().parents if os.path.lexists(place))
    if not above.is_dir():
        raise RecipeError(f"{report} cannot be written: {above} is no folder", fix="name a file in a folder, --report")
    if report.exists() and not _is_report(report):
        raise RecipeError(
            f"{report} is there already and is no report of tunesmith's; it is not overwritten",
            fix="name another file with --report, such as comparison.html",
        )


def keep_earlier(report: Path, page: str) -> Path | None:
    """Give a report of another comparison than `page` its own name beside it; returns that. None: there is none.

    The same comparison as one that was kept before takes its place.
    """
    if not report.is_file() or (title := _title(report)) == _title_in(page.encode()):
        return None
    number = 2
    while os.path.lexists(kept := report.with_name(f"{report.stem}-{number}{report.suffix}")):
        if not kept.is_symlink() and _is_report(kept) and _title(kept) == title:
            break
        number += 1
    report.rename(kept)
    return kept


def _title(report: Path) -> bytes:
    with report.open("rb") as file:
        return _title_in(file.read(HEAD_BYTES))


def _title_in(head: bytes) -> bytes:
    """The names of what a page compares, as they are in its title."""
    return head.partition(MARK)[0].rpartition(b"<title>")[2]


def _is_report(path: Path) -> bool:
    if not path.is_file():  # a pipe would wait for ever
        return False
    with path.open("rb") as file:
        return MARK in file.read(HEAD_BYTES)
