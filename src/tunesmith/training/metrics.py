"""metrics.jsonl: one line a step and one an evaluation, append only; cut back to the checkpoint on resume.

samples.jsonl likewise: one line an evaluation with an answer.
"""

import contextlib
import io
import json
import math
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

from tunesmith.console import warn
from tunesmith.files import aside, flush, full_disk_named, write_all, write_file
from tunesmith.json_file import json_lines
from tunesmith.runs import Run

if TYPE_CHECKING:  # it brings torch, which the report does not need
    from tunesmith.training.state import Progress

matplotlib.use("Agg")  # no screen needed
from matplotlib import pyplot

LOSSES = ("loss", "held_out_loss")
SAMPLE = {"question": str, "answer": str, "tokens": int, "seconds": int | float}
DIGEST = "adapter_sha256"
"""In a line of metrics.jsonl: the digest of the adapter after that step, as the trainer had it in memory."""


class Metrics:
    """The metrics file of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = list[str]()
        """Lines that are not in the file yet, as the disk took nothing."""
        self._lock = threading.Lock()

    def cut_back(self, progress: "Progress") -> None:
        """Drop the lines of steps and evaluations that the state knows nothing of, and a half line at the end.

        Lines that something else has damaged are named and left out; the file as it was is kept beside it.
        """
        lines, wrong = self.read()
        if wrong:
            kept_as = aside(self.path)
            shutil.copyfile(self.path, kept_as)
            warn(f"{self.path}: {damage_in_words(wrong)}; the file as it was is kept as {kept_as.name}")
        kept = []
        for line in lines:
            if line["step"] <= self._known(line, progress):
                kept.append(json.dumps(line))
        write_file(self.path, "".join(f"{line}\n" for line in kept))

    def _known(self, line: dict[str, Any], progress: "Progress") -> int:
        """The last step of such a line that the state knows of."""
        return progress.evaluated_step if "held_out_loss" in line else progress.step

    def append(self, line: dict[str, Any]) -> None:
        """Add one line; where the disk takes nothing it is kept in memory until it does, and training goes on."""
        with self._lock:
            self._held.append(json.dumps(line) + "\n")
            with contextlib.suppress(OSError):
                self._write_held()

    def flush(self) -> None:
        """Make the lines survive a power cut, before a checkpoint counts on them. Raises where the disk is full."""
        with full_disk_named(self.path):
            with self._lock:
                self._write_held()
            if self.path.exists():
                flush(self.path)

    def _write_held(self) -> None:
        if not self._held:
            return
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab", buffering=0) as file:
                write_all(file, memoryview("".join(self._held).encode()))
        except OSError:
            with contextlib.suppress(OSError):  # no half line, or it would be one with the next
                os.truncate(self.path, before)
            raise
        self._held.clear()

    def read(self) -> tuple[list[dict[str, Any]], dict[int, str]]:
        """All whole lines; and what is wrong with each line that is none, by its number."""
        found, wrong = json_lines(self.path)
        for number, line in found:
            if not isinstance(line.get("step"), int):
                wrong[number] = "it has no step"
            elif reason := self._wrong(line):
                wrong[number] = reason
        return [line for number, line in found if number not in wrong], dict(sorted(wrong.items()))

    def _wrong(self, line: dict[str, Any]) -> str:
        """What else is wrong with a line that has a step."""
        whole = all(isinstance(line.get(name, 0.0) or 0.0, int | float) for name in LOSSES)  # None: not finite
        return "" if whole else "its loss is no number"


class Samples(Metrics):
    """The samples file of one run."""

    def _known(self, line: dict[str, Any], progress: "Progress") -> int:
        return progress.evaluated_step

    def _wrong(self, line: dict[str, Any]) -> str:
        whole = all(isinstance(line.get(name), kind) for name, kind in SAMPLE.items())
        whole = whole and math.isfinite(line["seconds"]) and line["seconds"] >= 0 <= line["tokens"]
        return "" if whole else "it is no sample"


def damage_in_words(wrong: dict[int, str]) -> str:
    """Lines that are none, such as "line 3 is damaged (it has no step) and 4 more; they are left out"."""
    (first, why), more = next(iter(wrong.items())), len(wrong) - 1
    if not more:
        return f"line {first} is damaged ({why}) and left out"
    return f"line {first} is damaged ({why}) and {more} more; they are left out"


def draw_losses(axes: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    """Both losses by step, over no more than their own range, so that a small change is seen."""
    train = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    held_out = [(line["step"], line["held_out_loss"]) for line in lines if line.get("held_out_loss") is not None]
    if train:
        axes.plot(*zip(*train, strict=True), color="#9db4c8", label="training, each step")
    title = "Loss in training and on held-out conversations"
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="#b3412d", label="held out")
        step, lowest = min(held_out, key=lambda point: point[1])
        style = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center", "color": "#b3412d"}
        axes.annotate(f"{lowest:.4f}", (step, lowest), **style)
        title += f": lowest {lowest:.4f}, at step {step}"
    axes.set_title(title, loc="left", fontsize=11)
    last = max([1, *(line["step"] for line in lines)])
    axes.set_xlim(-0.03 * last, 1.03 * last)
    axes.margins(y=0.12)  # room for the number below the lowest point
    axes.ticklabel_format(useOffset=False)
    axes.xaxis.get_major_locator().set_params(integer=True)


def plot_losses(metrics: Metrics, target: Path) -> None:
    """Training and held-out loss over the steps, as a PNG."""
    lines, _ = metrics.read()
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    draw_losses(axes, lines)
    start = " (0: as it began, with the adapter of another run)" if Run(metrics.path.parent).ancestor.is_dir() else ""
    axes.set(xlabel=f"step{start}", ylabel="loss (nats per supervised token)")
    if lines:  # none yet where a run was stopped before its first step
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    pyplot.close(figure)
    write_file(target, picture.getvalue())


def kept_digests(run: Run) -> dict[int, str]:
    """Step -> the digest of the adapter after it, where the trainer kept one."""
    lines, _ = json_lines(run.metrics)
    return {
        line["step"]: str(line[DIGEST]) for _, line in lines if DIGEST in line and isinstance(line.get("step"), int)
    }


def kept_steps(run: Run) -> int:
    """How many steps have their line."""
    lines, _ = json_lines(run.metrics)
    return sum("tokens_per_s" in line for _, line in lines)
