"""metrics.jsonl: one line a step and one an evaluation, append only; cut back to the checkpoint on resume."""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib

from tunesmith.files import flush, full_disk_named, write_file
from tunesmith.training.state import Progress

matplotlib.use("Agg")  # no screen needed
from matplotlib import pyplot


class Metrics:
    """The metrics file of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_back(self, progress: Progress) -> None:
        """Drop the lines of steps and evaluations that the state knows nothing of, and a half line at the end."""
        kept = []
        for line in self.lines():
            known = progress.evaluated_step if "held_out_loss" in line else progress.step
            if line["step"] <= known:
                kept.append(json.dumps(line))
        write_file(self.path, "".join(f"{line}\n" for line in kept))

    def append(self, line: dict[str, Any]) -> None:
        """Add one line."""
        with full_disk_named(self.path), self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Make the lines survive a power cut: before a checkpoint that counts on them."""
        if self.path.exists():
            flush(self.path)

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines."""
        found = []
        for text in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(text))
            except ValueError:
                break  # the line that was being written when the process was killed
        return found


def plot_losses(metrics: Metrics, target: Path) -> None:
    """Training and held-out loss over the steps, as a PNG."""
    lines = metrics.lines()
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["step"], line["held_out_loss"]) for line in lines if "held_out_loss" in line]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    if train:
        axes.plot(*zip(*train, strict=True), color="#9db4c8", label="training, each step")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="#b3412d", label="held out")
        best = min(held_out, key=lambda point: point[1])
        axes.annotate(f"{best[1]:.3f}", best, xytext=(0, -14), textcoords="offset points", ha="center", color="#b3412d")
    axes.set(xlabel="step", ylabel="loss (nats per supervised token)", ylim=(0, None))
    if lines:  # none yet where a run was stopped before its first step
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    pyplot.close(figure)
    write_file(target, picture.getvalue())
