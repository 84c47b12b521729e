"""The gate of export: what is shipped is what was trained (invariant 5 of the design).

Token ids, start and stop tokens and the chat template are compared as they are; the weights by the probabilities of the
next token at positions of held-out rows, over the whole vocabulary: transformers in fp32 against llama.cpp. What a file
makes of the next token there is its held-out loss.

Probabilities of all positions are never in memory: a piece of them is compared at a time, with what a file on disk has
of the reference. Where each was compared with the model, F16's take its place in that file, for the smaller types.

Letters in names: C positions of a piece, S all positions, V vocabulary.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gguf
import pyarrow.parquet
import torch
from torch import Tensor

from tunesmith.console import progress, warn
from tunesmith.data.split import HELD_OUT
from tunesmith.errors import ProofError, ResourceError
from tunesmith.gguf.metadata import read_singles
from tunesmith.inference.engine import Engine
from tunesmith.inference.logits import Unavailable, sequence_logits
from tunesmith.proof.divergence import Apart, Divergence
from tunesmith.proof.reference import Reference, in_float64, store_model
from tunesmith.proof.sample import HeldOutLoss, Sample, pick_sample
from tunesmith.recipe import GgufType, Recipe
from tunesmith.record import Proof
from tunesmith.runs import Run
from tunesmith.tokens.rows import load_rows
from tunesmith.tokens.template import end_of_turn_id, render
from tunesmith.tokens.tokenizer import load_tokenizer

LIMIT_MEAN_KL = 1e-4  # nats; an F16 file of a 135 M model has 6e-7, a wrong rotary 1.2
LIMIT_TOP1 = 0.99
LIMIT_LOSS = 1e-3  # nats; the same file 6.6e-4
ENOUGH = 1000  # positions for that; over fewer, chance leaves more: by the root of their number
WARN_KL = 0.5  # nats; a quantisation above it answers noticeably worse
FEW = 64  # positions where llama.cpp's server is asked for each alone: near a second a position
SHORT = 256  # tokens of context where only texts are looked at
LIMIT_SERVER_KL = 1e-2  # nats between llama.cpp's two ways at one position; rounding leaves 1e-5, another layout 1
FIX = "delete model/ and gguf/ and run again; if it fails again, report the base model"


def prove_gguf(
    recipe: Recipe, run: Run, files: Mapping[GgufType, Path], scratch: Path
) -> tuple[dict[GgufType, dict[str, Any]], list[Proof]]:
    """Compare GGUF files, F16 first, with run.model and with F16, on held-out rows; results by type, and the proofs.

    `scratch`: a folder of nothing else. Raises ProofError where F16 is not the merged model, or a file computes no
    numbers. A quantisation has no limit, only a warning. The comparison with the model is skipped, with the reason,
    where it does not fit in fp32.
    """
    sample = pick_sample(load_rows(run.data)[1], recipe.export.positions)
    threads, started = recipe.evaluate.threads, time.monotonic()
    proved: dict[GgufType, dict[str, Any]] = {}
    proofs: list[Proof] = []
    with contextlib.closing(Reference(scratch / "reference")) as reference:
        reason = store_model(run.model, sample, reference)
        if why := why_one_by_one(files["F16"], sample, threads, scratch):
            sample = sample.spread(FEW)
            warn(f"only {len(sample)} positions are compared, one request to llama.cpp's server each: {why}")
            reason = store_model(run.model, sample, reference)
        for kind, path in files.items():
            with Engine(path, threads=threads, context=SHORT) as engine:
                tokens = check_tokens(recipe, run, path, engine)
            was = reference.loss
            pieces = _one_by_one(path, sample, threads) if why else _whole(path, sample, threads, scratch)
            found, loss = compare(pieces, sample, reference, path.name, keep=kind == "F16" and len(files) > 1)
            if kind == "F16":
                check_equal(found, abs(loss.loss - was.loss) if was else None, path.name)
            elif found and not found.mean_kl <= WARN_KL:
                warn(f"{path.name} is far from F16: mean KL {found.mean_kl:.2f} nats; prefer a larger type")
            proofs += _proofs(kind, found, loss, was, (tokens, reason or None))
            proved[kind] = {f"against_{'model' if kind == 'F16' else 'F16'}": asdict(found)} if found else {}
            proved[kind] |= {"held_out": asdict(loss), "way": why or "whole sequences"}
            if kind == "F16":
                proved[kind] |= {"model_held_out": asdict(was)} if was else {}
                reference.loss = loss
            proved[kind] |= {"tokens_equal": tokens, "proof_s": round(time.monotonic() - started, 1)}
            started = time.monotonic()
    return proved, proofs


def why_one_by_one(file: Path, sample: Sample, threads: int, scratch: Path) -> str:
    """Why whole sequences are not computed here; empty where the first position is as llama.cpp's server has it."""
    first = Sample(sample.rows[:1]).spread(1)
    prefix = next(first.prefixes())
    with Engine(file, threads=threads, context=len(prefix) + 8) as engine:
        theirs_CV = torch.from_numpy(engine.next_token_logprobs(prefix))[None]
    try:
        (ours_CV,) = _whole(file, first, threads, scratch)
    except ResourceError as error:
        return error.what
    apart = Apart()
    apart.add(theirs_CV, ours_CV)
    kl = apart.found(first.place).mean_kl
    return "" if kl <= LIMIT_SERVER_KL else f"its logits are not those of llama.cpp's server: KL {kl:.2g} nats"


def _whole(path: Path, sample: Sample, threads: int, scratch: Path) -> Iterator[Tensor]:
    """Log-probabilities [C, V] of a file at all positions, a piece at a time."""
    sequences = [(row.ids, row.places) for row in sample.rows]
    try:
        for logits_CV in sequence_logits(path, sequences, threads=threads, window=scratch / "window"):
            yield torch.from_numpy(logits_CV).log_softmax(dim=1)
    except Unavailable as error:
        raise ResourceError(f"{path.name}: {error}", fix="free some memory, and type the same again") from error


def _one_by_one(path: Path, sample: Sample, threads: int) -> Iterator[Tensor]:
    """The same by llama.cpp's server: one token is generated after each prefix, with sampling transforms off."""
    longest = max(len(row.ids) for row in sample.rows)
    with Engine(path, threads=threads, context=longest + 8) as engine:
        for prefix in sample.prefixes():
            yield torch.from_numpy(engine.next_token_logprobs(prefix))[None]


def compare(
    pieces: Iterator[Tensor], sample: Sample, reference: Reference, name: str, *, keep: bool
) -> tuple[Divergence | None, HeldOutLoss]:
    """How far a file's log-probabilities are from the reference, where there is one, and its held-out loss.

    `keep`: they take the reference's place. Raises ProofError for a file that computes no numbers.
    """
    apart, targets_S, nats, done = Apart(), torch.from_numpy(sample.targets_S), list[Tensor](), 0
    with progress(f"proof of {name}", len(sample), unit="positions") as advance:
        for logprobs_CV in pieces:
            part = slice(done, done + len(logprobs_CV))
            if (bad_C := logprobs_CV.isnan().any(dim=1)).any():
                what = f"{name} computes no numbers at {sample.place(done + int(bad_C.int().argmax()))}"
                raise ProofError(what, fix="delete model/ and gguf/ and run again")
            if reference.loss:
                apart.add(reference.read(part.start, part.stop), logprobs_CV)
            if keep:
                reference.write(done, logprobs_CV)
            nats.append(-logprobs_CV.gather(1, targets_S[part, None])[:, 0])
            done = part.stop
            advance(len(logprobs_CV), "")
    assert done == len(sample)
    return apart.found(sample.place) if reference.loss else None, sample.held_out_loss(in_float64(nats))


def _proofs(
    kind: GgufType, found: Divergence | None, loss: HeldOutLoss, was: HeldOutLoss | None, rest: tuple[int, str | None]
) -> list[Proof]:
    """What one file's comparisons prove; a quantisation's are measured only. `was`: the loss of what it is compared
    with; `rest`: how many tokens were compared, and why the model has no part.
    """
    tokens, reason = rest
    proofs = [Proof(f"{kind}: token ids equal, share that is not", 0.0, 0.0, tokens)]
    if kind != "F16":
        proofs.append(
            Proof(f"{kind} against F16, mean KL in nats", found.mean_kl if found else None, None, _positions(found))
        )
    else:
        values = (found.mean_kl, 1 - found.top1, abs(loss.loss - was.loss)) if found and was else (None, None, None)
        limits = {"F16 = merged, mean KL in nats": LIMIT_MEAN_KL, "F16 = merged, other first choice": 1 - LIMIT_TOP1,
                  "F16 = merged, held-out loss in nats": loss_limit(loss.positions)}  # fmt: skip
        done = zip(limits.items(), values, strict=True)
        proofs += [Proof(name, value, limit, _positions(found), reason) for (name, limit), value in done]
    proofs.append(Proof(f"{kind}: held-out loss in nats", loss.loss, None, loss.positions))
    if loss.bits_per_byte is not None:
        proofs.append(Proof(f"{kind}: held-out bits per byte", loss.bits_per_byte, None, loss.positions))
    return proofs


def _positions(found: Divergence | None) -> int:
    return found.positions if found else 0


def loss_limit(positions: int) -> float:
    """How far two held-out losses may be apart, in nats."""
    return float(f"{LIMIT_LOSS * max(1.0, (ENOUGH / positions) ** 0.5):.1e}")


def check_equal(found: Divergence | None, difference: float | None, name: str) -> None:
    """Raise ProofError, with the worst position, if the F16 file is not the merged model. `difference`: of losses."""
    if found and not (found.mean_kl <= LIMIT_MEAN_KL and found.top1 >= LIMIT_TOP1):  # a NaN is not equal
        raise ProofError(
            f"{name} is not the merged model: mean KL {found.mean_kl:.2g} (limit {LIMIT_MEAN_KL:g}), same top token at "
            f"{found.top1:.1%} (limit {LIMIT_TOP1:.0%}), largest KL {found.max_kl:.2g}",
            fix=FIX,
            where=found.worst,
        )
    if found and difference is not None and not difference <= (limit := loss_limit(found.positions)):
        what = f"{name} is not the merged model: its held-out loss is {difference:.2g} nats off (limit {limit:g})"
        raise ProofError(what, fix=FIX, where=found.worst)


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
