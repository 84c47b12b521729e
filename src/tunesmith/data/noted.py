"""What is seen of a source while it is read: for the user, and for the record."""

from collections import Counter
from dataclasses import dataclass, field


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
