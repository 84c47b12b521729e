"""What is seen of a source while it is read: for the user, and for the record."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tunesmith.printable import visible

LONGEST_NAME = 60  # letters of a column's name that are kept
MOST_NAMES = 1000  # keys of free form, such as ids, can be as many as rows
FURTHER = "further columns"


@dataclass
class Noted:
    """Counts that are no reason to drop a row."""

    form: str = ""
    """The format of the source: that of its first row that has one."""
    formats: Counter[str] = field(default_factory=Counter)
    """Format -> rows that were read as it."""
    unused: Counter[str] = field(default_factory=Counter)
    """Column that says something and is not used, or column[].key of its turns -> rows that have it."""
    changed: Counter[str] = field(default_factory=Counter)
    """What was done to rows or messages on the way."""

    def note_unused(self, columns: Iterable[str]) -> None:
        """Count a row that has these columns, which are not used; under one name where there are very many."""
        for column in columns:
            name = visible(" ".join(column.split()))
            name = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
            self.unused[name if name in self.unused or len(self.unused) < MOST_NAMES else FURTHER] += 1
