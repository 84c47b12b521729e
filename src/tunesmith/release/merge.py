"""VERB merge: base and adapter into one Hugging Face folder, a few rows of one tensor at a time; gate: logits equal.

Shapes: T tokens of a row, V vocabulary, O and I output and input width of a layer, R rank.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.console import say, warn
from tunesmith.errors import ProofError, ResumeError
from tunesmith.model.adapter import CONFIG, PREFIX, load_adapter, set_adapter
from tunesmith.model.base import load_base
from tunesmith.model.lora import adapted_layers, attach, merged_weight
from tunesmith.recipe import LoraConfig, Recipe
from tunesmith.runs import Record, Run, commit_stage, free_memory_bytes, need_disk
from tunesmith.stages import model_needs
from tunesmith.tokens.rows import TokenRows, load_rows
from tunesmith.tokens.template import chat_template_with
from tunesmith.weights.locate import LocatedBase
from tunesmith.weights.tensorfile import (
    TensorInfo,
    TensorWriter,
    from_f32,
    read_header,
    read_index,
    read_rows,
    to_f32,
    weight_files,
)  # fmt: skip

PIECE_BYTES = 64 << 20  # fp32 bytes of the rows that are in memory at a time
LIMIT_LOGITS = 1e-3  # largest |difference of logits|, merged against adapter, both fp32 before rounding
LIMIT_ROUNDED_KL = 1e-2  # nats; rounding to bf16 alone stays below it
ROUNDING = {"F64": 1e-6, "F32": 1e-6, "F16": 2**-11, "BF16": 2**-8}
# largest relative error of a stored number: half a unit in its last place; in fp32 sums of another order differ more
ROWS, LONGEST = 8, 512  # held-out rows the logits are compared on, and how much of each
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class MergeProof:
    """How equal merged model and adapter are on held-out rows."""

    positions: int
    max_logit_difference: float
    """In fp32, before the merged weights are rounded to the stored type."""
    stored_max_logit_difference: float
    """The same after rounding: what the stored type costs."""
    stored_kl: float
    """Mean KL(adapter || stored), nats per position."""
    stored_top1: float
    """Share of positions with the same most likely token."""
    device: str


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
        proof = prove_merge(base.folder, run.adapter, draft, load_rows(run.data)[1], recipe.trust_remote_code)
        if proof:
            say(
                f"merge: logits equal the adapter's (largest difference {proof.max_logit_difference:.1e}; "
                f"{proof.stored_max_logit_difference:.1e} as stored)"
            )
        return {"proof": asdict(proof) if proof else None}

    return commit_stage(run.model, settings, inputs, work)


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
                for start, stop in _pieces(info):
                    rows = read_rows(info, start, stop)
                    if update:
                        a_RI, b_OR = update
                        weight = torch.from_numpy(to_f32(rows, info.dtype))
                        rows = from_f32(merged_weight(weight, a_RI, b_OR[start:stop], scale).numpy(), info.dtype)
                    writer.write(name, rows)


def _pieces(info: TensorInfo) -> Iterator[tuple[int, int]]:
    rows = info.shape[0] if info.shape else 1
    step = max(1, PIECE_BYTES * rows // max(1, 4 * torch.Size(info.shape).numel()))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _copy_rest(base: Path, out: Path, recipe: Recipe) -> None:
    """Config, tokenizer and the like, and the chat template with the recipe's system prompt and date in it."""
    for path in base.iterdir():
        wanted = path.suffix in (".json", ".jinja", ".model", ".txt", ".md", ".py") or path.name.startswith("LICENSE")
        if path.is_file() and wanted and path.name not in ("record.json", "README.md"):
            shutil.copyfile(path, out / path.name)
    tokenizer = json.loads((out / "tokenizer_config.json").read_text())
    own = out / TEMPLATE
    template = own.read_text() if own.exists() else tokenizer.pop("chat_template")
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n")
    own.write_text(chat_template_with(template, recipe.chat.system, recipe.data.date))


def prove_merge(
    base: Path, adapter: Path, merged: Path, held_out: TokenRows, trust_remote_code: bool
) -> MergeProof | None:
    """Compare logits of adapter and merged model on held-out rows. None, with a warning, where fp32 does not fit.

    Raises ProofError above the limits.
    """
    device = _roomiest(base)
    if device is None:
        return None
    settings = json.loads((adapter / CONFIG).read_text())
    config = LoraConfig(rank=settings["r"], alpha=settings["lora_alpha"], targets=tuple(settings["target_modules"]))
    layers, _ = load_adapter(adapter)
    model = load_base(base, precision="fp32", device=device, trust_remote_code=trust_remote_code)
    attach(model, config, seed=0)
    set_adapter(
        model, {f"{PREFIX}{n}.lora_{k}.weight": t for n, ab in layers.items() for k, t in zip("AB", ab, strict=True)}
    )
    wanted_TV = _logits(model, held_out, device)
    for _, layer in adapted_layers(model):
        layer.merge_in_place()
    difference_T = (_logits(model, held_out, device) - wanted_TV).abs().amax(dim=1)
    if not float(difference_T.max()) <= LIMIT_LOGITS:
        worst = int(difference_T.argmax())
        raise _unequal("merging changes the logits", float(difference_T.max()), LIMIT_LOGITS, worst)
    _check_stored(model, merged)
    del model
    stored = load_base(merged, precision="fp32", device=device, trust_remote_code=trust_remote_code)
    stored_TV = _logits(stored, held_out, device)
    log_wanted_TV, log_stored_TV = wanted_TV.log_softmax(dim=1), stored_TV.log_softmax(dim=1)
    proof = MergeProof(
        positions=len(wanted_TV),
        max_logit_difference=float(difference_T.max()),
        stored_max_logit_difference=float((stored_TV - wanted_TV).abs().max()),
        stored_kl=float(F.kl_div(log_stored_TV, log_wanted_TV, reduction="batchmean", log_target=True)),
        stored_top1=float((stored_TV.argmax(dim=1) == wanted_TV.argmax(dim=1)).float().mean()),
        device=device.type,
    )
    if not proof.stored_kl <= LIMIT_ROUNDED_KL:
        worst = int((stored_TV - wanted_TV).abs().amax(dim=1).argmax())
        raise _unequal("the stored merged model is not the adapter's (KL)", proof.stored_kl, LIMIT_ROUNDED_KL, worst)
    return proof


def _check_stored(model: PreTrainedModel, merged: Path) -> None:
    """Raise ProofError if a stored weight is not the merged one but for the rounding of its type."""
    infos = read_index(merged)
    for name, layer in adapted_layers(model):
        info, weight_OI = infos[f"{name}.weight"], layer.base.weight.cpu()
        for start, stop in _pieces(info):
            stored_OI = torch.from_numpy(to_f32(read_rows(info, start, stop), info.dtype))
            error_OI = (stored_OI - weight_OI[start:stop]).abs()
            if not (error_OI <= ROUNDING[info.dtype] * weight_OI[start:stop].abs() + 1e-6).all():
                raise _unequal(f"{name}.weight is not stored as it was merged", float(error_OI.max()), 1e-6, start)


def _unequal(what: str, value: float, limit: float, position: int) -> ProofError:
    return ProofError(
        f"{what}: {value:.2g}, limit {limit:g}, worst at position {position}",
        fix="run `tunesmith train` again if files of the run were changed by hand; otherwise report this base",
    )


@torch.no_grad()
def _logits(model: PreTrainedModel, rows: TokenRows, device: torch.device) -> Tensor:
    """Logits [T, V] of the first held-out rows, one after another."""
    logits = []
    for row in range(min(ROWS, len(rows))):
        start, stop = int(rows.offsets_N1[row]), int(rows.offsets_N1[row + 1])
        ids_T = torch.from_numpy(rows.tokens_T[start : min(stop, start + LONGEST)].astype("int64")).to(device)
        logits.append(model(input_ids=ids_T[None], use_cache=False).logits[0].float().cpu())
    return torch.cat(logits)


def _roomiest(base: Path) -> torch.device | None:
    """Where the base fits in fp32 with room to spare: the GPU, the CPU, or nowhere."""
    needed = 4 * sum(torch.Size(info.shape).numel() for info in read_index(base).values()) + (2 << 30)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what training no longer uses
        if torch.cuda.mem_get_info()[0] > needed:
            return torch.device("cuda:0")
    free = free_memory_bytes()
    if free > needed:
        return torch.device("cpu")
    warn(
        f"the logits of merged model and adapter are not compared: that needs {needed / 1e9:.1f} GB of memory, "
        f"{free / 1e9:.1f} GB are free; for the proof delete model/ and run `tunesmith merge` on a larger machine"
    )
    return None
