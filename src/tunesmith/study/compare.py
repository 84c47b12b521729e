"""VERB compare: run folders to one self-contained page: answers side by side, losses, speed, size, and the pick.

Reads what the stages left behind; loads no model.
"""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from tunesmith import __version__
from tunesmith.errors import ResumeError
from tunesmith.files import fingerprint, write_file
from tunesmith.recipe_file import read_recipe
from tunesmith.runs import Run, read_record
from tunesmith.study.report_file import refuse_other_file
from tunesmith.tokens.rows import load_rows

matplotlib.use("Agg")  # no screen needed

COLOURS = ("#3457d5", "#c2410c", "#0f766e", "#9333ea", "#b45309", "#be123c", "#4d7c0f", "#0369a1")
BASE_COLOUR = "#6b7280"
NONE = "-"


@dataclass(frozen=True)
class Model:
    """One column of the comparison: a fine-tuned run, or the untouched base of one."""

    name: str
    base: str
    colour: str
    scores: dict[str, Any]
    answers: list[dict[str, Any]]
    rows: str
    """Digest of the held-out tokens: models with the same one have losses that can be compared."""
    text: str
    """Fingerprint of the held-out answers' lengths in bytes: bits per byte can be compared."""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _training(counts: dict[str, Any]) -> dict[str, Any]:
    return {"tokens": counts["tokens"], "training": f"{_duration(counts['train_seconds'])}, {counts['device']}"}


@dataclass(frozen=True)
class Measure:
    """One number of every model: where it is, how it is written, and which is best."""

    title: str
    of: str
    write: Callable[[Any], str]
    best: Callable[..., Any] | None = None

    def cells(self, models: Sequence[Model]) -> list[tuple[str, bool]]:
        """Text of each model, and whether it is the best; what is written the same is no difference."""
        values = [(model.scores | model.training).get(self.of) for model in models]
        texts = [NONE if value is None else self.write(value) for value in values]
        known = [value for value in values if value is not None]
        best = self.write(self.best(known)) if self.best and len({*texts} - {NONE}) > 1 else None
        return [(text, text == best) for text in texts]


MEASURES = (
    Measure("held-out loss", "held_out_loss", "{:.4f}".format, min),
    Measure("bits per byte", "bits_per_byte", "{:.3f}".format, min),
    Measure("file", "file_bytes", _megabytes, min),
    Measure("peak memory", "peak_memory_bytes", _megabytes, min),
    Measure("first token", "first_token_s", "{:.2f} s".format, min),
    Measure("prompt tok/s", "prompt_per_s", "{:.0f}".format, max),
    Measure("answer tok/s", "tokens_per_s", "{:.0f}".format, max),
    Measure("trained tokens", "tokens", "{:,}".format),
    Measure("training", "training", str),
)


def compare(names: Sequence[str], report: Path) -> Path:
    """Write the page on the runs `names` (folders, or `base`: the untouched base of the first run) to `report`.

    Prints the table too. Raises ResumeError for a folder that is no run or has no evaluation, RecipeError where
    `report` is a file of the user's.
    """
    refuse_other_file(report)
    first = next(name for name in names if name != "base")
    models = []
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)]
        models.append(_base_of(Path(first)) if name == "base" else _tuned(Path(name), colour))
    best, reason = pick(models)
    table = [(measure.title, measure.cells(models)) for measure in MEASURES]
    environment = Environment(loader=PackageLoader("tunesmith.study", ""), autoescape=True, undefined=StrictUndefined)
    prompts = list(dict.fromkeys(answer["prompt"] for model in models for answer in model.answers))
    page = environment.get_template("report.html.j2").render(
        models=models,
        best=best,
        reason=reason,
        table=table,
        processors=sorted({f"{m.scores['processor']}, {m.scores['threads']} threads" for m in models}),
        answers=[(prompt, [_answer_to(model, prompt) for model in models]) for prompt in prompts],
        speed_plot=_image(plot_quality(models)) if len(models) > 1 else None,
        curves_plot=_image(plot_curves(models)) if any(model.metrics for model in models) else None,
        version=__version__,
    )
    write_file(report, page)
    _print(models, table, reason)
    return report


def pick(models: Sequence[Model]) -> tuple[Model, str]:
    """The model to ship, and why in one sentence: lowest held-out loss, or bits per byte if losses do not compare."""
    same_rows = len({model.rows for model in models}) == 1
    same_text = len({model.text for model in models}) == 1
    key, title = ("held_out_loss", "held-out loss") if same_rows else ("bits_per_byte", "bits per byte")
    ranked = sorted((m for m in models if m.scores[key] is not None), key=lambda model: model.scores[key])
    if not ranked:
        return models[0], "No model has a held-out loss, so read the answers and choose by them."
    best, others = ranked[0], ranked[1:]
    value = f"{best.scores[key]:.3f}"
    if not others:
        return best, f"{best.name} has a {title} of {value}; name another run, or base, to compare it with."
    reason = f"{best.name} has the lowest {title}, {value} against {others[0].scores[key]:.3f} of {others[0].name}"
    if same_rows:
        return best, f"{reason}, on the same held-out rows."
    reason += "; the losses cannot be compared, because tokenizers or held-out rows differ"
    return best, f"{reason}." if same_text else f"{reason}, and as the held-out text differs too this is only a hint."


def _tuned(path: Path, colour: str) -> Model:
    run = Run(path)
    recipe, rows, text = _known(run)
    trained = read_record(run.adapter)
    proof = run.gguf / "proof.json"
    return Model(
        name=path.resolve().name,
        base=recipe,
        colour=colour,
        scores=json.loads((run.evaluation / "scores.json").read_text()),
        answers=_lines(run.evaluation / "answers.jsonl"),
        rows=rows,
        text=text,
        training=_training(trained.counts) if trained else {},
        metrics=_lines(run.metrics),
        files=_files(json.loads(proof.read_text())) if proof.exists() else [],
    )


def _base_of(path: Path) -> Model:
    run = Run(path)
    base, rows, text = _known(run)
    scores = json.loads((run.evaluation / "base-scores.json").read_text())
    answers = _lines(run.evaluation / "base-answers.jsonl")
    return Model(name="base", base=base, colour=BASE_COLOUR, scores=scores, answers=answers, rows=rows, text=text)


def _known(run: Run) -> tuple[str, str, str]:
    """Base of a run, and what its held-out numbers were measured on. Raises ResumeError if it is not evaluated."""
    if not run.recipe.exists():
        raise ResumeError(f"{run.path} is no run folder: it has no recipe.yaml", fix="name a folder under runs/")
    if read_record(run.evaluation) is None:
        raise ResumeError(f"{run.path} has no evaluation yet", fix=f"type `tunesmith evaluate {run.path}` first")
    held_out = load_rows(run.data)[1]
    part = slice(int(held_out.offsets_N1[0]), int(held_out.offsets_N1[-1]))
    digest = hashlib.sha256(held_out.tokens_T[part].tobytes() + held_out.supervised_T[part].tobytes()).hexdigest()
    return read_recipe(run.recipe).base, digest, fingerprint(held_out.answer_bytes_N.tolist())


def _files(proof: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the quantisation table: F16 against the merged model, every other file against F16."""
    rows = []
    for kind, file in proof.items():
        against = file.get("against_F16", file["against_model"])
        rows.append({
            "type": kind,
            "size": _megabytes(file["bytes"]),
            "kl": f"{against['mean_kl']:.2g}",
            "top1": f"{against['top1']:.1%}",
            "tensors": ", ".join(f"{count} {name}" for name, count in file["tensor_types"].items()),
            "fallbacks": file["fallbacks"],
        })  # fmt: skip
    return rows


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _answer_to(model: Model, prompt: str) -> dict[str, Any] | None:
    return next((answer for answer in model.answers if answer["prompt"] == prompt), None)


def plot_quality(models: Sequence[Model]) -> Figure:
    """Quality against speed: the better model is below and to the right; the area of a point is its file's size."""
    same = len({model.rows for model in models}) == 1
    key, title = ("held_out_loss", "held-out loss, nats per token") if same else ("bits_per_byte", "bits per byte")
    figure, axes = _axes("answer tokens per second (more is better)", f"{title} (less is better)")
    shown = [model for model in models if model.scores[key] is not None]
    largest = max(model.scores["file_bytes"] for model in models)
    for model in shown:
        at = (model.scores["tokens_per_s"], model.scores[key])
        area = 60 + 500 * model.scores["file_bytes"] / largest
        axes.scatter(*at, s=area, color=model.colour, alpha=0.75, linewidths=0)
        axes.annotate(model.name, at, xytext=(0, 16), textcoords="offset points", ha="center", color=model.colour)
    axes.margins(0.25)
    return figure


def plot_curves(models: Sequence[Model]) -> Figure:
    """Training loss of each step (thin) and held-out loss (points) of every run."""
    figure, axes = _axes("step", "loss, nats per supervised token")
    for model in (model for model in models if model.metrics):
        train = [(line["step"], line["loss"]) for line in model.metrics if "loss" in line]
        held_out = [(line["step"], line["held_out_loss"]) for line in model.metrics if "held_out_loss" in line]
        if train:
            thin: dict[str, Any] = {"alpha": 0.3, "linewidth": 1, "label": f"{model.name}, training"}
            axes.plot(*zip(*train, strict=True), color=model.colour, **thin)
        if held_out:
            points: dict[str, Any] = {"markersize": 4, "label": f"{model.name}, held out"}
            axes.plot(*zip(*held_out, strict=True), "o-", color=model.colour, **points)
    axes.legend(frameon=False)
    return figure


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


def _image(figure: Figure) -> str:
    """A figure as a data URI, so that the page is one file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _print(models: Sequence[Model], table: Sequence[tuple[str, list[tuple[str, bool]]]], reason: str) -> None:
    shown = Table("", *(model.name for model in models))
    for title, cells in table:
        shown.add_row(title, *(f"[bold]{text}[/bold]" if best else text for text, best in cells))
    console = Console()
    console.print(shown)
    console.print(reason, markup=False, highlight=False)
