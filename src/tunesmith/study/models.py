"""The candidates of a comparison, read from what the stages left behind; no model is loaded."""

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.boundary import why_unread
from tunesmith.decides import as_begun, kept_recipe
from tunesmith.errors import ResumeError
from tunesmith.evaluation.speeds import summary
from tunesmith.files import RECORD, fingerprint
from tunesmith.json_file import OTHER_JSON, json_lines, json_object
from tunesmith.record import (
    Proof,
    Record,
    damaged_file,
    made_anew,
    output_digest,
    read_record,
    refuse_damaged,
    refuse_lost_measures,
)
from tunesmith.runs import Run
from tunesmith.stages import STAGES
from tunesmith.stale import cut_from_training, stale
from tunesmith.study.named import BASE, first_run, titles
from tunesmith.tokens.rows import load_rows
from tunesmith.training.metrics import Metrics, damage_in_words
from tunesmith.training.outcome import ancestor_of, outcome

COLOURS = ("#3457d5", "#c2410c", "#0f766e", "#9333ea", "#b45309", "#be123c", "#4d7c0f", "#0369a1")
BASE_COLOUR = "#6b7280"


@dataclass(frozen=True)
class Model:
    """One column of the comparison: a fine-tuned run, or the untouched base of one."""

    name: str
    base: str
    colour: str
    scores: dict[str, Any]
    """What evaluate measured: speeds, spread, memory, size, session; empty where no GGUF was asked for."""
    answers: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    """Answers to held-out questions, with what the data answer; none in runs of earlier versions."""
    losses: dict[str, float]
    """held_out_loss and bits_per_byte as training measured them: of the adapter on its base, or of the base alone."""
    precision: str
    """What the losses were computed in."""
    definition: int = 1
    """Version of the definition of bits per byte."""
    rows: str | None = None
    """Digest of the held-out tokens: losses on the same ones can be compared. None: not known."""
    text: str | None = None
    """Fingerprint of the held-out answers' lengths in bytes: bits per byte can be compared."""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    proofs: list[tuple[str, Proof]] = field(default_factory=list)
    """Verb and proof."""
    outcome: str = ""
    """How its training ended, in a sentence."""
    old: list[str] = field(default_factory=list)
    """What of the run is not what its recipe says."""

    @property
    def of_base(self) -> bool:
        """Whether it is the untouched base."""
        return self.colour == BASE_COLOUR


def read_models(names: Sequence[str], speeds: Mapping[str, Mapping[str, Any]] | None) -> list[Model]:
    """The models in the order of `names`. `speeds`: by name, measured now, instead of those that were recorded.

    Raises ResumeError for a folder that is no run, has no evaluation, or is damaged.
    """
    called = titles(names)
    models = []
    for index, name in enumerate(names):
        of_base = name == BASE
        model = _read(Run(Path(first_run(names) if of_base else name)), of_base)
        colour = BASE_COLOUR if of_base else COLOURS[index % len(COLOURS)]
        scores = model.scores | dict(speeds[name]) if speeds else model.scores
        models.append(replace(model, name=called[name], colour=colour, scores=scores))
    return models


def _read(run: Run, of_base: bool) -> Model:
    run.refuse_none()
    recipe = as_begun(kept_recipe(run), run)
    evaluated, trained = read_record(run.evaluation), read_record(run.adapter)
    if evaluated is None and recipe.export.gguf:
        fix = f"type `tunesmith run {shlex.quote(str(run.path))}` first"
        raise ResumeError(f"{run.path} has no evaluation yet", fix=fix)
    prefix, key = ("base-", "base_") if of_base else ("", "")
    refuse_damaged(run.evaluation)
    answers = _answers(run.evaluation / f"{prefix}answers.jsonl") if evaluated else []
    asked = _answers(run.evaluation / f"{prefix}held-out.jsonl") if evaluated else []
    scores = _scores(run.evaluation / f"{prefix}scores.json", evaluated, answers) if evaluated else {}
    counts = trained.counts if trained else {}
    losses = _numbers(run, counts, {name: key + name for name in ("held_out_loss", "bits_per_byte")})
    definition = _numbers(run, counts, {"version": "bits_per_byte_definition"})
    damaged = damaged_file(run.data)
    rows, text = (None, None) if damaged else _held_out(run, trained)
    model = Model(
        name="", colour="", base=recipe.base, scores=scores, answers=answers, held_out=asked, losses=losses,
        precision=str(counts.get("precision", "unknown precision")), definition=definition.get("version", 1),
        rows=rows, text=text,
    )  # fmt: skip
    if of_base:
        return model
    old = stale(recipe, run, "evaluate")
    if damaged:
        old.append(f"{damaged} is not as it was written, so that nobody knows on which rows its losses were measured")
    if evaluated is None:
        old.append("no GGUF was asked for (export.gguf is empty): it has no answers and no speed")
    if cut_from_training(run):
        model = replace(model, losses={})
        old.append("so the losses of its training, which are another adapter's than its answers, are left out")
    metrics, wrong = Metrics(run.metrics).read()
    if wrong:
        old.append(f"{run.metrics}: {damage_in_words(wrong)}")
    return replace(
        model,
        training=_training(run, counts),
        outcome=outcome(counts),
        metrics=metrics,
        files=_files(run),
        proofs=_proofs(run),
        old=old,
    )


def _scores(path: Path, evaluated: Record, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What evaluate measured. Version 0.1 recorded neither the spread, which the answers hold, nor the engine."""
    scores = {"xllamacpp": evaluated.versions.get("xllamacpp")} | json_object(path.read_bytes())
    return scores if "spread" in scores or not answers else scores | {"spread": summary(answers)["spread"]}


def _held_out(run: Run, trained: Record | None) -> tuple[str | None, str | None]:
    """What a run's losses were measured on; unknown where the data are gone, or newer than the adapter."""
    data = read_record(run.data)
    if not data or not trained or trained.inputs.get("data", output_digest(data)) != output_digest(data):
        return None, None
    held_out = load_rows(run.data)[1]
    part = slice(int(held_out.offsets_N1[0]), int(held_out.offsets_N1[-1]))
    digest = hashlib.sha256(held_out.tokens_T[part].tobytes() + held_out.supervised_T[part].tobytes()).hexdigest()
    return digest, fingerprint(held_out.answer_bytes_N.tolist())


def _training(run: Run, counts: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens, seconds, interruptions and device, where the record has them; of a fork also what it began with."""
    numbers = _numbers(run, counts, {name: name for name in ("tokens", "train_seconds", "interruptions")})
    texts = {name: str(counts[name]) for name in ("device",) if name in counts}
    _, began = ancestor_of(counts.get("ancestor"))
    return numbers | texts | ({"began_with": began} if began else {})


def _numbers(run: Run, counts: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Numbers that training counted: name here -> name in its record, where that has them."""
    found = {name: counts[there] for name, there in names.items() if counts.get(there) is not None}
    for name, value in found.items():
        if not isinstance(value, int | float):
            what = f"{run.adapter / RECORD} is damaged: {name} is {str(value)[:40]!r}, no number"
            raise ResumeError(what, fix=made_anew(run.adapter))
    return found


def _proofs(run: Run) -> list[tuple[str, Proof]]:
    records = [(stage.verb, read_record(run.path / stage.folder)) for stage in STAGES]
    return [(verb, proof) for verb, record in records if record for proof in record.proofs]


def _files(run: Run) -> list[dict[str, Any]]:
    """Rows of the quantisation table: F16 against the merged model, every other file against F16."""
    record, path = read_record(run.gguf), run.gguf / "proof.json"
    refuse_lost_measures(run.gguf)
    if not record or not path.exists():
        return []
    skipped = next((proof.skipped_because for proof in record.unproved), "no comparison was recorded")
    try:
        return [_file(kind, file, skipped or "") for kind, file in json_object(path.read_bytes()).items()]
    except OTHER_JSON as error:
        raise ResumeError(f"{path} is damaged: {why_unread(error)}", fix=made_anew(run.gguf)) from error


def _file(kind: str, file: Mapping[str, Any], skipped: str) -> dict[str, Any]:
    if not isinstance(file.get("bytes", 0), int):
        raise ValueError(f"the size of {kind} is no number")
    against = file.get("against_F16") or (file.get("against_model") if kind == "F16" else None)
    return {
        "type": kind,
        "bytes": file.get("bytes"),
        "kl": f"{against['mean_kl']:.2g}" if against else f"not proved: {skipped}",
        "top1": f"{against['top1']:.1%}" if against else "",
        "loss": _loss_in_words(file["held_out"]) if "held_out" in file else "",  # version 0.1 did not measure it
        "tensors": ", ".join(f"{count} {name}" for name, count in file.get("tensor_types", {}).items()),
        "fallbacks": file.get("fallbacks", 0),
    }


def _loss_in_words(held_out: Mapping[str, Any]) -> str:
    bits = held_out["bits_per_byte"]
    each = f", {bits:.3f} bits per byte" if bits is not None else ""
    return f"{held_out['loss']:.4f} nats{each} ({held_out['positions']:,} positions)"


def _answers(path: Path) -> list[dict[str, Any]]:
    """Its digest is that of what was written: there is no other line."""
    return [line for _, line in json_lines(path)[0]]
