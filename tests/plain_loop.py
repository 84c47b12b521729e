"""Training written out by hand with transformers and peft: what our loop is compared with."""

import json
import math

import torch

from tunesmith.model.adapter import adapter_tensors
from tunesmith.model.base import load_base
from tunesmith.model.lora import attach
from tunesmith.training.train import _plan


def reference_losses(recipe, rows, base, steps=None):
    """The losses of the steps."""
    return [loss for loss, _ in reference_steps(recipe, rows, base, steps)]


def reference_steps(recipe, rows, base, steps=None):
    """Loss and gradient norm of each step: one row at a time, unpadded, cross-entropy over the whole logits, torch's
    AdamW and clipping, peft's LoRA.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    ours = load_base(base.folder, precision="fp32", device=torch.device("cpu"))
    attach(ours, recipe.lora, seed=recipe.seed)
    start = {name: tensor.clone() for name, tensor in adapter_tensors(ours).items()}
    settings = LoraConfig(r=recipe.lora.rank, lora_alpha=recipe.lora.alpha, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), settings)
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    assert named.keys() == start.keys()
    for name, parameter in named.items():
        parameter.data.copy_(start[name])
    train = recipe.train
    optimizer = torch.optim.AdamW(named.values(), lr=train.lr, weight_decay=train.weight_decay)
    plan, found = _plan(rows, recipe.train, recipe.seed), []
    warmup = round(train.warmup * len(plan))
    for step, chosen in enumerate(plan[:steps]):
        spans = [slice(int(rows.offsets_N1[r]), int(rows.offsets_N1[r + 1])) for r in chosen]
        pairs = [(torch.tensor(rows.tokens_T[s].tolist()), torch.tensor(rows.supervised_T[s].tolist())) for s in spans]
        supervised = sum(int(mask[1:].sum()) for _, mask in pairs)
        optimizer.zero_grad()
        total = 0.0
        for ids, mask in pairs:
            logits = model(input_ids=ids[None]).logits[0, :-1]
            targets = torch.where(mask[1:], ids[1:], -100)
            loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / supervised
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(named.values(), train.clip)
        done = (step - warmup) / (len(plan) - warmup)
        rate = (step + 1) / (warmup + 1) if step < warmup else 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = train.lr * rate
        optimizer.step()
        found.append((total, norm.item()))
    return found


def steps_of(run):
    """Loss and gradient norm of each step of a run."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def losses_of(run):
    """The losses of a run's steps."""
    return [loss for loss, _ in steps_of(run)]
