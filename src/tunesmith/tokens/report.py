"""VERB data: what the data of a run are, as a page that a person wants to read and as a few lines of the terminal.

Made from what stands in data/ alone, and no part of it: no stage reads the page, so that it is written again at will.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tunesmith import __version__
from tunesmith.console import console_for, warn
from tunesmith.errors import BaseError
from tunesmith.files import DROPPED, fingerprint, write_file
from tunesmith.page import rendered
from tunesmith.recipe import Recipe
from tunesmith.record import Record, read_record
from tunesmith.runs import Run
from tunesmith.tokens.listed import is_contamination, read_listed, wheres_of
from tunesmith.tokens.rows import TokenRows, load_rows
from tunesmith.tokens.shown import legend, print_shown, shown, spread_over_lengths
from tunesmith.tokens.summary import Summary, histogram, summary_of
from tunesmith.tokens.tokenizer import load_tokenizer

TEMPLATE = "tokens/report.html.j2"
CONVERSATIONS = 5
MOST_COLUMNS = 50  # not used, on the page; keys of free form can be as many as rows
MADE_OF = '<meta name="tunesmith-data" content="{}">'
"""In the head of every page: by it a page is known as ours, and as that of the data that stand."""
HEAD_BYTES = 1024


def report(
    recipe: Recipe, run: Run, load: Callable[[], PreTrainedTokenizerBase] | None, tell: Callable[[str], None]
) -> None:
    """Write run.data_report on the data that stand, and `tell` what is in it line by line.

    `load` gives the base's tokenizer; None where the base is not on this machine: the page is without conversations.
    Raises DataError if no data stand or they are damaged.
    """
    train, held_out = load_rows(run.data)
    record = read_record(run.data)
    assert record is not None
    summary = summary_of(record.counts, train, held_out, recipe)
    for line in summary.lines():
        tell(line)
    made_of = _made_of(recipe, record, load is not None)
    head = _head(run.data_report)
    if run.data_report.is_symlink() or (head is not None and MADE_OF.partition("{")[0].encode() not in head):
        warn(f"{run.data_report} was not made by tunesmith and is not replaced; move it for the report to be written")
        return
    if head is None or MADE_OF.format(made_of).encode() not in head:
        tokenizer = load() if load else None
        write_file(run.data_report, _page(recipe, run, record, summary, (train, held_out), tokenizer, made_of))
    tell(f"  report: {run.data_report}")


def show(run: Run, tokenizer_folder: Path | None, count: int) -> None:
    """Print some rows that are trained on, from the shortest to the longest. Raises BaseError without a tokenizer."""
    if tokenizer_folder is None:
        what = "the base is not on this machine, and nothing else knows the words of the tokens"
        raise BaseError(what, fix="leave --show out, or put the base where the recipe names it")
    train, _ = load_rows(run.data)
    tokenizer, console = load_tokenizer(tokenizer_folder), console_for(None)
    rows = spread_over_lengths(train, count)
    wheres = wheres_of(run.data, rows)
    console.print(legend(console), markup=False, highlight=False)
    for row in rows:
        print_shown(console, shown(tokenizer, train, row), wheres.get(row, f"row {row}"))


def _made_of(recipe: Recipe, record: Record, with_tokenizer: bool) -> str:
    """What decides the page."""
    train = recipe.train
    bins = (train.tokens_per_step, train.packing_lookahead, train.max_length, str(train.micro_batch_tokens))
    return fingerprint([record.outputs, record.counts, bins, recipe.seed, recipe.name, with_tokenizer, __version__])


def _head(page: Path) -> bytes | None:
    """How a page begins; None where there is none."""
    if not page.is_file():
        return None
    with page.open("rb") as file:
        return file.read(HEAD_BYTES)


def _page(
    recipe: Recipe, run: Run, record: Record, summary: Summary, rows: Sequence[TokenRows],
    tokenizer: PreTrainedTokenizerBase | None, made_of: str,
) -> str:  # fmt: skip
    train, limit = rows[0], recipe.train.max_length
    chosen = spread_over_lengths(train, CONVERSATIONS) if tokenizer else []
    wheres = wheres_of(run.data, chosen)
    lengths = sorted(int(length) for part in rows for length in part.lengths_N)
    bars = histogram(lengths, limit)
    reasons = summary.reasons()
    left = accumulate((count for _, count in reasons), int.__sub__, initial=summary.read)
    return rendered(
        TEMPLATE,
        name=recipe.name,
        base=recipe.base,
        made_of=made_of,
        summary=summary,
        percent=lambda count: f"{100 * count / max(summary.read, summary.kept, 1):.3f}",
        waterfall=[(*reason, before - reason[1]) for reason, before in zip(reasons, left, strict=False)],
        added=max(0, summary.kept + sum(summary.dropped.values()) - summary.read),
        max_length=limit,
        histogram=bars,
        tallest=max(*bars.bars, 1),
        middle=lengths[len(lengths) // 2] if lengths else 0,
        contamination=[(reason, count) for reason, count in summary.dropped.items() if is_contamination(reason)],
        listed=read_listed(run.data),
        unused=dict(list(summary.unused.items())[:MOST_COLUMNS]),
        file=f"{run.data.name}/{DROPPED}" if (run.data / DROPPED).is_file() else "",
        conversations=[(shown(tokenizer, train, row), wheres.get(row, f"row {row}")) for row in chosen],
        version=__version__,
    )
