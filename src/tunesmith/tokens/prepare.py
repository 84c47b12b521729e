"""VERB prepare: conversations to clean, proved token rows, in two passes.

The first reads, cleans and signs every row and keeps only the signatures. Then duplicates and the split are known,
and the second reads again, tokenises and writes. Memory does not grow with the text.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from transformers import PreTrainedTokenizerBase

from tunesmith.console import progress, say
from tunesmith.data import dedup
from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation, Dropped
from tunesmith.data.hub import hub_commit
from tunesmith.data.read import conversations
from tunesmith.data.split import HELD_OUT, TRAIN, fates
from tunesmith.decides import Needs, data_needs, read_prompts, source_files, sources_of
from tunesmith.errors import DataError, ResumeError
from tunesmith.recipe import Recipe, Source, without_defaults
from tunesmith.runs import Record, Run, checkpoint_folders, commit_stage, made_from, read_record
from tunesmith.tokens.rows import RowWriter
from tunesmith.tokens.template import Encoded, Refused, encode_all, messages_of
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.locate import LocatedBase

BATCH_ROWS = 256  # tokenised at once, in threads
UNPROVED_SHARE = 0.01  # invariant 4; one row alone never refuses a template, or a set of 90 could not have a bad one
TEXT, NUMBER = pyarrow.string(), pyarrow.int64()
MESSAGES = pyarrow.list_(pyarrow.struct({"role": TEXT, "content": TEXT}))
SCHEMA = pyarrow.schema(
    {"where": TEXT, "messages": MESSAGES, "split": TEXT} | dict.fromkeys(("tokens", "supervised", "cluster"), NUMBER)
)

Kept = tuple[Conversation, str, int]
"""A conversation, its split and its cluster."""
Row = tuple[Conversation, str, int, Encoded]


def prepare(recipe: Recipe, run: Run, base: LocatedBase, prompts: Sequence[str] | None = None) -> tuple[Record, bool]:
    """Make run.data. No row may hold one of `prompts`; None: the evaluation prompts of the recipe.

    Raises DataError if the data or the template cannot be used, ResumeError if checkpoints would lose their data.
    """
    needs = data_needs(recipe, run, base.digest)
    _keep_what_checkpoints_need(run, needs)
    asked = read_prompts(recipe) if prompts is None else prompts
    record, done = commit_stage(run.data, *needs, lambda draft: _write(draft, recipe, base, asked))
    if done:
        _report(record.counts)
    return record, done


@dataclass
class _Tally:
    """What is counted on the way."""

    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    supervised: int = 0
    unproved: list[str] = field(default_factory=list)

    def drop(self, where: str, reason: str) -> None:
        """Count a row that is not used; the first three of a reason are named."""
        self.dropped[reason] += 1
        if self.dropped[reason] <= 3:
            self.examples.setdefault(reason, []).append(where)


def _write(draft: Path, recipe: Recipe, base: LocatedBase, prompts: Sequence[str]) -> dict[str, Any]:
    """Both passes; returns the counts."""
    tally, asked = _Tally(), {dedup.words(prompt) for prompt in prompts}
    sources, first_held, signatures = sources_of(recipe), 0, list[str]()
    for index, source in enumerate(sources):
        say(f"reading {source.path}")
        first_held = len(signatures) if index == len(recipe.data.sources) else first_held
        signatures += [
            "" if isinstance(row, Dropped) else dedup.signature(row) for row in _rows(source, asked, Counter())
        ]
    share = recipe.data.held_out if isinstance(recipe.data.held_out, float) else None
    decided = fates(signatures, first_held, share, recipe.seed, dedup=recipe.data.dedup != "off")
    rows = (row for source in sources for row in _rows(source, asked, tally.changed))
    kept = _kept(zip(rows, decided, dedup.clusters(signatures), strict=True), tally)
    tokenizer = load_tokenizer(base.folder)
    held_out: list[Row] = []
    with (
        progress("prepare", len(decided), unit="rows") as advance,
        RowWriter(draft) as writer,
        pyarrow.parquet.ParquetWriter(draft / "rows.parquet", SCHEMA) as table,
    ):
        while batch := list(islice(kept, BATCH_ROWS)):
            encoded = _encoded(tokenizer, batch, recipe, tally)
            held_out += [row for row in encoded if row[1] == HELD_OUT]
            _append(writer, table, [row for row in encoded if row[1] == TRAIN], tally)
            advance(len(batch), "")
        _append(writer, table, held_out, tally)  # last, so that the two kinds are slices of the same files
        tokens = writer.tokens
    _check(tally)
    return {
        "read": len(decided),
        "kept": tally.rows.total(),
        "train_rows": tally.rows[TRAIN],
        "held_out_rows": tally.rows[HELD_OUT],
        "tokens": tokens,
        "supervised_tokens": tally.supervised,
        "longest": tally.longest,
        "cut": tally.changed["cut to max_length"],
        "changed": {change: number for change, number in tally.changed.items() if number},
        "dropped": dict(tally.dropped.most_common()),
        "examples": tally.examples,
        "revisions": {source.path: hub_commit(source) for source in sources if not source_files(source)},
    }


def _rows(source: Source, asked: set[str], changed: Counter[str]) -> Iterator[Conversation | Dropped]:
    """Every row of a source, cleaned and without the evaluation prompts; the same in both passes."""
    for row in conversations(source):
        cleaned, changes = clean(row) if isinstance(row, Conversation) else (row, [])
        changed.update(changes)
        turns = cleaned.turns if isinstance(cleaned, Conversation) else ()
        is_asked = any(turn.role == "user" and dedup.words(turn.text) in asked for turn in turns)
        yield Dropped(row.where, "is an evaluation prompt") if is_asked else cleaned


def _kept(rows: Iterator[tuple[Conversation | Dropped, str, int]], tally: _Tally) -> Iterator[Kept]:
    """The rows that are neither broken nor duplicates; the others are counted."""
    for row, fate, cluster in rows:
        if isinstance(row, Dropped):
            tally.drop(row.where, row.reason)
        elif fate in (TRAIN, HELD_OUT):
            yield row, fate, cluster
        else:
            tally.drop(row.where, fate)


def _encoded(tokenizer: PreTrainedTokenizerBase, batch: list[Kept], recipe: Recipe, tally: _Tally) -> list[Row]:
    """A batch as tokens, without the rows that the template refuses."""
    rows, system, date = [row for row, *_ in batch], recipe.chat.system, recipe.data.date
    found = encode_all(tokenizer, rows, system=system, date=date, max_length=recipe.train.max_length)
    encoded = []
    for kept, item in zip(batch, found, strict=True):
        where = kept[0].where
        if isinstance(item, Refused):
            tally.drop(where, item.reason)
            if item.detail:
                tally.unproved.append(f"{where}: {item.reason}: {item.detail}"[:600])
        else:
            encoded.append((*kept, item))
    return encoded


def _append(writer: RowWriter, table: pyarrow.parquet.ParquetWriter, rows: list[Row], tally: _Tally) -> None:
    written = []
    for row, split, cluster, item in rows:
        writer.add(item.ids, item.supervised, item.answer_bytes)
        supervised = sum(item.supervised)
        tally.rows[split] += 1
        tally.supervised += supervised
        tally.longest = max(tally.longest, len(item.ids))
        tally.changed["cut to max_length"] += item.turns < len(row.turns)
        cells = (row.where, messages_of(row.turns[: item.turns]), split, len(item.ids), supervised, cluster)
        written.append(dict(zip(SCHEMA.names, cells, strict=True)))
    table.write_table(pyarrow.Table.from_pylist(written, SCHEMA))


def _check(tally: _Tally) -> None:
    """Raise DataError if nothing is left, or if the template's mask could not be proved for too many rows."""
    tried = tally.rows.total() + len(tally.unproved)
    if len(tally.unproved) > max(1, UNPROVED_SHARE * tried):
        raise DataError(
            f"the chat template does not show where the answers are in {len(tally.unproved)} of {tried} conversations, "
            f"so what would be trained on is not proved. Example: {tally.unproved[0]}",
            fix="use another base, or correct its chat template or these rows",
        )
    for split, what in ((TRAIN, "train on"), (HELD_OUT, "hold out")):
        if not tally.rows[split]:
            raise DataError(
                f"no row with supervised tokens is left to {what}. Dropped: {_reasons(tally.dropped, tally.examples)}",
                fix="correct the rows named, or add conversations that end with an answer",
            )


def _reasons(dropped: dict[str, int], examples: dict[str, list[str]]) -> str:
    return "; ".join(f"{reason}: {n} ({', '.join(examples[reason])})" for reason, n in dropped.items()) or "none"


def _report(counts: dict[str, Any]) -> None:
    """What came in, what was kept and why the rest was not."""
    names = ("read", "train_rows", "held_out_rows", "tokens", "supervised_tokens", "longest")
    text = "prepare: {:,} rows read, {:,} to train on, {:,} held out; {:,} tokens, {:,} supervised, longest {:,}"
    say(text.format(*(counts[name] for name in names)))
    for name in ("dropped", "changed"):
        if counts[name]:
            say(f"  {name}: {', '.join(f'{n:,} {reason}' for reason, n in counts[name].items())}")


def _keep_what_checkpoints_need(run: Run, needs: Needs) -> None:
    """Raise ResumeError if the data would change under checkpoints that were trained on them."""
    standing = read_record(run.data)
    if not standing or made_from(standing, *needs) or not checkpoint_folders(run.checkpoints):
        return
    both = ((without_defaults(settings), inputs) for settings, inputs in ((standing.settings, standing.inputs), needs))
    old, new = ({**settings["data"], **settings, **inputs, "data": ""} for settings, inputs in both)
    changes = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]
    raise ResumeError(
        "the run has checkpoints that were trained on other data. Changed: " + "; ".join(changes),
        fix=f"give the recipe another name or use --run-dir; or delete {run.checkpoints} to train anew",
        where=str(run.path),
    )
