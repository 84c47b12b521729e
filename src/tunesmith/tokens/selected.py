"""Which training rows a run trains on: what data.select keeps of them, each as often as its source's weight says; and
what decides the scores that it may take.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from tunesmith.data.select import Array, alike_rows, difficult_rows, kept_count, longest_rows, random_rows, repeated
from tunesmith.data.split import TRAIN
from tunesmith.decides import Needs, kept_recipe, made_digest, source_digest, source_files
from tunesmith.errors import DataError
from tunesmith.files import fingerprint
from tunesmith.recipe import Recipe, SelectConfig, Source
from tunesmith.record import made_anew, read_record
from tunesmith.runs import Run
from tunesmith.tokens.rows import TokenRows
from tunesmith.tokens.texts import ROWS

SCORES = "scores.npy"


def scores_needs(recipe: Recipe, run: Run, base_digest: str) -> Needs:
    """score: the rows, and the base or the examples that they are measured with; how many are kept is for train.

    Examples whose file is no longer on this machine are as they were where the run's own recipe names the same file.
    """
    select = recipe.data.select
    assert select is not None  # else the stage is left out
    settings, inputs = {"data": {"select": {"by": select.by}}}, {"data": made_digest(run.data)}
    if not select.like:
        return settings, inputs | {"base": base_digest}
    standing, source = read_record(run.scores), examples_of(select.like)
    if standing and "like" in standing.inputs and not source_files(source) and run.recipe.exists():
        begun = kept_recipe(run).data.select
        then = begun.like if begun and begun.like else ""
        if then == select.like or then.endswith(f"/{select.like.removeprefix('./')}"):
            return settings, inputs | {"like": standing.inputs["like"]}
    return settings, inputs | {"like": source_digest(source)}


def examples_of(path: str) -> Source:
    """What rows are to be like, as something that can be read."""
    return Source(path=path)


def selected_rows(recipe: Recipe, run: Run, rows: TokenRows) -> Array | None:
    """The numbers of the training rows of an epoch, in order, one as often as it is trained on; None: each row once.

    Raises DataError if none is left, or the folder cannot say which row is of which source.
    """
    select, weights = recipe.data.select, [source.weight for source in recipe.data.sources]
    if select is None and set(weights) == {1}:
        return None
    chosen = np.arange(len(rows)) if select is None else _kept(select, run, rows, recipe.seed)
    if set(weights) != {1}:
        chosen = repeated(chosen, np.array(weights)[_sources(run.data, len(rows), len(weights))], recipe.seed)
    if not len(chosen):
        named = f"data.select.by {select.by}" if select else "data.sources[].weight"
        raise DataError(f"{named} leaves none of {len(rows):,} rows to train on", fix="keep more of them")
    return chosen


def selection_counts(recipe: Recipe, rows: TokenRows, selected: Array | None) -> dict[str, Any]:
    """What the record says of a selection; nothing where each row is trained on once."""
    if selected is None:
        return {}
    return {
        "by": recipe.data.select.by if recipe.data.select else None,
        "rows": len(np.unique(selected)),
        "of": len(rows),
        "rows_an_epoch": len(selected),
        "tokens_an_epoch": int(rows.lengths_N[selected].sum()),
        "digest": fingerprint(selected.tolist()),
    }


def selection_in_words(counts: dict[str, Any]) -> str:
    """A selection in a few words."""
    by = f"by {counts['by']}, " if counts["by"] else ""
    return f"trained on {by}{counts['rows']:,} of {counts['of']:,} rows, {counts['tokens_an_epoch']:,} tokens an epoch"


def _kept(select: SelectConfig, run: Run, rows: TokenRows, seed: int) -> Array:
    count = kept_count(select.keep, len(rows))
    if select.by == "random":
        return random_rows(len(rows), count, seed)
    if select.by == "longest":
        return longest_rows(rows.supervised_N, count)
    scores_N = np.load(run.scores / SCORES, allow_pickle=False)
    if scores_N.shape != (len(rows),):
        what = f"{run.scores / SCORES} has {len(scores_N)} scores, and there are {len(rows)} training rows"
        raise DataError(what, fix=made_anew(run.scores))
    if select.by == "difficulty":
        return difficult_rows(scores_N, count)
    return alike_rows(scores_N, count, seed)


def _sources(data: Path, rows: int, sources: int) -> Array:
    """The source of each training row, by its number. Raises DataError for rows of a version that did not keep it."""
    if sources == 1:
        return np.zeros(rows, np.int64)
    with pyarrow.parquet.ParquetFile(data / ROWS) as table:
        if "source" not in table.schema_arrow.names:
            raise DataError(
                f"{data / ROWS} does not say which row is of which source, so no source can have a weight",
                fix="begin a run by another name: its rows are made by this version, which keeps that",
            )
        columns = table.read(["source", "split"])
    found = columns["source"].to_numpy()[columns["split"].to_numpy() == TRAIN]
    return np.asarray(found, np.int64)
