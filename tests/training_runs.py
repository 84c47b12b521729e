"""Prepared data and recipes for tests of training, on the tiny base."""

import json
import random

import torch
from safetensors.torch import load_file
from tiny import CORPUS

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.files import RECORD, digest_folder
from tunesmith.recipe import Recipe
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.mask import encode
from tunesmith.tokens.rows import RowWriter
from tunesmith.tokens.tokenizer import load_tokenizer

RECIPE = {"dropout": 0.1, "epochs": 2, "evaluate_every": "3 steps"}
"""Of a run that is cut and resumed: what is not restored would change its bits."""


def recipe_with(**train):
    """A recipe of a few small steps; `dropout`, `every` and `seed` beside the fields of train."""
    dropout, every, seed = train.pop("dropout", 0.0), train.pop("every", "1 steps"), train.pop("seed", 0)
    settings = {"tokens_per_step": 400, "max_length": 200, "micro_batch_tokens": 200, "lr": 1e-2, "precision": "fp32"}
    return Recipe(
        name="tiny",
        base="tiny",
        data={"sources": [{"path": "rows.jsonl"}]},
        lora={"rank": 4, "dropout": dropout},
        train=settings | {"evaluate_every": "4 steps", "early_stopping": None} | train,
        checkpoint={"every": every, "overhead": None},
        seed=seed,
    )


def conversations(count, seed=0):
    """Short conversations of words from the corpus, of uneven lengths, some with several turns."""
    rng = random.Random(seed)
    words = CORPUS.read_text().split()

    def text():
        return " ".join(rng.choices(words, k=rng.randint(2, 12)))

    return [
        Conversation(
            tuple(Turn(role, text()) for _ in range(rng.randint(1, 3)) for role in ("user", "assistant")), f"row {i}"
        )
        for i in range(count)
    ]


def prepare_rows(path, base_folder, *, rows=24, held_out=6):
    """A run folder whose data stage holds encoded conversations."""
    run = Run(path)
    tokenizer = load_tokenizer(base_folder)

    def work(draft):
        with RowWriter(draft) as writer:
            for conversation in conversations(rows + held_out):
                encoded = encode(tokenizer, conversation, system=None, date="2026-01-01")
                writer.add(encoded.ids, encoded.supervised, encoded.answer_bytes)
        return {"train_rows": rows, "held_out_rows": held_out}

    commit_stage(run.data, {"rows": rows}, {}, work)
    return run


def same_adapters(run, whole):
    """Assert that two runs ended with the same adapter, bit for bit."""
    ours, theirs = (load_file(each.adapter / "adapter_model.safetensors") for each in (run, whole))
    assert ours.keys() == theirs.keys() and len(ours) > 0
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def same(run, whole):
    """The same, and of what the metrics say at each step and evaluation."""
    same_adapters(run, whole)
    assert losses(run) == losses(whole)


def losses(run):
    """(step, loss, held-out loss, gradient norm) of each line of a run's metrics."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("held_out_loss"), line.get("grad_norm")) for line in lines]


def said_as_written(folder):
    """Let the record of a stage say that its files, which a test has changed, are as the stage wrote them."""
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | {"outputs": digest_folder(folder)}))
