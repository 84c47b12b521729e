"""The numbers of a comparison: how each is written, whether it can be compared, and which is best beyond the noise.

A difference within the measured spread is no difference: where the middle halves of two measurements touch, neither is
marked. Speeds are compared only within one measuring session.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.console import duration
from tunesmith.recipe import EarlyStopping
from tunesmith.study.models import Model

NONE = "-"
IN_TRAINING = "in training, adapter on base"
MEGABYTE = 1e6
MEMORY_NOISE = 3e6  # bytes; 20 processes on one file had peaks up to 2.6 MB apart (docs/log.md, 2026-11-25)


@dataclass(frozen=True)
class Cell:
    """One number of one model."""

    text: str
    spread: str = ""
    best: bool = False


@dataclass(frozen=True)
class Group:
    """Rows of the table that belong together: (title, a cell for each model); and what must be known of them."""

    title: str
    rows: list[tuple[str, list[Cell]]]
    remark: str = ""


@dataclass(frozen=True)
class Measure:
    """One number of every model: where it is, how it is written, and which is best."""

    title: str
    of: Callable[[Model], Any]
    write: Callable[[Any], str]
    best: Callable[..., Any] | None = None
    noise: float = 0.0
    """Differences up to this are none, for what has no measured spread."""
    spread: Callable[[Model], Sequence[float] | None] = lambda _: None

    def cells(self, models: Sequence[Model], comparable: bool) -> list[Cell]:
        """Text of each model, and whether it is best: it, and what cannot be told from it, if anything can."""
        values = [self.of(model) for model in models]
        ranges = [self._range(model, value) for model, value in zip(models, values, strict=True)]
        winners = self._winners(values, ranges) if comparable and self.best else set()
        cells = []
        for index, (model, value) in enumerate(zip(models, values, strict=True)):
            spread = self.spread(model) if value is not None else None
            words = f"{self.write(spread[0])} to {self.write(spread[1])}" if spread else ""
            cells.append(Cell(NONE if value is None else self.write(value), words, index in winners))
        return cells

    def _range(self, model: Model, value: float | None) -> tuple[float, float] | None:
        if value is None or not self.best:
            return None
        low, high = self.spread(model) or (value - self.noise / 2, value + self.noise / 2)
        return low, high

    def _winners(self, values: Sequence[Any], ranges: Sequence[tuple[float, float] | None]) -> set[int]:
        known = [index for index, value in enumerate(values) if value is not None]
        if not known or not self.best:
            return set()
        low, high = ranges[self.best(known, key=lambda index: values[index])] or (0, 0)
        touch = {i for i in known if (found := ranges[i]) and found[0] <= high and found[1] >= low}
        return touch if len(touch) < len(known) else set()


def megabytes(size: float) -> str:
    """Bytes in words."""
    return f"{size / MEGABYTE:,.0f} MB"


def _score(name: str) -> Callable[[Model], Any]:
    return lambda model: model.scores.get(name)


def _speed(title: str, name: str, write: Callable[[Any], str], best: Callable[..., Any]) -> Measure:
    return Measure(title, _score(name), write, best, spread=lambda model: model.scores.get("spread", {}).get(name))


def _proved(model: Model) -> str | None:
    skipped = sum(bool(proof.skipped_because) for _, proof in model.proofs)
    held = sum(proof.limit is not None and not proof.skipped_because for _, proof in model.proofs)
    if not model.proofs:
        return "none recorded" if model.training else None
    return f"{held} hold" + (f", {skipped} NOT proved" if skipped else "")


MIN_GAIN = EarlyStopping().min_gain  # nats; a smaller fall is no gain in training either
LOSS = Measure("held-out loss, nats", lambda model: model.losses.get("held_out_loss"), "{:.4f}".format, min, MIN_GAIN)
BITS = Measure("bits per byte", lambda model: model.losses.get("bits_per_byte"), "{:.3f}".format, min, MIN_GAIN)
PRECISION = Measure("precision", lambda model: model.precision, str)
TRAINING = (
    Measure("trained tokens", lambda model: model.training.get("tokens"), "{:,}".format),
    Measure("time", lambda model: model.training.get("train_seconds"), duration),
    Measure("resumed, times", lambda model: model.training.get("interruptions"), "{:,}".format),
    Measure("device", lambda model: model.training.get("device"), str),
)
BEGAN = Measure(
    "began with", lambda model: model.training.get("began_with", "the base" if model.training else None), str
)
FILE = (
    Measure("type", _score("gguf"), str),
    Measure("size", _score("file_bytes"), megabytes, min, MEGABYTE),
    Measure("proofs", _proved, str),
)
MEMORY = Measure("peak memory", _score("peak_memory_bytes"), megabytes, min, MEMORY_NOISE)
SPEED = (
    _speed("first token, s", "first_token_s", "{:.2f}".format, min),
    _speed("prompt tokens/s", "prompt_per_s", "{:.0f}".format, max),
    _speed("answer tokens/s", "tokens_per_s", "{:.0f}".format, max),
)


def table(models: Sequence[Model]) -> list[Group]:
    """Every number of every model, in groups."""
    return [_training(models), _file(models), _speeds(models)]


def _training(models: Sequence[Model]) -> Group:
    precisions = {model.precision for model in models if model.losses}
    rows = [
        (LOSS.title, LOSS.cells(models, same_rows(models))),
        (BITS.title, BITS.cells(models, same_definition(models) and same_text(models))),
    ]
    if len(precisions) > 1:
        rows.append((PRECISION.title, PRECISION.cells(models, False)))
    forks = [model.name for model in models if "began_with" in model.training]
    rows += [(measure.title, measure.cells(models, False)) for measure in (*([BEGAN] if forks else []), *TRAINING)]
    remarks = ["The losses are not those of the files: training measured them before merging and quantising."]
    if forks:
        remarks.append(
            f"{' and '.join(forks)} began with the adapter of another run: there the learning curve starts, and tokens "
            "and time are without those of that run."
        )
    if not same_rows(models):
        remarks.append("Held-out losses are not comparable: tokenizers or held-out rows differ.")
    if not same_definition(models):
        remarks.append(
            "Bits per byte are not comparable: one definition counts the end-of-turn token (version 0.1), one does not."
        )
    return Group(training_words(models), rows, " ".join(remarks))


def _file(models: Sequence[Model]) -> Group:
    return Group("GGUF file", [(measure.title, measure.cells(models, True)) for measure in FILE])


def _speeds(models: Sequence[Model]) -> Group:
    why = why_not_comparable(models)
    rows = [(measure.title, measure.cells(models, not why)) for measure in (*SPEED, MEMORY)]
    return Group("speed, not comparable" if why else "speed", rows, f"{why} {_measured(models)}".strip())


def why_not_comparable(models: Sequence[Model]) -> str:
    """Why the speeds of the models say nothing about each other; empty if they do.

    Nor does the memory then: it grows with the length of the answers, which have one length only where all are measured
    in turn.
    """
    scores = [model.scores for model in models if model.scores]
    if len(scores) < 2:
        return ""
    for name, what in (("processor", "on different processors"), ("threads", "with different numbers of threads"),
                       ("xllamacpp", "with different versions of llama.cpp")):  # fmt: skip
        found = sorted({str(score.get(name) or "unknown") for score in scores})
        if len(found) > 1:
            return f"Speeds and memory are not comparable: they were measured {what} ({', '.join(found)})."
    sessions = {score.get("session") for score in scores}
    if len(sessions) > 1 or None in sessions:
        return (
            "Speeds and memory are not comparable: they were measured at different times; "
            "--measure measures all of them in turn."
        )
    return ""


def _measured(models: Sequence[Model]) -> str:
    """Where and when the speeds were measured."""
    found = list(dict.fromkeys(
        f"{score.get('processor', 'unknown processor')}, {score.get('threads', '?')} threads, {_when(score)}"
        + (f", in turn in {score['rounds']} rounds" if score.get("rounds") else "")
        for score in (model.scores for model in models) if score
    ))  # fmt: skip
    return f"Measured: {'; '.join(found)}. Medians over the prompts, and their middle half." if found else ""


def _when(score: Mapping[str, Any]) -> str:
    """To the minute; version 0.1 did not write it down."""
    at = score.get("measured_at")
    return str(at)[:16].replace("T", " ") if at else "at an unknown time"


def training_words(models: Sequence[Model]) -> str:
    """What the losses are of: such as "in training, adapter on base, bf16"."""
    precisions = sorted({model.precision for model in models if model.losses})
    return f"{IN_TRAINING}, {precisions[0]}" if len(precisions) == 1 else IN_TRAINING


def same_rows(models: Sequence[Model]) -> bool:
    """Whether the held-out losses can be compared: measured on the same tokens."""
    return _one([model.rows for model in models if model.losses])


def same_text(models: Sequence[Model]) -> bool:
    """Whether the held-out answers have the same lengths in bytes."""
    return _one([model.text for model in models if model.losses])


def same_definition(models: Sequence[Model]) -> bool:
    """Whether bits per byte mean the same."""
    return len({model.definition for model in models if model.losses}) <= 1


def _one(found: Sequence[str | None]) -> bool:
    return len(found) < 2 or (len(set(found)) == 1 and None not in found)
