"""VERB merge: base and adapter into one Hugging Face folder, a few rows of one tensor at a time.

The gate is proof/merged.py.

Shapes: O and I output and input width of a layer, R rank.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tunesmith.console import say
from tunesmith.decides import model_needs
from tunesmith.errors import ResumeError
from tunesmith.files import SAID_OF_FILES
from tunesmith.machine import need_disk
from tunesmith.model.adapter import load_adapter
from tunesmith.model.lora import merged_weight
from tunesmith.proof.merged import prove_merged
from tunesmith.recipe import Recipe
from tunesmith.record import Proof, Record, refuse_damaged
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.rows import load_rows
from tunesmith.tokens.template import chat_template_with, end_of_turn_id
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.locate import LocatedBase
from tunesmith.weights.small_files import (
    CONFIG,
    GENERATION_CONFIG,
    TEMPLATE,
    TOKENIZER_CONFIG,
    chat_template,
    read_json,
)
from tunesmith.weights.tensorfile import (
    TensorWriter,
    from_f32,
    pieces,
    read_header,
    read_index,
    read_rows,
    to_f32,
    weight_files,
)

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # taken from config.json by transformers


def merge(recipe: Recipe, run: Run, base: LocatedBase) -> tuple[Record, bool]:
    """Commit run.model: the merged weights, in the base's own types, with tokenizer and chat template.

    Raises ProofError if its logits are not the adapter's.
    """
    settings, inputs = model_needs(recipe, run, base.digest)

    def work(draft: Path) -> dict[str, Any]:
        need_disk(run.path, sum(f.stat().st_size for f in weight_files(base.folder)), "the merged model")
        say("merge: adding the adapter to the base, tensor by tensor")
        merge_weights(base.folder, run.adapter, draft)
        _copy_rest(base.folder, draft, recipe)
        return {}

    def prove(folder: Path) -> list[Proof]:
        refuse_damaged(run.data)  # no input of merge: only its proof reads the rows
        proofs = prove_merged(base.folder, run.adapter, folder, load_rows(run.data)[1])
        for proof in proofs:
            say(f"merge: {proof}")
        return proofs

    return commit_stage(run.model, settings, inputs, work, prove)


def merge_weights(base: Path, adapter: Path, out: Path) -> None:
    """Write base + adapter to `out`, file by file as the base is, each tensor in its own type, summed in fp32."""
    layers, scale = load_adapter(adapter)
    if unknown := sorted(name for name in layers if f"{name}.weight" not in read_index(base)):
        raise ResumeError(
            f"the base has no weight for {unknown[0]}", fix="merge into the base the adapter was trained on"
        )
    for source in weight_files(base):
        infos = read_header(source)
        entries = {name: (info.dtype, info.shape) for name, info in infos.items()}
        with TensorWriter(out / source.name, entries, {"format": "pt"}) as writer:
            for name, info in infos.items():
                update = layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
                for start, stop in pieces(info):
                    rows = read_rows(info, start, stop)
                    if update:
                        a_RI, b_OR = update
                        weight = torch.from_numpy(to_f32(rows, info.dtype))
                        rows = from_f32(merged_weight(weight, a_RI, b_OR[start:stop], scale).numpy(), info.dtype)
                    writer.write(name, rows)


def _copy_rest(base: Path, out: Path, recipe: Recipe) -> None:
    """Config, tokenizer and the like, and the chat template with the recipe's system prompt and date in it."""
    for path in base.iterdir():
        wanted = path.suffix in (".json", ".jinja", ".model", ".txt", ".md", ".py") or path.name.startswith("LICENSE")
        if path.is_file() and wanted and path.name not in (*SAID_OF_FILES, "README.md"):
            shutil.copyfile(path, out / path.name)
    tokenizer = json.loads((out / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    template = chat_template(base)
    assert template, "a base without a chat template came as far as merge"
    tokenizer.pop("chat_template", None)  # the one in its own file is the only one
    (out / TOKENIZER_CONFIG).write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    prompt = chat_template_with(template, recipe.chat.system, recipe.data.date)
    (out / TEMPLATE).write_text(prompt, encoding="utf-8")
    merged = load_tokenizer(out)
    _stop_at(end_of_turn_id(merged), out, merged.eos_token_id)


def _stop_at(end_of_turn: int, out: Path, tokenizer_eos: int) -> None:
    """Let transformers end an answer where the template does, then where the base and its tokenizer do.

    config.json says the same as generation_config.json: engines that know no other file read it there.
    """
    config, generation = read_json(out / CONFIG), read_json(out / GENERATION_CONFIG)
    generation = generation or {name: config[name] for name in SPECIAL_TOKENS if name in config}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    stated = [id_ for id_ in (eos if isinstance(eos, list) else [eos]) if isinstance(id_, int) and id_ >= 0]
    stops = list(dict.fromkeys([end_of_turn, *stated, tokenizer_eos]))
    said = {"eos_token_id": stops if len(stops) > 1 else stops[0]}
    for path, content in ((out / CONFIG, config), (out / GENERATION_CONFIG, generation)):
        path.write_text(json.dumps(content | said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
