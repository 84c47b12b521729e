"""What is counted, in the text format of Prometheus; numbers only, never a text or an address.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import re
from collections import Counter

from tunesmith.server.line import Line

FIRST_TOKEN_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # upper ends of the histogram's classes
TIMINGS = re.compile(rb'"prompt_n":\s*(\d+).*?"predicted_n":\s*(\d+)', re.DOTALL)
"""Of the end of an answer: tokens that were read, and that were made."""


class Metrics:
    """Counts since the start."""

    def __init__(self) -> None:
        self.requests, self.refusals, self.tokens = Counter[int](), Counter[str](), Counter[str]()
        self.restarts = 0
        self._classes, self._sum_s, self._answers = Counter[float](), 0.0, 0

    def first_token(self, elapsed_s: float) -> None:
        """The first text of an answer came, so long after its request."""
        self._classes.update(end for end in FIRST_TOKEN_S if elapsed_s <= end)
        self._sum_s, self._answers = self._sum_s + elapsed_s, self._answers + 1

    def answered(self, tail: bytes) -> tuple[int, int] | None:
        """Count the tokens that the end of an answer tells of; None where it tells of none."""
        if not (found := TIMINGS.search(tail)):
            return None
        read, made = int(found[1]), int(found[2])
        self.tokens.update(prompt=read, answer=made)
        return read, made

    def text(self, line: Line, up: bool) -> str:
        """All of it, as Prometheus reads it."""
        name = "tunesmith_first_token_seconds"
        ends = [(f'le="{end:g}"', self._classes[end]) for end in FIRST_TOKEN_S]
        return "".join([
            _series("requests_total", "counter", "Answers by status.", "status", self.requests),
            _series("refusals_total", "counter", "Refused requests by reason.", "reason", self.refusals),
            _series("tokens_total", "counter", "Tokens read and made.", "kind", self.tokens),
            _series("engine_restarts_total", "counter", "Times the engine was started again.", "", {"": self.restarts}),
            _series("engine_up", "gauge", "1 while the engine answers.", "", {"": int(up)}),
            _series("running", "gauge", "Requests that are answered.", "", {"": line.running}),
            _series("waiting", "gauge", "Requests in the queue.", "", {"": line.waiting}),
            f"# HELP {name} From a request to the first text of its answer.\n# TYPE {name} histogram\n",
            *(f"{name}_bucket{{{end}}} {count}\n" for end, count in [*ends, ('le="+Inf"', self._answers)]),
            f"{name}_sum {self._sum_s:.6f}\n{name}_count {self._answers}\n",
        ])  # fmt: skip


def _series(name: str, kind: str, says: str, label: str, values: "dict[str, int] | Counter[int] | Counter[str]") -> str:
    head = f"# HELP tunesmith_{name} {says}\n# TYPE tunesmith_{name} {kind}\n"
    rows = [(f'{{{label}="{key}"}}' if label else "", count) for key, count in values.items()]
    return head + "".join(f"tunesmith_{name}{labels} {count}\n" for labels, count in rows)
