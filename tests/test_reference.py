"""Our loop against transformers + peft, written out by hand: the first losses on the real built-in model."""

import json
import math
from pathlib import Path

import pytest
import torch
from training_runs import prepare_rows, recipe_with

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.model.adapter import adapter_tensors
from tunesmith.model.base import load_base
from tunesmith.model.lora import attach
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.rows import RowWriter, load_rows
from tunesmith.tokens.template import encode
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.training.stop import Paused
from tunesmith.training.train import _plan, train
from tunesmith.weights.locate import LocatedBase

STEPS = 8
DATA = Path(__file__).parents[1] / "recipes" / "demo-data" / "tunesmith.jsonl"


def short_rows(run, base):
    """The 40 shortest demo conversations."""
    lines = sorted(DATA.read_text().splitlines(), key=len)[:40]
    roles = {"human": "user", "gpt": "assistant"}
    tokenizer = load_tokenizer(base.folder)

    def work(draft):
        with RowWriter(draft) as writer:
            for line in lines:
                turns = tuple(Turn(roles[t["from"]], t["value"]) for t in json.loads(line)["conversations"])
                encoded = encode(tokenizer, Conversation(turns, "demo"), system="Help.", date="2026-01-01")
                writer.add(encoded.ids, encoded.supervised, encoded.answer_bytes)
        return {"train_rows": 38, "held_out_rows": 2}

    commit_stage(run.data, {}, {}, work)


def reference_losses(recipe, rows, base, steps=None):
    """One row at a time, unpadded, cross-entropy over the whole logits, torch's AdamW and clipping, peft's LoRA."""
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
    plan, losses = _plan(rows, recipe.train, recipe.seed), []
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
        torch.nn.utils.clip_grad_norm_(named.values(), train.clip)
        done = (step - warmup) / (len(plan) - warmup)
        rate = (step + 1) / (warmup + 1) if step < warmup else 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = train.lr * rate
        optimizer.step()
        losses.append(total)
    return losses


def losses_of(run):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_the_losses_of_a_tiny_base_are_those_of_transformers_and_peft(tmp_path, tiny_base):
    """Every step of an epoch, uneven in rows and tokens, with gradients that are clipped and a rate that changes."""
    base, run = LocatedBase("tiny", tiny_base, "digest", None, None), prepare_rows(tmp_path / "run", tiny_base)
    recipe = recipe_with(lr=0.05, warmup=0.4, clip=0.05, weight_decay=0.5)
    train(recipe, run, base)
    rows, held_out = load_rows(run.data)
    theirs = reference_losses(recipe, rows, base)
    assert len(theirs) == len(_plan(rows, recipe.train, recipe.seed)) >= 4 and max(theirs) - min(theirs) > 0.05
    assert losses_of(run) == pytest.approx(theirs, abs=1e-4)
    untouched = reference_held_out_loss(held_out, base)
    assert json.loads(run.metrics.read_text().splitlines()[0])["held_out_loss"] == pytest.approx(untouched, abs=1e-4)


def reference_held_out_loss(rows, base):
    """The untouched base's loss over all supervised tokens, from whole logits."""
    from transformers import AutoModelForCausalLM

    model, total, count = AutoModelForCausalLM.from_pretrained(base.folder), 0.0, 0
    for row in range(len(rows)):
        span = slice(int(rows.offsets_N1[row]), int(rows.offsets_N1[row + 1]))
        ids, mask = torch.tensor(rows.tokens_T[span].tolist()), torch.tensor(rows.supervised_T[span].tolist())
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits[mask[1:]], ids[1:][mask[1:]], reduction="sum"))
        count += int(mask[1:].sum())
    return total / count


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_first_losses_are_those_of_transformers_and_peft(tmp_path, builtin_base):
    run = Run(tmp_path / "run")
    short_rows(run, builtin_base)
    recipe = recipe_with(
        tokens_per_step=140, max_length=100, micro_batch_tokens=140, lr=5e-4, epochs=2, warmup=0.1,
        stop_after=f"{STEPS} steps", evaluate_every="100 steps", every="1000 steps",
    )  # fmt: skip
    with pytest.raises(Paused):
        train(recipe, run, builtin_base)
    ours = losses_of(run)
    theirs = reference_losses(recipe, load_rows(run.data)[0], builtin_base, STEPS)
    assert len(ours) == len(theirs) == STEPS and sum(ours[-4:]) < sum(ours[:4])
    assert ours == pytest.approx(theirs, abs=1e-4)
