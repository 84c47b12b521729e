"""What each rule of cleaning costs: rows of each set that it repairs, marks and drops.

    python benchmarks/cleaning.py FILE...

Each rule is on alone (its field of data.clean at its default, or at the value below where that is off), all others off.
"""

import sys
from collections import Counter
from pathlib import Path

from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation, Dropped
from tunesmith.data.read import conversations
from tunesmith.recipe import Clean, Source

TRIED = {name: True for name, field in Clean.model_fields.items() if isinstance(field.default, bool)}
TRIED |= {"min_answer": 20, "max_characters": 10_000}
OFF = Clean.model_validate({name: False if value is True else None for name, value in TRIED.items()})


def counted(rows: list[Conversation], rules: Clean) -> tuple[int, int, Counter[str]]:
    """Rows that rules change and that they drop, and what they did."""
    changed = dropped = 0
    what = Counter[str]()
    for row in rows:
        found, changes = clean(row, rules)
        bare, always = clean(row, OFF)
        if isinstance(found, Dropped):
            if not isinstance(bare, Dropped):
                dropped += 1
                what[found.reason] += 1
        elif found != bare:
            changed += 1
            what.update(change for change in changes if change not in always)
    return changed, dropped, what


def main(files: list[Path]) -> None:
    """Print a row for each set and rule that does anything."""
    print("| set | rows | rule | repaired | dropped | what |\n|---|---:|---|---:|---:|---|")
    for path in files:
        read = list(conversations(Source(path=str(path))))
        rows = [row for row in read if isinstance(row, Conversation)]
        for name, value in TRIED.items():
            changed, dropped, what = counted(rows, OFF.model_copy(update={name: value}))
            if changed or dropped:
                shown = f"{name}: {value}" if value is not True else name
                did = ", ".join(f"{count} {reason}" for reason, count in what.most_common())
                print(f"| {path.name} | {len(rows):,} | `{shown}` | {changed:,} | {dropped:,} | {did} |")
        changed, dropped, what = counted(rows, Clean())
        did = ", ".join(f"{count} {reason}" for reason, count in what.most_common())
        print(f"| {path.name} | {len(rows):,} | **the default set** | {changed:,} | {dropped:,} | {did} |")
        if len(rows) < len(read):
            print(f"| {path.name} | {len(read) - len(rows):,} | (dropped as they were read) | | | |")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
