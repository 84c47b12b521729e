"""Our loop against transformers + peft, written out by hand: the first losses on the real built-in model."""

import json
from pathlib import Path

import pytest
import torch
from plain_loop import losses_of, reference_losses
from training_runs import prepare_rows, recipe_with

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.mask import encode
from tunesmith.tokens.rows import RowWriter, load_rows
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
