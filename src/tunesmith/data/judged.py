"""The rows of a source are judged one by one, each by its own columns, first as what the source is."""

from collections.abc import Iterable, Iterator

from tunesmith.data.columns import FORMATS, Names, Row, column_names, format_of, half_there, is_of, no_format
from tunesmith.data.conversation import Conversation, Dropped
from tunesmith.data.formats import read_row
from tunesmith.data.meaning import why_not_row
from tunesmith.data.noted import Noted
from tunesmith.data.speakers import Roles
from tunesmith.data.unread import Unread, words_of
from tunesmith.recipe import Source

NO_FORMAT = "its columns are those of no format"
HEAD_ROWS = 100  # if none of so many rows has a format, the source is the wrong one, or its columns have other names
MOST_WAITING = 10_000  # bad rows that are held until one has a format: a file of nothing else is not held

Placed = Iterable[tuple[str, Row | Unread]]
"""Where a row is, and the row or what is wrong with it."""


def judged(rows: Placed, source: Source, roles: Roles, noted: Noted) -> Iterator[Conversation | Dropped]:
    """The conversations of rows, in order, or why there are none.

    Raises DataError, with the columns there are, if none of the first HEAD_ROWS rows has a format.
    """
    names, form = column_names(source), ""
    waiting, error = list[Dropped](), None  # until a row has a format
    for where, row in rows:
        own = "" if isinstance(row, Unread) else form if is_of(row, form, names) else format_of(row, source, names)
        form = noted.form = form or own
        if own and not isinstance(row, Unread):
            yield from waiting
            waiting.clear()
            yield from read_row(row, own, names, where, roles, noted)
            continue
        dropped = _dropped(row, where, form, names)
        if form:
            yield dropped
            continue
        waiting.append(dropped)
        if error is None and not isinstance(row, Unread) and dropped.reason == NO_FORMAT:
            error = no_format(row, source, names, where)
        if error and len(waiting) >= HEAD_ROWS:
            raise error
        if len(waiting) >= MOST_WAITING:
            yield from waiting
            waiting.clear()
    if error and not form:
        raise error
    yield from waiting


def _dropped(row: Row | Unread, where: str, form: str, names: Names) -> Dropped:
    """A row without a format; why that is may be known, as of preference pairs, or of half a row of the source's."""
    if isinstance(row, Unread):
        return Dropped(where, str(row), row.words)
    reason = why_not_row(row, ()) or (form in FORMATS and half_there(row, form, names)) or NO_FORMAT
    return Dropped(where, reason, words_of(row))
