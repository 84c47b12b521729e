"""VERB export: the merged model as GGUF files for llama.cpp, each proved."""

import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.console import say, warn
from tunesmith.decides import gguf_needs
from tunesmith.errors import ResourceError
from tunesmith.files import PROOFS, finish, finished, scratch_folder, write_file
from tunesmith.gguf.modelfile import MODELFILE
from tunesmith.gguf.quantise import takes_importance
from tunesmith.gguf.write import About, expected_bytes, write_gguf
from tunesmith.machine import need_disk
from tunesmith.model.importance import Importance, gather_importance
from tunesmith.proof.gguf import prove_gguf
from tunesmith.recipe import GgufType, Recipe
from tunesmith.record import Proof, Record, read_record
from tunesmith.release.adapter_gguf import make_adapter_gguf, prove_adapter
from tunesmith.release.modelfile import make_modelfile
from tunesmith.release.sources import trained_on
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
    files = _Files(recipe, run, base)
    return commit_stage(run.gguf, *gguf_needs(recipe, run, base.digest), files.make, files.prove)


def measure(
    recipe: Recipe, run: Run, base: LocatedBase, scratch: Path
) -> tuple[dict[GgufType, dict[str, Any]], list[Proof]]:
    """Measure the files of a run anew, and write nothing in it; `scratch`: a folder of nothing else.

    Raises ProofError above a limit of the recipe, ResourceError where disk or memory is short.
    """
    return _Files(recipe, run, base).measure(run.gguf, scratch)


class _Files:
    """The files of one export: made, then proved."""

    def __init__(self, recipe: Recipe, run: Run, base: LocatedBase) -> None:
        self.recipe, self.run, self.base = recipe, run, base
        self.types: list[GgufType] = ["F16", *(kind for kind in recipe.export.gguf if kind != "F16")]
        self.names = {kind: run.gguf_file(recipe.name, kind).name for kind in self.types}
        self.lora = run.adapter_gguf(recipe.name).name
        self.written: dict[str, dict[str, Any]] = {}

    @cached_property
    def about(self) -> About:
        """What they say of themselves: only of a model that is as it was written, which commit_stage sees to."""
        stop = end_of_turn_id(load_tokenizer(self.run.model))
        data = read_record(self.run.data)
        assert data is not None, "commit_stage has looked at it"
        return About(
            self.recipe.name, self.base.name, self.base.licence, self.recipe.chat, end_of_turn=stop,
            data=trained_on(self.recipe, data),
        )  # fmt: skip

    @cached_property
    def importance(self) -> tuple[Importance, int] | None:
        """What errors are weighed with, and of how many tokens; None where there is no memory for it."""
        say("export: gathering the importance matrix on training conversations")
        try:
            return gather_importance(self.run.model, load_rows(self.run.data)[0])
        except ResourceError as error:
            if self.recipe.export.importance == "on":
                raise
            warn(f"{error.what}: files are quantised without")
            return None

    def make(self, draft: Path) -> dict[str, Any]:
        """Write those that are not finished; counts for the record."""
        left = [kind for kind in self.types if self.names[kind] not in finished(draft)]
        need_disk(self.run.path, sum(expected_bytes(self.run.model, kind) for kind in left), "export")
        for kind in self.types:
            if kind in left:
                weights = self.importance if takes_importance(kind, self.recipe.export.importance) else None
                _write(self.run.model, draft / self.names[kind], kind, self.about, weights)
            else:
                say(f"export: {self.names[kind]} was finished before")
            self.written[kind] = finished(draft)[self.names[kind]]["facts"]
        if self.recipe.export.adapter and self.lora not in finished(draft):
            make_adapter_gguf(self.recipe, self.run, self.base, draft / self.lora, self.about)
        make_modelfile(self.recipe, self.run.model, draft / MODELFILE)
        return {"files": self.written}

    def prove(self, folder: Path) -> list[Proof]:
        """Prove them, and write proof.json."""
        facts = self.written or _facts(folder)
        with scratch_folder(self.run.scratch) as scratch:
            measured, proofs = self.measure(folder, scratch)
            proofs += prove_adapter(self.recipe, self.run, self.base, folder / self.lora, scratch)
        for proof in proofs:
            if proof.limit is not None:
                say(f"export: {proof}")
        for kind in self.types:
            say(f"export: {self.names[kind]}: {_in_words(measured[kind])}")
        said = {kind: facts[kind] | measured[kind] for kind in self.types}
        write_file(folder / PROOFS, json.dumps(said, indent=1) + "\n")
        if "F16" not in self.recipe.export.gguf:
            (folder / self.names["F16"]).unlink(missing_ok=True)
        return proofs

    def measure(self, folder: Path, scratch: Path) -> tuple[dict[GgufType, dict[str, Any]], list[Proof]]:
        """Compare the files in `folder` with the merged model; results by type, and the proofs."""
        f16 = self._f16(folder, scratch)
        paths = {kind: folder / self.names[kind] for kind in self.types} | {"F16": f16}
        return prove_gguf(self.recipe, self.run, paths, scratch)

    def _f16(self, folder: Path, scratch: Path) -> Path:
        """The F16 file; where it was not kept, one that is written again, for a proof that is done later."""
        name = self.names["F16"]
        if (folder / name).exists():
            return folder / name
        need_disk(scratch, expected_bytes(self.run.model, "F16"), "the F16 file that the proof compares with")
        write_gguf(self.run.model, scratch / name, "F16", self.about)
        return scratch / name


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
