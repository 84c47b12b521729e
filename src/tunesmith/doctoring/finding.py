"""One thing that doctor found, and how findings are shown: a line each, with the fix below where there is one."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tunesmith.command import as_typed

Verdict = Literal["ok", "note", "lacks", "crashed"]
"""`note`: works, or is not needed, and is good to know; `crashed`: what was tried died, or did not end."""
Group = Literal["machine", "numbers", "disk", "hub", "recipe"]
HEADINGS: dict[Group, str] = {
    "machine": "this machine", "numbers": "training, tried here", "disk": "disks, tried", "hub": "the Hub",
    "recipe": "what the recipe needs",
}  # fmt: skip
BAD = ("lacks", "crashed")
VERDICT_WIDTH, NAME_WIDTH, LEAST_WIDTH, MOST_WIDTH = 7, 13, 60, 100


@dataclass(frozen=True)
class Finding:
    """A verdict on one thing."""

    group: Group
    name: str
    verdict: Verdict
    says: str
    fix: str = ""
    """What to do where something lacks; empty where nothing is to be done."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The same for scripts: sizes in bytes, times in seconds, ratios. Never a secret."""

    @property
    def bad(self) -> bool:
        """Whether something is not there, or does not work."""
        return self.verdict in BAD


def lines_of(finding: Finding, width: int) -> list[str]:
    """A finding as text of at most `width` columns, where its words allow that."""
    width = min(max(width, LEAST_WIDTH), MOST_WIDTH)
    below = " " * (2 + VERDICT_WIDTH + 1)
    first = f"  {finding.verdict:<{VERDICT_WIDTH}} {finding.name:<{NAME_WIDTH}} "
    lines = _wrapped(finding.says, width, first, " " * len(first))
    if finding.fix:
        lines += _wrapped(f"fix: {as_typed(finding.fix)}", width, f"{below}  ", f"{below}    ")
    return lines


def _wrapped(text: str, width: int, first: str, margin: str) -> list[str]:
    wrapper = textwrap.TextWrapper(
        width, initial_indent=first, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(" ".join(text.split())) or [first.rstrip()]


def as_json_text(findings: Sequence[Finding], can_run: bool | None) -> str:
    """All findings as JSON. `can_run`: whether the recipe can run here; None where none was named."""
    return json.dumps({"can_run": can_run, "findings": [asdict(finding) for finding in findings]}, indent=1)
