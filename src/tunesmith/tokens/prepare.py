"""VERB prepare: conversations to clean, proved token rows.

Every row is read, cleaned, made into tokens and signed once; the rows wait on disk and only the signatures in memory.
Then duplicates and the split are known, by what is left of each row after the cut, and the rows are written in order.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.console import say
from tunesmith.data.conversation import Conversation, Dropped
from tunesmith.data.decontaminate import Prompts
from tunesmith.data.hub import resolve_commit
from tunesmith.data.noted import Noted
from tunesmith.data.read import conversations
from tunesmith.data.signed import SignedRows, SignedWriter
from tunesmith.data.split import HELD_OUT, TRAIN, Fates, fates
from tunesmith.decides import data_needs, data_needs_now, read_prompts, source_files, sources_of
from tunesmith.errors import DataError
from tunesmith.files import DROPPED
from tunesmith.machine import usable_cores
from tunesmith.recipe import Recipe
from tunesmith.record import Proof, Record, made_from, read_record
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.batch import UNPROVED, Job, Rows
from tunesmith.tokens.laps import add_laps, lap, timed
from tunesmith.tokens.mask import CUT, mask_proof
from tunesmith.tokens.pace import paced
from tunesmith.tokens.prompts import refuse_long_prompts
from tunesmith.tokens.report import report
from tunesmith.tokens.sent import to_send
from tunesmith.tokens.spool import BATCH_ROWS, Spool, Written, neither, spooled_wheres, write_split
from tunesmith.tokens.tally import Tally, first_words
from tunesmith.tokens.tokenizer import embedding_rows, load_tokenizer
from tunesmith.tokens.workers import make_all
from tunesmith.weights.locate import LocatedBase

LEAST_S = 0.05  # of a step that is told: less would be 0.0
Load = Callable[[], PreTrainedTokenizerBase]


def prepare(recipe: Recipe, run: Run, base: LocatedBase, prompts: Sequence[str] | None = None) -> tuple[Record, bool]:
    """Make run.data. No row may hold one of `prompts`; None: the evaluation prompts of the recipe.

    Raises DataError if the data or the template cannot be used. That checkpoints keep their rows is for the caller.
    """
    needs = data_needs(recipe, run, base.digest)
    if not made_from(read_record(run.data), *needs):
        needs = data_needs_now(recipe, base.digest)
    proofs: list[Proof] = []
    load = cache(lambda: load_tokenizer(base.folder))  # Llama 3's takes two seconds
    with timed() as laps:
        record, done = commit_stage(
            run.data, *needs,
            lambda draft: _write(draft, recipe, base, load, prompts, proofs),
            lambda _: proofs,
        )  # fmt: skip
        if done:
            with lap("report"):
                report(recipe, run, load, lambda line: say(f"prepare: {line}" if line[:1] != " " else line))
            slow = [f"{step} {seconds:.1f}" for step, seconds in laps.items() if seconds >= LEAST_S]
            say(f"  processor seconds: {', '.join(slow) or 'none'}")
    add_laps(laps)
    return record, done


def _write(
    draft: Path, recipe: Recipe, base: LocatedBase, load: Load, prompts: Sequence[str] | None, proofs: list[Proof]
) -> dict[str, Any]:
    """Make the files of the data folder; returns the counts. That of the mask is added to the proofs."""
    with (draft / DROPPED).open("w", encoding="utf-8") as file:
        return _written(draft, recipe, base, load, prompts, proofs, Tally(file))


def _written(
    draft: Path, recipe: Recipe, base: LocatedBase, load: Load, prompts: Sequence[str] | None, proofs: list[Proof],
    tally: Tally,
) -> dict[str, Any]:  # fmt: skip
    spool = draft / "spool"
    signed, first_held = _spooled(
        spool, recipe, base, load(), read_prompts(recipe) if prompts is None else prompts, tally
    )
    proofs.append(_check_proved(tally, len(signed.read_N)))
    say(f"prepare: {proofs[-1]}")
    with lap("duplicates and leaks"):
        decided = _decided(signed, first_held, recipe, tally)
    with lap("write"):
        _drop_decided(spool, decided, tally)
        written = write_split(spool, draft, decided.what_N, decided.clusters_N.tolist())
        shutil.rmtree(spool)
    _check_left(written, tally)
    if written.cut:
        tally.changed[CUT] = written.cut
    return {
        "read": tally.read,
        "kept": sum(written.rows.values()),
        "train_rows": written.rows[TRAIN],
        "held_out_rows": written.rows[HELD_OUT],
        "tokens": written.tokens,
        "supervised_tokens": written.supervised,
        "longest": written.longest,
        "cut": written.cut,
        "changed": dict(sum((noted.changed for noted in tally.sources.values()), tally.changed)),
        "formats": {path: dict(noted.formats) for path, noted in tally.sources.items()},
        "unused": {path: dict(noted.unused) for path, noted in tally.sources.items() if noted.unused},
        "dropped": dict(tally.dropped.most_common()),
        "examples": tally.examples,
        "revisions": {s.path: resolve_commit(s) for s in sources_of(recipe) if not source_files(s)},
    }


def _spooled(
    folder: Path, recipe: Recipe, base: LocatedBase, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str],
    tally: Tally,
) -> tuple[SignedRows, int]:  # fmt: skip
    """Every row that can be used, as tokens in `folder`; what they are compared by, and the first row of a held-out
    source.
    """
    asked, sources = Prompts(prompts, nearly=recipe.data.decontaminate), list[int]()
    job = Job(recipe, to_send(tokenizer), embedding_rows(base.folder), asked)
    if prompts and recipe.export.gguf:  # else nothing is asked
        refuse_long_prompts(job.tokenizer, base.folder, recipe, prompts)
    first_held = 0
    with Spool(folder) as spool, SignedWriter(folder / "shingles") as signed, paced(sources_of(recipe)) as advance:
        made = make_all(job, _batches(recipe, sources, tally), usable_cores())
        for number, batch in enumerate(made):
            with lap("spool"):
                spool.add(batch.packed, sources[number])
                signed.add(batch.signed)
            tally.add(batch.tally)
            add_laps(batch.laps)
            first_held = first_held if sources[number] == len(recipe.data.sources) else len(signed)
            advance(batch.tally.read)
        return signed.rows(), first_held


def _batches(recipe: Recipe, sources: list[int], tally: Tally) -> Iterator[Rows]:
    """The rows of all sources as they are read; `sources` gets the number of each batch's source."""
    for index, source in enumerate(sources_of(recipe)):
        noted = tally.sources.setdefault(source.path, Noted())
        rows = conversations(source, recipe.data.roles, noted)
        first = list(islice(rows, 1))
        say(f"reading {source.path} as {noted.form or 'no known format'}")
        rows = chain(first, rows)
        while batch := _next(rows):
            sources.append(index)
            yield batch


def _next(rows: Iterator[Conversation | Dropped]) -> Rows:
    with lap("read"):
        return list(islice(rows, BATCH_ROWS))


def _drop_decided(spool: Path, decided: Fates, tally: Tally) -> None:
    """Count and list the rows of the spool that are not used, each with the row that it is dropped for."""
    kept = spooled_wheres(spool, np.unique(decided.by_N).tolist())
    for row, conversation in neither(spool, decided.what_N):
        by = kept.get(int(decided.by_N[row]), "")  # none for NOBODY
        tally.drop(conversation.where, decided.what_N[row], first_words(conversation.turns), by)


def _decided(signed: SignedRows, first_held: int, recipe: Recipe, tally: Tally) -> Fates:
    """What becomes of each row. Raises DataError if none would be held out, with what became of the others."""
    share = recipe.data.held_out if isinstance(recipe.data.held_out, float) else None
    try:
        return fates(signed, first_held, share, recipe.seed, recipe.data.dedup, recipe.data.decontaminate)
    except DataError as error:
        if not tally.dropped:
            raise
        raise DataError(f"{error.what}. Dropped: {tally.reasons()}", fix=error.fix) from None


def _check_proved(tally: Tally, proved: int) -> Proof:
    """The proof of the mask. Raises DataError if too many rows have none; it is about the kind most of them are."""
    unproved = tally.unproved.total()
    proof = mask_proof(unproved, proved + unproved)
    if not proof.holds:
        ((kind, rows),) = tally.unproved.most_common(1)
        what, fix = UNPROVED[kind]
        example = tally.first_unproved[kind]
        raise DataError(f"{what.format(f'{rows} of {proved + unproved} conversations')}. Example: {example}", fix=fix)
    return proof


def _check_left(written: Written, tally: Tally) -> None:
    """Raise DataError if nothing is left."""
    for split, what in ((TRAIN, "train on"), (HELD_OUT, "hold out")):
        if not written.rows[split]:
            raise DataError(
                f"no row with supervised tokens is left to {what}. Dropped: {tally.reasons()}",
                fix="correct the rows named, or add conversations that end with an answer",
            )
