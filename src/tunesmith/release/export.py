"""VERB export: the merged model as GGUF files for llama.cpp, each proved; and the untouched base as one."""

import json
import time
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.console import say
from tunesmith.decides import gguf_needs
from tunesmith.files import PROOFS, fingerprint
from tunesmith.gguf.write import About, expected_bytes, write_gguf
from tunesmith.machine import need_disk
from tunesmith.proof.gguf import prove_gguf
from tunesmith.recipe import ChatConfig, GgufType, Recipe
from tunesmith.runs import Proof, Record, Run, commit_stage
from tunesmith.tokens.template import chat_template_with, end_of_turn_id
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.cache import cache_folder, made_once
from tunesmith.weights.locate import LocatedBase


def export(recipe: Recipe, run: Run, base: LocatedBase) -> tuple[Record, bool]:
    """Commit run.gguf: the types of recipe.export.gguf and proof.json. F16 is always made; kept only if asked for.

    Raises ProofError if the F16 file is not the merged model, BaseError for a model that cannot be a GGUF.
    """

    proofs: list[Proof] = []

    def work(draft: Path) -> dict[str, Any]:
        types: list[GgufType] = ["F16", *(kind for kind in recipe.export.gguf if kind != "F16")]
        need_disk(run.path, sum(expected_bytes(run.model, kind) for kind in types), "export")
        files: dict[GgufType, Path] = {kind: draft / run.gguf_file(recipe.name, kind).name for kind in types}
        written = {}
        stop = end_of_turn_id(load_tokenizer(run.model))
        about = About(recipe.name, base.name, base.licence, recipe.chat, end_of_turn=stop)
        for kind, path in files.items():
            started = time.monotonic()
            written[kind] = write_gguf(run.model, path, kind, about)
            written[kind]["write_s"] = round(time.monotonic() - started, 1)
        proved, found = prove_gguf(recipe, run, files)
        proofs.extend(found)
        for kind, measured in proved.items():
            written[kind] |= measured
            odd = written[kind]["fallbacks"]
            note = f"; {odd} tensors have rows that fit no K-quant and are larger types" if odd else ""
            say(f"export: {files[kind].name}, {written[kind]['bytes'] / 1e6:.0f} MB{note}")
        for proof in found:
            say(f"export: {proof}")
        (draft / PROOFS).write_text(json.dumps(written, indent=1) + "\n")
        if "F16" not in recipe.export.gguf:
            files["F16"].unlink()
        return {"files": written}

    return commit_stage(run.gguf, *gguf_needs(recipe, run, base.digest), work, lambda _: proofs)


def export_base(base: LocatedBase, gguf_type: GgufType, chat: ChatConfig, date: str) -> Path:
    """The untouched base as a GGUF file in the cache, with the system prompt and date of a run; made once."""
    name = base.name.replace(":", "/").split("/")[-1]
    decides = [name, base.licence, base.digest, gguf_type, chat.system, chat.temperature, chat.top_p, date, __version__]
    folder, file = cache_folder() / "base-gguf" / fingerprint(decides), f"{name}-{gguf_type}.gguf"

    def write(draft: Path) -> None:
        need_disk(draft, expected_bytes(base.folder, gguf_type), f"the GGUF file of {name}")
        tokenizer = load_tokenizer(base.folder)
        template = chat_template_with(tokenizer.get_chat_template(), chat.system, date)
        about = About(name, base.name, base.licence, chat, template, end_of_turn_id(tokenizer))
        write_gguf(base.folder, draft / file, gguf_type, about)

    return made_once(folder, write) / file
