"""The pictures of a comparison, as data URIs, so that the page is one file."""

import base64
import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tunesmith.study.measures import IN_TRAINING, same_definition, same_rows, why_not_comparable
from tunesmith.study.models import Model

matplotlib.use("Agg")  # no screen needed


def plot_quality(models: Sequence[Model]) -> Figure | None:
    """Loss in training against speed of the file: better is below and to the right; None for under two points.

    The area of a point is its file's size, the bar the middle half of its speeds.
    """
    same = same_rows(models)
    key, title = ("held_out_loss", "held-out loss, nats per token") if same else ("bits_per_byte", "bits per byte")
    shown = [model for model in models if key in model.losses and "tokens_per_s" in model.scores]
    if len(shown) < 2 or not (same or same_definition(models)):
        return None
    remark = "not comparable" if why_not_comparable(models) else "more is better"
    figure, axes = _axes(f"answer tokens per second ({remark})", f"{title}\n{IN_TRAINING} (less is better)")
    sizes = [model.scores.get("file_bytes", 0) for model in shown]
    for model, size in zip(shown, sizes, strict=True):
        at = (model.scores["tokens_per_s"], model.losses[key])
        area = 60 + 500 * size / max(*sizes, 1)
        axes.scatter(*at, s=area, color=model.colour, alpha=0.75, linewidths=0)
        if spread := model.scores.get("spread", {}).get("tokens_per_s"):
            axes.plot(spread, [at[1]] * 2, color=model.colour, linewidth=2, alpha=0.5)
        axes.annotate(model.name, at, xytext=(0, 16), textcoords="offset points", ha="center", color=model.colour)
    axes.margins(0.25)
    return figure


def plot_curves(models: Sequence[Model]) -> Figure | None:
    """Training loss of each step (thin) and held-out loss (points) of every run; None where no run has any."""
    figure, axes = _axes("step", "loss, nats per supervised token")
    drawn = False
    for model in models:
        train = [(line["step"], line["loss"]) for line in model.metrics if line.get("loss") is not None]
        held_out = [(line["step"], line["held_out_loss"]) for line in model.metrics if line.get("held_out_loss")]
        drawn = drawn or bool(train or held_out)
        if train:
            thin: dict[str, Any] = {"alpha": 0.3, "linewidth": 1, "label": f"{model.name}, training"}
            axes.plot(*zip(*train, strict=True), color=model.colour, **thin)
        if held_out:
            points: dict[str, Any] = {"markersize": 4, "label": f"{model.name}, held out"}
            axes.plot(*zip(*held_out, strict=True), "o-", color=model.colour, **points)
    if not drawn:
        return None
    axes.legend(frameon=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def image(figure: Figure | None) -> str | None:
    """A figure as a data URI."""
    if figure is None:
        return None
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter of a folder's name that the font lacks: a box
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9ca3af")
    axes.tick_params(color="#9ca3af", labelcolor="#4b5563")
    axes.grid(color="#eef0f3")
    axes.set_axisbelow(True)
    return figure, axes
