"""The end of a run in the terminal: where everything is, what was learned, and what to type next."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from tunesmith.command import to_type
from tunesmith.evaluation.answered import held_out_answers
from tunesmith.printable import printable
from tunesmith.recipe import Recipe
from tunesmith.runs import Run

SHOWN, LONGEST = 3, 300
"""Held-out questions, and letters of each text."""
WIDEST = 100


def ending(recipe: Recipe, run: Run) -> str:
    """Three held-out questions with the answers of the base and of the tuned model, the files, and what to type."""
    files = ", ".join(run.gguf_file(recipe.name, kind).name for kind in recipe.export.gguf)
    rows = {
        "adapter": f"{run.adapter} (PEFT format)",
        "model": f"{run.model} (merged, Hugging Face format)",
        "GGUF": f"{run.gguf} ({files}, proof.json)" if files else "none was asked for",
        "answers": f"{run.evaluation}" if files else "none, since there is no GGUF",
        "losses": f"{run.loss_plot}, {run.metrics}",
    }
    lines = [*(said_answers(run) if files else ()), f"{recipe.name} is ready:"]
    lines += [f"  {name:<8} {where}" for name, where in rows.items()]
    if files:
        lines += [f"next: {to_type('chat', run.path)}", f"      {to_type('compare', run.path, 'base')}"]
    else:
        lines += [
            "to see answers, ask for a GGUF file, which redoes nothing else:",
            f"next: {to_type('run', run.path, '--set', 'export.gguf=[Q8_0]')}",
        ]
    return "\n".join(lines)


def said_answers(run: Run) -> Iterator[str]:
    """What base and tuned model answer to questions that nobody trained on; nothing where evaluate asked none."""
    tuned, base = (held_out_answers(run.evaluation, prefix) for prefix in ("", "base-"))
    pairs = list(zip(tuned, base, strict=False))
    step = max(1, len(pairs) // SHOWN)
    if chosen := pairs[::step][:SHOWN]:
        count = "a held-out question" if len(chosen) == 1 else f"{len(chosen)} held-out questions"
        yield f"{count}, which nobody trained on:"
    for ours, theirs in chosen:
        yield told("", ours["question"])
        yield from (told(f"{who}:", text) for who, text in _texts(ours, theirs))


def _texts(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "the data", ours["expected"]
    for who, line in (("base", theirs), ("tuned", ours)):
        yield who, line["text"] if line.get("stopped") else f"{line['text']} ..."


def told(who: str, text: str) -> str:
    """A text by `who`, folded to the terminal by what its letters take there: a Chinese one takes two columns."""
    first = f"    {who:<10}" if who else "  "
    width = max(10, min(WIDEST, shutil.get_terminal_size().columns) - len(first))
    folded = Text(_short(text)).wrap(Console(width=width), width)
    return first + f"\n{' ' * len(first)}".join(line.plain.rstrip() for line in folded)


def _short(text: str) -> str:
    """On one line, cut between words where it has some; a sequence that would steer the terminal does not reach it."""
    line = " ".join(printable(text).split())
    if len(line) <= LONGEST:
        return line or "(nothing)"
    return f"{re.sub(r' [^ ]{1,30}$', '', line[:LONGEST]).rstrip()} ..."
