"""The gate of export: what is shipped is what was trained (invariant 5 of the design).

Token ids, start and stop tokens and the chat template are compared as they are; the weights by the probabilities of the
next token after prefixes of held-out rows, over the whole vocabulary: transformers in fp32 against llama.cpp.

Letters in names: N prefixes, V vocabulary.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, groupby, zip_longest
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tunesmith.console import progress, warn
from tunesmith.data.split import HELD_OUT
from tunesmith.errors import BaseError, ProofError
from tunesmith.gguf.metadata import read_singles
from tunesmith.inference.engine import Engine
from tunesmith.model.streamed import StreamedModel, roomiest
from tunesmith.recipe import GgufType, Recipe
from tunesmith.record import Proof
from tunesmith.runs import Run
from tunesmith.tokens.rows import TokenRows, load_rows
from tunesmith.tokens.template import end_of_turn_id, render
from tunesmith.tokens.tokenizer import load_tokenizer

LIMIT_MEAN_KL = 1e-4  # nats; an F16 file of a 135 M model has 1.5e-5, a wrong rotary 1.2
LIMIT_TOP1 = 0.99
NEAR_TIE = 1e-3  # nats between the reference's two best tokens below which another top-1 is rounding, not a fault
WARN_KL = 0.5  # nats; a quantisation above it answers noticeably worse
TOP = 100
LONGEST = 256  # tokens of a prefix where rows allow it; llama.cpp reads each one from its start
FLOOR = -100.0  # nats; llama.cpp writes a probability that fell to zero as -3e38
PASS_TOKENS = 2048  # of the merged model at once; its weights are read once a pass
WORDS = 4096  # of the vocabulary whose weights are in memory at once
FIX = "delete model/ and gguf/ and run again; if it fails again, report the base model"

Logprobs = NDArray[np.float32]


@dataclass(frozen=True)
class Prefix:
    """Tokens of a held-out row up to one that is supervised: the model is asked for that one."""

    ids: tuple[int, ...]
    row: int


@dataclass(frozen=True)
class Divergence:
    """How far the probabilities of two models are apart, over the prefixes."""

    mean_kl: float  # KL(reference || other), nats, whole vocabulary
    max_kl: float
    worst: str  # where that is
    max_difference_top100: float  # |difference of log-probabilities| among the reference's 100 most likely tokens
    top1: float  # share of prefixes with the same most likely token; near ties count as the same
    near_ties: int  # prefixes with another one, where the reference's two best are closer than NEAR_TIE


def prove_gguf(
    recipe: Recipe, run: Run, files: Mapping[GgufType, Path]
) -> tuple[dict[GgufType, dict[str, Any]], list[Proof]]:
    """Compare GGUF files, F16 first, with run.model and with F16, on held-out rows; results by type, and the proofs.

    Raises ProofError where F16 is not the merged model. A quantisation has no limit, only a warning. The comparison
    with the model is skipped, with the reason, where it does not fit in fp32.
    """
    prefixes = pick_prefixes(load_rows(run.data)[1], recipe.export.prefixes)
    context, started = max(len(prefix.ids) for prefix in prefixes) + 8, time.monotonic()
    model_NV, reason = model_logprobs(run.model, prefixes)
    references = {} if model_NV is None else {"model": model_NV}
    proved: dict[GgufType, dict[str, Any]] = {}
    proofs: list[Proof] = []
    for kind, path in files.items():
        with Engine(path, threads=recipe.evaluate.threads, context=context) as engine:
            tokens = check_tokens(recipe, run, path, engine)
            file_NV = file_logprobs(engine, prefixes, path.name)
        against = {name: divergence(logprobs_NV, file_NV, prefixes) for name, logprobs_NV in references.items()}
        if kind == "F16":
            check_equal(against.get("model"), path.name)
            references["F16"] = file_NV
        elif not against["F16"].mean_kl <= WARN_KL:
            warn(f"{path.name} is far from F16: mean KL {against['F16'].mean_kl:.2f} nats; prefer a larger type")
        proofs += _proofs(kind, against, tokens, len(prefixes), reason or None)
        proved[kind] = {f"against_{name}": asdict(found) for name, found in against.items()}
        proved[kind] |= {"tokens_equal": tokens, "proof_s": round(time.monotonic() - started, 1)}
        started = time.monotonic()
    return proved, proofs


def _proofs(
    kind: GgufType, against: Mapping[str, Divergence], tokens: int, prefixes: int, reason: str | None
) -> list[Proof]:
    """What one file's comparisons prove; a quantisation's are measured only. `reason`: why the model has no part."""
    proofs = [Proof(f"{kind}: token ids equal, share that is not", 0.0, 0.0, tokens)]
    if kind != "F16":
        return [*proofs, Proof(f"{kind} against F16, mean KL in nats", against["F16"].mean_kl, None, prefixes)]
    found = against.get("model")
    values = (found.mean_kl, 1 - found.top1) if found else (None, None)
    limits = {"F16 = merged, mean KL in nats": LIMIT_MEAN_KL, "F16 = merged, other first choice": 1 - LIMIT_TOP1}
    where = prefixes if found else 0
    done = zip(limits.items(), values, strict=True)
    return [*proofs, *(Proof(name, value, limit, where, reason) for (name, limit), value in done)]


def pick_prefixes(rows: TokenRows, count: int) -> list[Prefix]:
    """Up to `count` prefixes, evenly spread over the supervised tokens of all rows; the same ones every time."""
    offsets_N1 = np.asarray(rows.offsets_N1)
    places = offsets_N1[0] + np.flatnonzero(rows.supervised_T[offsets_N1[0] : offsets_N1[-1]])
    row_of = np.searchsorted(offsets_N1, places, side="right") - 1
    near = places - offsets_N1[row_of] <= LONGEST
    places, row_of = (places[near], row_of[near]) if near.any() else (places, row_of)
    chosen = np.unique(np.linspace(0, len(places) - 1, count).round().astype(int))
    starts = offsets_N1[row_of]
    return [Prefix(tuple(rows.tokens_T[starts[i] : places[i]].tolist()), int(row_of[i])) for i in chosen]


@torch.no_grad()
def model_logprobs(folder: Path, prefixes: Sequence[Prefix]) -> tuple[Logprobs | None, str]:
    """Log-probabilities [N, V] after each prefix, by transformers in fp32; or None, and why there are none.

    Raises ProofError where the model computes no numbers.
    """
    passes = list(_passes([list(group) for _, group in groupby(prefixes, key=lambda prefix: prefix.row)]))
    try:
        model = StreamedModel(folder)
        tokens = max(sum(len(prefixes[-1].ids) for prefixes in rows) for rows in passes)
        device, reason = roomiest(model.needed_bytes(tokens))
    except BaseError as error:  # stored by names of its own, as the experts of a mixture are
        device, reason = None, error.what
    if device is None:
        return None, reason
    model.to(device)
    lasts = []
    for rows in passes:
        longest = [prefixes[-1].ids for prefixes in rows]  # has the others of its row in it
        hidden_TD = model.hidden(longest)
        starts = accumulate(map(len, longest), initial=0)
        at = [start + len(one.ids) - 1 for start, prefixes in zip(starts, rows, strict=False) for one in prefixes]
        lasts.append(hidden_TD[at])
    hidden_ND = torch.cat(lasts)
    logits_NV = torch.cat([F.linear(hidden_ND, *head) for head in model.head_pieces(WORDS)], dim=1)
    logprobs_NV = logits_NV.log_softmax(dim=1)
    for prefix, good in zip(prefixes, logprobs_NV.isfinite().all(dim=1).tolist(), strict=True):
        if not good:
            what = f"the merged model gives no numbers at {_place(prefix)}"
            raise ProofError(what, fix="delete model/ and run again", where=str(folder))
    return logprobs_NV.cpu().numpy(), ""


def _place(prefix: Prefix) -> str:
    return f"held-out row {prefix.row}, token {len(prefix.ids)}"


def _passes(rows: list[list[Prefix]]) -> Iterator[list[list[Prefix]]]:
    """Rows, each as its prefixes, so many as have PASS_TOKENS tokens together."""
    now: list[list[Prefix]] = []
    for prefixes in rows:
        if now and sum(len(one[-1].ids) for one in [*now, prefixes]) > PASS_TOKENS:
            yield now
            now = []
        now.append(prefixes)
    yield now


def file_logprobs(engine: Engine, prefixes: Sequence[Prefix], what: str) -> Logprobs:
    """The same by llama.cpp; one token is generated after each prefix, with sampling transforms off."""
    rows = []
    with progress(f"proof of {what}", len(prefixes), unit="prefixes") as advance:
        for prefix in prefixes:
            rows.append(engine.next_token_logprobs(prefix.ids))
            advance(1, "")
    return np.stack(rows)


def divergence(reference_NV: Logprobs, other_NV: Logprobs, prefixes: Sequence[Prefix]) -> Divergence:
    """How far `other` is from `reference`, both log-probabilities after the prefixes."""
    difference_NV = np.maximum(reference_NV, FLOOR).astype(np.float64) - np.maximum(other_NV, FLOOR)
    kl_N = (np.exp(reference_NV, dtype=np.float64) * difference_NV).sum(axis=1)
    top = np.argpartition(reference_NV, -TOP, axis=1)[:, -TOP:]
    best_two = np.sort(reference_NV, axis=1)[:, -2:]
    flipped_N = reference_NV.argmax(axis=1) != other_NV.argmax(axis=1)
    tie_N = flipped_N & (best_two[:, 1] - best_two[:, 0] < NEAR_TIE)
    return Divergence(
        mean_kl=float(np.maximum(kl_N.mean(), 0)),  # rounding can leave it just below zero; Python's max hides a NaN
        max_kl=float(np.maximum(kl_N.max(), 0)),
        worst=_place(prefixes[kl_N.argmax()]),
        max_difference_top100=float(np.abs(np.take_along_axis(difference_NV, top, axis=1)).max()),
        top1=float(1 - (flipped_N & ~tie_N).mean()),
        near_ties=int(tie_N.sum()),
    )


def check_equal(found: Divergence | None, name: str) -> None:
    """Raise ProofError, with the worst position, if the F16 file is not the merged model."""
    if found and not (found.mean_kl <= LIMIT_MEAN_KL and found.top1 >= LIMIT_TOP1):  # a NaN is not equal
        raise ProofError(
            f"{name} is not the merged model: mean KL {found.mean_kl:.2g} (limit {LIMIT_MEAN_KL:g}), same top token at "
            f"{found.top1:.1%} (limit {LIMIT_TOP1:.0%}), largest KL {found.max_kl:.2g}",
            fix=FIX,
            where=found.worst,
        )


def check_tokens(recipe: Recipe, run: Run, file: Path, engine: Engine) -> int:
    """Check token ids, start and stop tokens and the chat template of a GGUF file against run.model's tokenizer.

    Returns how many tokens of held-out conversations were compared. Raises ProofError with the first difference.
    """
    tokenizer = load_tokenizer(run.model)
    said, keys = read_singles(file), (gguf.Keys.Tokenizer.EOS_ID, gguf.Keys.Tokenizer.EOT_ID)
    _same([end_of_turn_id(tokenizer)], [said[key] for key in keys if key in said][-1:], "stop token")
    bare, started = tokenizer("A text", add_special_tokens=False)["input_ids"], tokenizer("A text")["input_ids"]
    _same(started, engine.tokenize("A text"), "'A text', with the start token that add_bos_token says")
    bos = tokenizer.bos_token if started[1:] == bare else ""  # llama.cpp adds it, so it must not be in the text too
    filters, tokens = [("split", "=", HELD_OUT)], 0
    rows = pyarrow.parquet.read_table(run.data / "rows.parquet", columns=["where", "messages"], filters=filters)
    draw = partial(render, tokenizer, system=recipe.chat.system, date=recipe.data.date)
    for where, messages in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True):
        text = draw(messages)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        _same(ids, engine.tokenize(text.removeprefix(bos)), where)
        tokens += len(ids)
        if any(message["role"] == "tool" for message in messages):  # the chat never sends one
            continue
        asked = [*messages, {"role": "user", "content": "Go on."}]  # so that the end of the last answer is seen
        ours = draw(asked, add_generation_prompt=True)
        _same(
            ours.removeprefix(bos), engine.render(asked).removeprefix(bos), f"{where}, as the chat template renders it"
        )
    return tokens


def _same(ours: Sequence[Any], theirs: Sequence[Any], what: str) -> None:
    """Raise ProofError at the first place where a text, or token ids, are not the same on both sides."""
    place = next((i for i, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b), None)
    if place is not None:
        here = slice(place, place + (40 if isinstance(ours, str) else 4))
        difference = f"llama.cpp has {theirs[here]!r} where transformers has {ours[here]!r}"
        raise ProofError(difference, fix=FIX, where=f"{what}, at {place}")
