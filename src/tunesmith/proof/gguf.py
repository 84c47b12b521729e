"""The gate of export: what is shipped is what was trained (invariant 5 of the design).

Token ids, stop tokens and the chat template are compared as they are (texts.py); the weights by the probabilities of
the next token at positions of held-out rows, over the whole vocabulary: transformers in fp32 against llama.cpp. What a
file makes of the next token there is its held-out loss. Greedy answers to the evaluation prompts are compared last.

Probabilities of all positions are never in memory: a piece of them is compared at a time, with what a file on disk has
of the reference. Where each was compared with the model, F16's take its place in that file, for the smaller types.

Letters in names: C positions of a piece, S all positions, V vocabulary.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunesmith.console import progress, warn
from tunesmith.errors import ProofError, ResourceError
from tunesmith.inference.engine import PatientEngine
from tunesmith.inference.logits import Unavailable, sequence_logits
from tunesmith.proof.damage import UNDAMAGED, check_names, find_damage, find_odd_numbers
from tunesmith.proof.divergence import NEAR_TIE, Apart, Choice, Divergence
from tunesmith.proof.greedy import TOKENS, Greedy, answer, compare_answers, prompt_ids
from tunesmith.proof.merged import (
    BITS,
    CHOICE,
    MERGED,
    RELATIVE,
    STORED,
    STORED_BITS,
    WEIGHTS_STORED,
)
from tunesmith.proof.reference import Reference, in_float64, store_model
from tunesmith.proof.sample import HeldOutLoss, Sample, pick_sample
from tunesmith.proof.texts import CHATS, FIX, Texts, check_texts
from tunesmith.recipe import GgufType, Limits, Recipe
from tunesmith.record import Proof, read_record
from tunesmith.runs import Run
from tunesmith.tokens.rows import load_rows
from tunesmith.tokens.tokenizer import load_tokenizer

ENOUGH = 1000  # positions for the limit of the loss; over fewer, chance leaves more: by the root of their number
WARN_KL = 0.5  # nats; a quantisation above it answers noticeably worse
FEW = 64  # positions where llama.cpp's server is asked for each alone: near a second a position
SHORT = 256  # tokens of context where only texts are looked at
NUMBERS = ("mean KL in nats", "other first choice", "max relative difference of logits")
OF_ADAPTER = {
    WEIGHTS_STORED: "weights_off_in_roundings", MERGED: "max_difference_before_rounding", STORED: "mean_kl",
    RELATIVE: "max_relative_difference", CHOICE: "other_first_choice", BITS: "adapter_bits_per_byte",
    STORED_BITS: "bits_per_byte",
}  # fmt: skip
"""What merge proved -> the same in proof.json."""
LIMIT_SERVER_KL = 1e-2  # nats between llama.cpp's two ways at one position; rounding leaves 1e-5, another layout 1


@dataclass(frozen=True)
class Found:
    """What one file's comparisons gave."""

    kind: GgufType
    texts: Texts
    apart: Divergence | None
    """From what it was made from, where that could be computed."""
    first: Choice | None
    """The first position that differs, or the most different one."""
    loss: HeldOutLoss
    was: HeldOutLoss | None
    """The loss of what it was made from."""


class Gate:
    """The proof of one run's files: what is the same for all of them."""

    def __init__(self, recipe: Recipe, run: Run, scratch: Path, reference: Reference) -> None:
        self.recipe, self.run, self.scratch, self.reference = recipe, run, scratch, reference
        self.limits, self.threads = recipe.export.limits, recipe.evaluate.threads
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(run.model)
        self.sample = pick_sample(load_rows(run.data)[1], recipe.export.positions)

    def prove(self, files: Mapping[GgufType, Path]) -> tuple[dict[GgufType, dict[str, Any]], list[Proof]]:
        """Results by type, and the proofs."""
        proved: dict[GgufType, dict[str, Any]] = {}
        proofs: list[Proof] = []
        started = time.monotonic()
        reason = store_model(self.run.model, self.sample, self.reference)
        if why := why_one_by_one(files["F16"], self.sample, self.threads, self.scratch):
            self.sample = self.sample.spread(FEW)
            warn(f"only {len(self.sample)} positions are compared, one request to llama.cpp's server each: {why}")
            reason = store_model(self.run.model, self.sample, self.reference)
        for kind, path in files.items():
            last = kind == list(files)[-1]
            names = check_names(self.run.model, path)
            texts, answered = self._texts(path, answers=kind == "F16")
            found = self._logits(kind, path, texts, keep=kind == "F16" and not last, one_by_one=bool(why))
            self._check(found, path)
            proofs += _proofs(found, names, self.limits, reason or None)
            proved[kind] = _facts(found) | {"way": why or "whole sequences"}
            if kind == "F16":
                greedy = answered if isinstance(answered, str) else self._greedy(answered, path)
                proofs.append(_greedy_proof(greedy))
                proved[kind] |= {} if isinstance(greedy, str) else {"greedy": asdict(greedy)}
                proved[kind] |= _of_adapter(self.run)
                self.reference.loss = found.loss
            proved[kind]["proof_s"] = round(time.monotonic() - started, 1)
            started = time.monotonic()
        return proved, proofs

    def _texts(self, path: Path, *, answers: bool) -> tuple[Texts, Sample | str]:
        """Look at a file's texts, and let it answer the prompts: answers, or why there are none."""
        asked = prompt_ids(self.recipe, self.tokenizer) if answers else ""
        longest = 0 if isinstance(asked, str) else max(map(len, asked)) + TOKENS
        with PatientEngine(path, threads=self.threads, context=max(SHORT, CHATS + 8, longest + 8)) as engine:
            texts = check_texts(self.recipe, self.run, self.tokenizer, engine, path, self.sample)
            if isinstance(asked, str):
                return texts, asked
            return texts, answer(self.recipe, self.tokenizer, engine, asked)

    def _logits(self, kind: GgufType, path: Path, texts: Texts, *, keep: bool, one_by_one: bool) -> Found:
        """Compare a file's log-probabilities with the reference's. `keep`: they take its place."""
        was, sample = self.reference.loss, self.sample
        way = (
            _one_by_one(path, sample, self.threads) if one_by_one else _whole(path, sample, self.threads, self.scratch)
        )
        near_tie = self.limits.near_tie if kind == "F16" else NEAR_TIE
        apart, loss = compare(way, sample, self.reference, path.name, keep=keep, near_tie=near_tie)
        if apart is None:
            return Found(kind, texts, None, None, loss, was)
        limit = self.limits.kl if kind == "F16" else self.limits.quantised_kl or WARN_KL
        return Found(kind, texts, apart.found(sample.place), apart.first(sample.place, limit), loss, was)

    def _check(self, found: Found, path: Path) -> None:
        """Raise ProofError for a file beyond the limits, with the first position that differs and where damage lies."""
        if found.kind == "F16":
            self._check_f16(found, path)
        elif odd := find_odd_numbers(self.run.model, path):
            raise ProofError(f"{path.name} is not the merged model: {odd}", fix=FIX, where=str(path))
        elif found.apart and found.first:
            self._check_quantised(found.apart, found.first, path.name)

    def _check_f16(self, found: Found, path: Path) -> None:
        what, place = "", ""
        if found.apart and found.first:
            losses = abs(found.loss.loss - found.was.loss) if found.was else None
            what = why_unequal(found.apart, losses, self.limits)
            place = self._in_words(found.first, "the merged model")
        damage = find_damage(self.run.model, self.run.adapter, path)
        if what or damage:
            what = "; ".join(part for part in (what, damage or UNDAMAGED) if part)
            raise ProofError(f"{path.name} is not the merged model: {what}", fix=FIX, where=place)

    def _check_quantised(self, apart: Divergence, first: Choice, name: str) -> None:
        limit = self.limits.quantised_kl
        if limit is not None and not apart.mean_kl <= limit:
            what = f"{name} is too far from F16: mean KL {apart.mean_kl:.2g} nats (limit {limit:g})"
            fix = "export a larger type instead, or raise export.limits.quantised_kl"
            raise ProofError(what, fix=fix, where=self._in_words(first, "F16"))
        if not apart.mean_kl <= WARN_KL:
            warn(f"{name} is far from F16: mean KL {apart.mean_kl:.2f} nats; prefer a larger type")

    def _in_words(self, choice: Choice, reference: str) -> str:
        ours, theirs = (repr(self.tokenizer.decode([token])) for token in (choice.reference, choice.other))
        return (
            f"first at {choice.place}: {reference} has {ours} (token {choice.reference}, log-probability "
            f"{choice.reference_logprob:.3f}), the file {theirs} (token {choice.other}, {choice.other_logprob:.3f})"
        )

    def _greedy(self, answered: Sample, path: Path) -> Greedy | str:
        """Compare the answers. Raises ProofError where one parts from the merged model's without a near tie."""
        found = compare_answers(self.run.model, answered)
        if isinstance(found, str):
            return found
        greedy, partings = found
        for parting in partings:
            if not parting.gap <= self.limits.near_tie:
                model, file = (repr(self.tokenizer.decode([token])) for token in (parting.model, parting.file))
                what = (
                    f"{path.name} answers evaluation prompt {parting.prompt + 1} otherwise than the merged model, "
                    f"which finds its own token {parting.gap:.2g} nats more likely (limit {self.limits.near_tie:g})"
                )
                where = (
                    f"token {parting.token + 1} of the answer: the model has {model} (token {parting.model}, "
                    f"log-probability {parting.model_logprob:.3f}), the file {file} (token {parting.file}, "
                    f"{parting.file_logprob:.3f} in the model)"
                )
                raise ProofError(f"{what}; {UNDAMAGED}", fix=FIX, where=where)
        return greedy


def prove_gguf(
    recipe: Recipe, run: Run, files: Mapping[GgufType, Path], scratch: Path
) -> tuple[dict[GgufType, dict[str, Any]], list[Proof]]:
    """Compare GGUF files, F16 first, with run.model and with F16, on held-out rows; results by type, and the proofs.

    `scratch`: a folder of nothing else. Raises ProofError where F16 is not the merged model, a file computes no numbers
    or is beyond a limit of the recipe. The comparison with the model is skipped, with the reason, where it does not fit
    in fp32.
    """
    with contextlib.closing(Reference(scratch / "reference")) as reference:
        return Gate(recipe, run, scratch, reference).prove(files)


def why_one_by_one(file: Path, sample: Sample, threads: int, scratch: Path) -> str:
    """Why whole sequences are not computed here; empty where the first position is as llama.cpp's server has it."""
    first = Sample(sample.rows[:1]).spread(1)
    prefix = next(first.prefixes())
    with PatientEngine(file, threads=threads, context=len(prefix) + 8) as engine:
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
    with PatientEngine(path, threads=threads, context=longest + 8) as engine:
        for prefix in sample.prefixes():
            yield torch.from_numpy(engine.next_token_logprobs(prefix))[None]


def compare(
    pieces: Iterator[Tensor], sample: Sample, reference: Reference, name: str, *, keep: bool, near_tie: float = NEAR_TIE
) -> tuple[Apart | None, HeldOutLoss]:
    """How far a file's log-probabilities are from the reference, where there is one, and its held-out loss.

    `keep`: they take the reference's place. Raises ProofError for a file that computes no numbers.
    """
    apart, targets_S, nats, done = Apart(near_tie), torch.from_numpy(sample.targets_S), list[Tensor](), 0
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
    return apart if reference.loss else None, sample.held_out_loss(in_float64(nats))


def _facts(found: Found) -> dict[str, Any]:
    """What proof.json says of one file."""
    facts: dict[str, Any] = {}
    if found.apart and found.first:
        facts[f"against_{'model' if found.kind == 'F16' else 'F16'}"] = asdict(found.apart)
    facts["held_out"] = asdict(found.loss)
    if found.kind == "F16" and found.was:
        facts["model_held_out"] = asdict(found.was)
    texts = found.texts
    return facts | {"tokens_equal": texts.tokens, "conversations_equal": texts.conversations, "stops": texts.stops}


def _of_adapter(run: Run) -> dict[str, Any]:
    """What merge proved of the merged model against its base with the adapter, for those who read proof.json alone."""
    record = read_record(run.model)
    proofs = {proof.name: proof for proof in (record.proofs if record else ()) if proof.value is not None}
    found: dict[str, Any] = {key: proofs[name].value for name, key in OF_ADAPTER.items() if name in proofs}
    positions = {"positions": proofs[STORED].positions} if STORED in proofs else {}
    return {"model_against_adapter": found | positions} if found else {}


def _proofs(found: Found, names: int, limits: Limits, reason: str | None) -> list[Proof]:
    """What one file's comparisons prove. `names`: tensors that were looked for; `reason`: why the model has no part."""
    kind, apart, loss, was = found.kind, found.apart, found.loss, found.was
    positions = apart.positions if apart else 0
    proofs = [
        Proof(f"{kind}: token ids equal, share that is not", 0.0, 0.0, found.texts.tokens),
        Proof(f"{kind}: tensors of the model that are not there", 0.0, 0.0, names),
        Proof(f"{kind}: does not stop at the end of turn", 0.0, 0.0, found.texts.stops),
    ]
    numbers = (apart.mean_kl, 1 - apart.top1, apart.max_relative_difference) if apart else (None, None, None)
    limit_of: dict[str, float | None] = dict.fromkeys(NUMBERS)
    if kind != "F16":
        limit_of["mean KL in nats"] = limits.quantised_kl
        pairs = zip(limit_of.items(), numbers, strict=True)
        proofs += [Proof(f"{kind} against F16, {name}", value, limit, positions) for (name, limit), value in pairs]
    else:
        proofs.insert(2, Proof("F16: tensors whose numbers are not the model's", 0.0, 0.0, names))
        limit_of |= {"mean KL in nats": limits.kl, "other first choice": 1 - limits.top1}
        limit_of["held-out loss in nats"] = loss_limit(loss.positions, limits.loss)
        pairs = zip(limit_of.items(), (*numbers, abs(loss.loss - was.loss) if apart and was else None), strict=True)
        proofs += [Proof(f"F16 = merged, {name}", value, limit, positions, reason) for (name, limit), value in pairs]
    proofs.append(Proof(f"{kind}: held-out loss in nats", loss.loss, None, loss.positions))
    if loss.bits_per_byte is not None:
        proofs.append(Proof(f"{kind}: held-out bits per byte", loss.bits_per_byte, None, loss.positions))
    return proofs


def _greedy_proof(greedy: Greedy | str) -> Proof:
    name = "F16 = merged, greedy answers that part without a near tie"
    return Proof(name, None, 0.0, 0, greedy) if isinstance(greedy, str) else Proof(name, 0.0, 0.0, greedy.tokens)


def loss_limit(positions: int, limit: float) -> float:
    """How far two held-out losses may be apart, in nats."""
    return float(f"{limit * max(1.0, (ENOUGH / positions) ** 0.5):.1e}")


def why_unequal(found: Divergence, difference: float | None, limits: Limits) -> str:
    """What is beyond the limits of an F16 file; empty where nothing is. `difference`: of the losses."""
    if not (found.mean_kl <= limits.kl and found.top1 >= limits.top1):  # a NaN is not equal
        return (
            f"mean KL {found.mean_kl:.2g} (limit {limits.kl:g}), same top token at {found.top1:.1%} "
            f"(limit {limits.top1:.0%}), largest KL {found.max_kl:.2g} at {found.worst}"
        )
    if difference is not None and not difference <= (limit := loss_limit(found.positions, limits.loss)):
        return f"its held-out loss is {difference:.2g} nats off (limit {limit:g})"
    return ""
