"""Merged = adapter: the merged model has the adapter's logits, and its weights are stored as they were merged.

Shapes: T tokens of a row, V vocabulary, O and I output and input width of a layer.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ProofError
from tunesmith.machine import free_memory_bytes
from tunesmith.model.adapter import CONFIG, PEFT_PREFIX, load_adapter, set_adapter
from tunesmith.model.base import load_base
from tunesmith.model.lora import adapted_layers, attach
from tunesmith.recipe import LoraConfig
from tunesmith.runs import Proof
from tunesmith.tokens.rows import TokenRows
from tunesmith.weights.tensorfile import pieces, read_index, read_rows, to_f32

MERGED, STORED = "merged = adapter, logits in fp32", "stored = adapter, mean KL in nats"
LIMITS = {MERGED: 1e-3, STORED: 1e-2}
# largest |difference of logits| before rounding to the stored type; what rounding to bf16 alone costs stays below it
ROUNDING = {"F64": 1e-6, "F32": 1e-6, "F16": 2**-11, "BF16": 2**-8}
# largest relative error of a stored number: half a unit in its last place; in fp32 sums of another order differ more
ROWS, LONGEST = 8, 512  # held-out rows the logits are compared on, and how much of each


def prove_merged(base: Path, adapter: Path, merged: Path, held_out: TokenRows) -> list[Proof]:
    """Compare logits of adapter and merged model on held-out rows, before and after rounding to the stored type.

    Raises ProofError above the limits. Skipped, with the reason, where fp32 does not fit.
    """
    device, reason = _roomiest(base)
    if device is None:
        return [Proof(name, None, limit, 0, reason) for name, limit in LIMITS.items()]
    settings = json.loads((adapter / CONFIG).read_text())
    config = LoraConfig(rank=settings["r"], alpha=settings["lora_alpha"], targets=tuple(settings["target_modules"]))
    layers, _ = load_adapter(adapter)
    model = load_base(base, precision="fp32", device=device)
    attach(model, config, seed=0)
    set_adapter(
        model,
        {f"{PEFT_PREFIX}{n}.lora_{k}.weight": t for n, ab in layers.items() for k, t in zip("AB", ab, strict=True)},
    )
    wanted_TV = _logits(model, held_out, device)
    for _, layer in adapted_layers(model):
        layer.merge_in_place()
    difference_T = (_logits(model, held_out, device) - wanted_TV).abs().amax(dim=1)
    if not float(difference_T.max()) <= LIMITS[MERGED]:
        worst = int(difference_T.argmax())
        raise _unequal("merging changes the logits", float(difference_T.max()), LIMITS[MERGED], worst)
    _check_stored(model, merged)
    del model
    stored = load_base(merged, precision="fp32", device=device)
    stored_TV = _logits(stored, held_out, device)
    log_wanted_TV, log_stored_TV = wanted_TV.log_softmax(dim=1), stored_TV.log_softmax(dim=1)
    kl = float(F.kl_div(log_stored_TV, log_wanted_TV, reduction="batchmean", log_target=True))
    if not kl <= LIMITS[STORED]:
        worst = int((stored_TV - wanted_TV).abs().amax(dim=1).argmax())
        raise _unequal("the stored merged model is not the adapter's (KL)", kl, LIMITS[STORED], worst)
    values = {MERGED: float(difference_T.max()), STORED: kl}
    return [Proof(name, value, LIMITS[name], len(wanted_TV)) for name, value in values.items()]


def _check_stored(model: PreTrainedModel, merged: Path) -> None:
    """Raise ProofError if a stored weight is not the merged one but for the rounding of its type."""
    infos = read_index(merged)
    for name, layer in adapted_layers(model):
        info, weight_OI = infos[f"{name}.weight"], layer.base.weight.cpu()
        for start, stop in pieces(info):
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


def _roomiest(base: Path) -> tuple[torch.device | None, str]:
    """Where the base fits in fp32 with room to spare: the GPU, the CPU, or nowhere and why."""
    needed = 4 * sum(torch.Size(info.shape).numel() for info in read_index(base).values()) + (2 << 30)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what training no longer uses
        if torch.cuda.mem_get_info()[0] > needed:
            return torch.device("cuda:0"), ""
    free = free_memory_bytes()
    if free > needed:
        return torch.device("cpu"), ""
    return None, f"it needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
