"""What the models of a comparison were asked, and with which prompts their scores mean less than they say."""

from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.evaluation.speeds import summary
from tunesmith.study.models import Model

Row = tuple[str, str, list[dict[str, Any] | None]]
"""A held-out question, the answer in the data, and that of each model, where it was asked."""


def held_out_rows(models: Sequence[Model]) -> list[Row]:
    """The held-out questions of every model. One question with two answers in the data is two."""
    pairs = dict.fromkeys((row["question"], row["expected"]) for model in models for row in model.held_out)
    return [(*pair, [_row_of(model, *pair) for model in models]) for pair in pairs]


def _row_of(model: Model, question: str, expected: str) -> dict[str, Any] | None:
    return next((row for row in model.held_out if (row["question"], row["expected"]) == (question, expected)), None)


def seen(models: Sequence[Model]) -> dict[str, str]:
    """Prompt -> the training rows that ask it, and in whose training where that is not everybody's."""
    tuned = [model for model in models if not model.of_base] or list(models)
    rows: dict[str, dict[str, list[str]]] = {}
    for model in tuned:
        for answer in model.answers:
            if "seen" in answer:
                rows.setdefault(answer["prompt"], {}).setdefault(answer["seen"], []).append(model.name)
    return {
        prompt: "; ".join(
            where if len(names) == len(tuned) else f"{where} ({', '.join(names)})" for where, names in of.items()
        )
        for prompt, of in rows.items()
    }


def remarks(models: Sequence[Model]) -> Iterator[str]:
    """What must be known of the answers: prompts that differ, and scores without those that training has seen."""
    asked = [{answer["prompt"] for answer in model.answers} for model in models if model.answers]
    if asked and (some := set.union(*asked) - set.intersection(*asked)):
        shared = len(set.intersection(*asked))
        yield (
            f"The prompts of these runs differ: {shared} {_were(shared)} asked of all models, {len(some)} of some only."
        )
    for model in models:
        unseen = [answer for answer in model.answers if "seen" not in answer]
        if (count := len(model.answers) - len(unseen)) and not model.of_base:
            yield (
                f"{model.name}: {count} of {len(model.answers)} prompts {_were(count)} seen in training, so that the "
                f"answer shows memory. All: {_scores(model.answers)}. "
                f"Without {'it' if count == 1 else 'these'}: {_scores(unseen) if unseen else 'none is left'}."
            )


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _scores(answers: Sequence[dict[str, Any]]) -> str:
    speeds, stopped = summary(answers), sum(bool(answer.get("stopped", True)) for answer in answers)
    return (
        f"{stopped} of {len(answers)} ended by themselves, first token {speeds['first_token_s']:.2f} s, "
        f"{speeds['tokens_per_s']:.0f} tokens/s"
    )
