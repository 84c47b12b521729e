"""VERB compare: run folders to one self-contained page: answers, losses, proofs, speed, size, and the pick.

Reads what the stages left behind; loads no model.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tunesmith import __version__
from tunesmith.console import console_for, say, warn
from tunesmith.files import write_file, write_user_file
from tunesmith.page import rendered
from tunesmith.printable import printable
from tunesmith.runs import Run
from tunesmith.study.asked import held_out_rows, remarks, seen
from tunesmith.study.measures import (
    Cell,
    Group,
    megabytes,
    same_definition,
    same_rows,
    same_text,
    table,
    training_words,
)
from tunesmith.study.models import Model, read_models
from tunesmith.study.named import first_run, named_once
from tunesmith.study.plots import image, plot_curves, plot_quality
from tunesmith.study.report_file import keep_earlier, refuse_other_file

LEAST_WIDTH = 100  # columns, where the table goes to no terminal


def compare(names: Sequence[str], report: Path, speeds: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """Write the page on the runs `names` (folders, or `base`: the untouched base of the first run) to `report`.

    `speeds`: of study/measure.py, by name, instead of those that were recorded. Prints the table too. Raises
    RecipeError where no run is named or `report` is a file of the user's, ResumeError for a folder that is no run or
    has no evaluation.
    """
    refuse_other_file(report)
    first_run(names)
    models = read_models(named_once(names), speeds)
    best, reason = pick(models)
    groups = table(models)
    prompts = list(dict.fromkeys(answer["prompt"] for model in models for answer in model.answers))
    page = rendered(
        "study/report.html.j2",
        megabytes=megabytes,
        models=models,
        best=best,
        reason=reason,
        groups=groups,
        answers=[(prompt, [_answer_to(model, prompt) for model in models]) for prompt in prompts],
        seen=seen(models),
        remarks=list(remarks(models)),
        held_out=held_out_rows(models),
        speed_plot=image(plot_quality(models)),
        curves_plot=image(plot_curves(models)),
        version=__version__,
    )
    own = Run(Path(first_run(names))).is_own_report(report)
    if own and (kept := keep_earlier(report, page)):
        say(f"compare: the earlier report, on other models, is kept as {kept}")
    (write_file if own else write_user_file)(report, page)
    _print(models, groups, reason)
    return report


def pick(models: Sequence[Model]) -> tuple[Model | None, str]:
    """The model to ship, and why in one sentence: lowest held-out loss, or bits per byte if losses do not compare.

    Both are those of training. None where nothing can be compared.
    """
    known = [model for model in models if model.losses]
    if not known:
        return None, "No model has a held-out loss, so read the answers and choose by them."
    alike = same_rows(known)
    if not alike and not same_definition(known):
        return (
            None,
            "Neither held-out losses nor bits per byte can be compared, so read the answers and choose by them.",
        )
    key, title = ("held_out_loss", "held-out loss") if alike else ("bits_per_byte", "bits per byte")
    best, *others = sorted(known, key=lambda model: model.losses[key])
    value, where = f"{best.losses[key]:.3f}", f"({training_words(models)})"
    if not others:
        return best, f"{best.name} has a {title} of {value} {where}; name another run, or base, to compare it with."
    second = others[0]
    if f"{second.losses[key]:.3f}" == value:
        reason = f"{best.name} and {second.name} have the same {title}, {value} {where}"
    else:
        reason = (
            f"{best.name} has the lowest {title} {where}, {value} against {second.losses[key]:.3f} of {second.name}"
        )
    if alike:
        return best, f"{reason}, on the same held-out rows."
    reason += "; the losses cannot be compared, because tokenizers or held-out rows differ"
    return best, f"{reason}." if same_text(
        known
    ) else f"{reason}, and as the held-out text differs too this is only a hint."


def _answer_to(model: Model, prompt: str) -> dict[str, Any] | None:
    """The model's answer to a prompt, with what the page says of it."""
    found = next((answer for answer in model.answers if answer["prompt"] == prompt), None)
    return {"text": "", "tokens": None, "stopped": True} | found if found else None


def _print(models: Sequence[Model], groups: Sequence[Group], reason: str) -> None:
    console = console_for(None)
    if not console.is_terminal and console.width < LEAST_WIDTH:
        console = console_for(None, width=LEAST_WIDTH)
    shown = Table("")
    for model in models:
        shown.add_column(Text(printable(model.name)))
    for group in groups:
        shown.add_row(Text(group.title, style="italic"))
        for title, cells in group.rows:
            shown.add_row(f"  {title}", *map(_printed, cells))
        shown.add_section()
    console.print(shown)
    for line in (*(group.remark for group in groups if group.remark), *remarks(models), reason):
        console.print(printable(line), markup=False, highlight=False)
    for model in models:
        for what in model.old:
            warn(f"{model.name}: {what}")
    sys.stdout.flush()


def _printed(cell: Cell) -> Text:
    text = f"{cell.text} ({cell.spread})" if cell.spread else cell.text
    return Text(printable(text), style="bold" if cell.best else "")
