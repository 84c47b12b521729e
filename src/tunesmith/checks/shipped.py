"""What is shipped is what was trained: rows and mask, merged model and GGUF files, each measured anew.

The same code and limits as in prepare, merge and export; what they wrote down is not read.
Letters in names: N rows, T tokens of all rows together.
"""

import tempfile
from pathlib import Path

import numpy as np

from tunesmith.checks.verdict import SKIPPED, Verdict, decided, proved
from tunesmith.checks.written import Written
from tunesmith.proof.merged import prove_merged
from tunesmith.recipe import Recipe
from tunesmith.release.adapter_gguf import prove_adapter
from tunesmith.release.export import measure
from tunesmith.runs import Run
from tunesmith.tokens.rows import TokenRows, load_rows, map_rows
from tunesmith.tokens.template import end_of_turn_id
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.locate import LocatedBase

MASK, MERGED, GGUF, LORA = "mask", "merged = adapter", "GGUF = merged", "adapter GGUF = adapter"


def check_mask(written: Written, base: LocatedBase) -> Verdict:
    """Every row has supervised tokens, and each stretch of them ends with the end-of-turn token; as many as counted."""
    counts, rows = written.records[written.run.data.name].counts, map_rows(written.run.data)
    end_id = end_of_turn_id(load_tokenizer(base.folder))
    wrong = list[str]()
    for name, found in (("tokens", len(rows.tokens_T)), ("supervised_tokens", int(rows.supervised_T.sum()))):
        if name in counts and counts[name] != found:
            wrong.append(f"the record counts {counts[name]:,} {name}, and there are {found:,}")
    answers, cut, empty = _answers(rows, end_id)
    if empty:
        wrong.append(f"{empty:,} rows have no supervised token")
    if cut:
        wrong.append(f"{cut:,} of {answers:,} answers do not end with the end-of-turn token, {end_id}")
    good = f"{answers:,} answers in {len(rows):,} rows are supervised, each to its end-of-turn token"
    return decided(MASK, wrong, good)


def _answers(rows: TokenRows, end_id: int) -> tuple[int, int, int]:
    """Stretches of supervised tokens; how many of them do not end with the end of turn; rows without one."""
    supervised_T, starts_N = np.asarray(rows.supervised_T), np.asarray(rows.offsets_N1[:-1])
    of_a_row_N = np.add.reduceat(supervised_T, starts_N) if len(rows) else np.zeros(0, dtype=int)
    last_T = supervised_T.copy()
    last_T[:-1] &= ~supervised_T[1:]
    last_T[rows.offsets_N1[1:] - 1] = supervised_T[rows.offsets_N1[1:] - 1]  # a row's last token ends what is before it
    ends = rows.tokens_T[last_T] == end_id
    return len(ends), int((~ends).sum()), int((of_a_row_N == 0).sum())


def check_merged(run: Run, base: LocatedBase) -> Verdict:
    """Each stored weight is base + update, and the logits are the adapter's."""
    return proved(MERGED, prove_merged(base.folder, run.adapter, run.model, load_rows(run.data)[1]), "logits in fp32")


def check_gguf(recipe: Recipe, run: Run, base: LocatedBase) -> Verdict:
    """F16 is the merged model, and each smaller type what was made from it, within the recipe's limits."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-verify-") as scratch:
        _, proofs = measure(recipe, run, base, Path(scratch))
    return proved(GGUF, proofs, "mean KL")


def check_lora(recipe: Recipe, run: Run, base: LocatedBase) -> Verdict:
    """The adapter's GGUF on the base's is the adapter on the base."""
    file = run.adapter_gguf(recipe.name)
    if not file.exists():
        why = f"there is no {file.name}" if recipe.export.adapter else "the recipe asks for none"
        return Verdict(LORA, SKIPPED, why)
    with tempfile.TemporaryDirectory(prefix="tunesmith-verify-") as scratch:
        return proved(LORA, prove_adapter(recipe, run, base, file, Path(scratch)), "mean KL")
