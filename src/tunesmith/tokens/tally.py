"""What becomes of the rows that are read: counted by reason, with examples."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What is counted on the way from the files to the rows."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)
    unproved: Counter[str] = field(default_factory=Counter)
    """Kind, a key of UNPROVED in prepare.py -> rows."""
    first_unproved: dict[str, str] = field(default_factory=dict)
    """Kind -> the first row, with what was found."""

    def drop(self, where: str, reason: str) -> None:
        """Count a row that is not used; the first three of a reason are named."""
        self.dropped[reason] += 1
        if self.dropped[reason] <= 3:
            self.examples.setdefault(reason, []).append(where)

    def reasons(self) -> str:
        """Why rows were dropped, how many, and where the first ones are."""
        named = (f"{reason}: {n} ({', '.join(self.examples[reason])})" for reason, n in self.dropped.items())
        return "; ".join(named) or "none"
