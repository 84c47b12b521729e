"""VERB export: the merged model as GGUF files for llama.cpp, each proved."""

import json
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.console import say, warn
from tunesmith.decides import gguf_needs
from tunesmith.errors import ResourceError
from tunesmith.files import PROOFS, finish, finished, scratch_folder, write_file
from tunesmith.gguf.quantise import takes_importance
from tunesmith.gguf.write import About, expected_bytes, write_gguf
from tunesmith.machine import need_disk
from tunesmith.model.importance import Importance, gather_importance
from tunesmith.proof.gguf import prove_gguf
from tunesmith.recipe import GgufType, Recipe
from tunesmith.record import Proof, Record, read_record
from tunesmith.release.adapter_gguf import make_adapter_gguf, prove_adapter
from tunesmith.release.modelfile import MODELFILE, make_modelfile
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.rows import load_rows
from tunesmith.tokens.template import end_of_turn_id
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.locate import LocatedBase


def export(recipe: Recipe, run: Run, base: LocatedBase) -> tuple[Record, bool]:
    """Commit run.gguf: the types of recipe.export.gguf and proof.json. F16 is always made; kept only if asked for.

    What is finished outlives a kill: the next call goes on with the first file that is missing. Raises ProofError if
    the F16 file is not the merged model, BaseError for a model that cannot be a GGUF.
    """
    types: list[GgufType] = ["F16", *(kind for kind in recipe.export.gguf if kind != "F16")]
    names = {kind: run.gguf_file(recipe.name, kind).name for kind in types}
    lora = run.adapter_gguf(recipe.name).name
    written: dict[str, dict[str, Any]] = {}

    @cache
    def importance() -> tuple[Importance, int] | None:
        say("export: gathering the importance matrix on training conversations")
        try:
            return gather_importance(run.model, load_rows(run.data)[0])
        except ResourceError as error:
            if recipe.export.importance == "on":
                raise
            warn(f"{error.what}: files are quantised without")
            return None

    @cache
    def about() -> About:  # only of a model that is as it was written, which commit_stage sees to
        stop = end_of_turn_id(load_tokenizer(run.model))
        return About(recipe.name, base.name, base.licence, recipe.chat, end_of_turn=stop)

    def work(draft: Path) -> dict[str, Any]:
        left = [kind for kind in types if names[kind] not in finished(draft)]
        need_disk(run.path, sum(expected_bytes(run.model, kind) for kind in left), "export")
        for kind in types:
            if kind in left:
                weights = importance() if takes_importance(kind, recipe.export.importance) else None
                _write(run.model, draft / names[kind], kind, about(), weights)
            else:
                say(f"export: {names[kind]} was finished before")
            written[kind] = finished(draft)[names[kind]]["facts"]
        if recipe.export.adapter and lora not in finished(draft):
            make_adapter_gguf(recipe, run, base, draft / lora, about())
        make_modelfile(recipe, run.model, draft / MODELFILE)
        return {"files": written}

    def prove(folder: Path) -> list[Proof]:
        facts = written or _facts(folder)
        with scratch_folder(run.scratch) as scratch:
            f16 = _f16(run, folder / names["F16"], scratch, about)
            paths = {kind: folder / names[kind] for kind in types} | {"F16": f16}
            measured, proofs = prove_gguf(recipe, run, paths, scratch)
            proofs += prove_adapter(recipe, run, base, folder / lora, scratch)
        for proof in proofs:
            if proof.limit is not None:
                say(f"export: {proof}")
        for kind in types:
            say(f"export: {names[kind]}: {_in_words(measured[kind])}")
        said = {kind: facts[kind] | measured[kind] for kind in types}
        write_file(folder / PROOFS, json.dumps(said, indent=1) + "\n")
        if "F16" not in recipe.export.gguf:
            (folder / names["F16"]).unlink(missing_ok=True)
        return proofs

    return commit_stage(run.gguf, *gguf_needs(recipe, run, base.digest), work, prove)


def _write(model: Path, path: Path, kind: GgufType, about: About, weights: tuple[Importance, int] | None) -> None:
    """Write one GGUF file, and note that it is finished. `weights`: importance, and the tokens it is from."""
    started = time.monotonic()
    facts = write_gguf(model, path, kind, about, weights[0] if weights else None)
    if weights:
        facts["importance_tokens"] = weights[1]
    facts["write_s"] = round(time.monotonic() - started, 1)
    odd = facts["fallbacks"]
    note = f"; {odd} tensors have rows that fit no K-quant and are larger types" if odd else ""
    finish(path.parent, path.name, facts)
    say(f"export: {path.name}, {facts['bytes'] / 1e6:.0f} MB{note}")


def _f16(run: Run, path: Path, scratch: Path, about: Callable[[], About]) -> Path:
    """The F16 file; where it was not kept, one that is written again, for a proof that is done later."""
    if path.exists():
        return path
    need_disk(run.path, expected_bytes(run.model, "F16"), "the F16 file that the proof compares with")
    write_gguf(run.model, scratch / path.name, "F16", about())
    return scratch / path.name


def _in_words(measured: Mapping[str, Any]) -> str:
    """What a file loses, for the choice of its type."""
    held_out, from_f16 = measured["held_out"], measured.get("against_F16")
    bits = f" ({held_out['bits_per_byte']:.3f} bits per byte)" if held_out["bits_per_byte"] is not None else ""
    kl = f", mean KL to F16 {from_f16['mean_kl']:.2g} nats" if from_f16 else ""
    where = f"{held_out['positions']:,} positions of {held_out['rows']:,} rows"
    return f"held-out loss {held_out['loss']:.4f}{bits}{kl}, {where}"


def _facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What is known of the files of a folder that stands, as they were written."""
    record = read_record(folder)
    assert record is not None
    facts: dict[str, dict[str, Any]] = record.counts["files"]
    return facts
