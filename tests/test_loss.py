"""The chunked head loss, the schedule and the held-out bookkeeping."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tunesmith.model import loss as loss_module
from tunesmith.model.base import Head
from tunesmith.model.loss import loss_sum
from tunesmith.recipe import EarlyStopping, TrainConfig
from tunesmith.tokens.rows import TokenRows
from tunesmith.training.schedule import lr_at
from tunesmith.training.score import HeldOut, bits_per_byte
from tunesmith.training.state import Progress


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.125, None), (1.0, 1.5), (2.0, 0.5)])
def test_loss_and_gradient_match_torch_over_several_chunks(monkeypatch, bias, scale, cap):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * 31 * 3)  # three positions in a chunk
    torch.manual_seed(0)
    hidden_SD = torch.randn(10, 6, requires_grad=True)
    weight_VD, bias_V = torch.randn(31, 6), torch.randn(31) if bias else None
    targets_S = torch.randint(0, 31, (10,))
    ours = loss_sum(hidden_SD, Head(weight_VD, bias_V, scale, cap), targets_S) / 7
    (grad_ours,) = torch.autograd.grad(ours, hidden_SD)
    logits_SV = F.linear(hidden_SD, weight_VD, bias_V) * scale
    logits_SV = logits_SV if cap is None else cap * torch.tanh(logits_SV / cap)
    theirs = F.cross_entropy(logits_SV, targets_S, reduction="sum") / 7
    (grad_theirs,) = torch.autograd.grad(theirs, hidden_SD)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grad_ours, grad_theirs)


def test_no_supervised_position_is_no_loss():
    hidden_SD = torch.empty(0, 6, requires_grad=True)
    assert loss_sum(hidden_SD, Head(torch.randn(31, 6)), torch.empty(0, dtype=torch.long)).item() == 0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_rises_then_follows_the_schedule(schedule):
    config = TrainConfig(lr=1.0, warmup=0.1, schedule=schedule)
    rates = [lr_at(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0 and max(rates) == 1.0 and min(rates) > 0
    assert rates[55] == pytest.approx({"cosine": 0.5, "linear": 0.5, "constant": 1.0}[schedule])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_early_stopping_counts_evaluations_without_gain():
    rule, at, best = EarlyStopping(patience=2, min_gain=0.1), Progress(), []
    for step, loss in enumerate([3.0, 2.0, 1.95, 1.93, 1.99]):
        at.step = step
        best.append(at.note_held_out(HeldOut(loss, 10 * loss), rule))
        if at.stopped_early(rule):
            break
    assert best == [False, True, True, True] and at.step == 3  # falls of less than 0.1 below 2.0 are no gain
    assert (at.best_step, at.best, at.base) == (3, HeldOut(1.93, 19.3), HeldOut(3.0, 30.0))


def test_progress_of_another_version_is_read():
    at = Progress(step=5, base_loss=3.0, base_text_nats=50.0, notes=["a"])
    assert Progress.read(asdict(at)) == at and at.bits_per_byte_definition == 2
    older = {"step": 5, "base_loss": 3.0, "best_loss": 2.0, "notes": ["a"]}  # as version 0.1 wrote it, in short
    found = Progress.read(older | {"of_a_later_version": 1})
    assert found == Progress(
        step=5, base_loss=3.0, start_loss=3.0, best_loss=2.0, notes=["a"], bits_per_byte_definition=1
    )


def test_bits_per_byte_by_hand():
    rows = TokenRows(np.zeros(9), np.array([0, 0, 1, 1, 1, 0, 0, 1, 1], bool), np.array([0, 5, 9]), np.array([7, 4]))
    found = HeldOut(loss=2.0, text_nats=8.0)  # five supervised tokens have 10 nats, of which two ends have 2
    assert bits_per_byte(found, rows) == pytest.approx(8 / math.log(2) / 11)
    assert bits_per_byte(found, rows, definition=1) == pytest.approx(10 / math.log(2) / 11)
