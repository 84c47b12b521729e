"""Training on the tiny base: packing, accumulation, the loss of a step, early stop, refusals."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import prepare_rows, recipe_with

from tunesmith.decides import kept_recipe
from tunesmith.errors import BaseError, ProofError, ResumeError
from tunesmith.model import attention, lora
from tunesmith.model.adapter import adapter_tensors
from tunesmith.model.attention import Packing
from tunesmith.model.base import hidden_states, load_base, recompute_layers, refuse_odd_numbers
from tunesmith.model.batch import Batching, supervised_in
from tunesmith.model.lora import adapted_layers, attach
from tunesmith.proof import compiling, packing
from tunesmith.proof.compiling import prove_compiling
from tunesmith.proof.packing import prove_packing, rows_of_one_bin
from tunesmith.runs import Run
from tunesmith.tokens.rows import TokenRows, load_rows
from tunesmith.training import loop, saver, snapshot
from tunesmith.training import metrics as written
from tunesmith.training import train as verb
from tunesmith.training.state import Progress
from tunesmith.training.stop import Paused
from tunesmith.training.train import train
from tunesmith.weights.locate import LocatedBase

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tiny_base):
    return LocatedBase("tiny", tiny_base, "digest", None, None)


@pytest.fixture
def run(tmp_path, base):
    return prepare_rows(tmp_path / "run", base.folder)


def adapter(run):
    return load_file(run.adapter / "adapter_model.safetensors")


def metrics(run, key):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def twin(run, name):
    """Another run folder with the same data."""
    other = Run(run.path.with_name(name))
    other.path.mkdir()
    other.data.symlink_to(run.data)
    return other


def close(run, other, **limits):
    ours, theirs = adapter(run), adapter(other)
    assert ours.keys() == theirs.keys() and len(ours) > 0
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **limits)


def test_packed_conversations_have_the_logits_they_have_alone(run, base):
    model = load_base(base.folder, precision="fp32", device=CPU)
    rows, _ = load_rows(run.data)
    batching = Batching(600, 200, CPU, kernel=False, static=False)
    batch = batching.micro_batch(rows, [3, 0, 7])
    packed_TD = hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
    for row in (3, 0, 7):
        alone = batching.micro_batch(rows, [row])
        alone_TD = hidden_states(model, alone.ids_T, alone.positions_T, alone.packing)
        torch.testing.assert_close(packed_TD[torch.from_numpy(batch.row_of_T == row)], alone_TD, rtol=1e-5, atol=1e-5)
    proof = prove_packing(model, (rows, batching))
    assert proof.value < 1e-5 and proof.name.startswith("packed = alone")
    assert model.config._attn_implementation == attention.PACKED


def rows_of(*lengths, seed=0):
    """Rows of random tokens, all supervised."""
    ids = np.random.default_rng(seed).integers(3, 500, sum(lengths)).astype(np.int32)
    offsets = np.cumsum([0, *lengths])
    return TokenRows(ids, np.ones(len(ids), bool), offsets, np.diff(offsets))


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [
        ([20] * 6 + [130] * 8, [20, 130, 20, 20]),
        ([130] * 8 + [20] * 6, [20, 130, 20, 20]),
        ([150, 20, 20, 140, 20], [20, 140, 20, 20]),
        ([199, 60, 70, 80], [60, 70]),
        ([60, 70, 65, 199], [60, 65, 70]),
        ([90, 100, 110], [90, 100]),
        ([120, 130, 90, 150], [90]),
        ([50, 60], [50, 60]),
        ([50], [50]),
    ],
)
def test_the_packing_proof_takes_the_rows_that_share_a_bin(lengths, chosen):
    assert [lengths[row] for row in rows_of_one_bin(rows_of(*lengths), 200)] == chosen


@pytest.mark.parametrize("lengths", [[20] * 6 + [130] * 8, [60, 70, 190], [90, 100]])
def test_the_packing_proof_catches_attention_across_conversations(base, monkeypatch, lengths):
    model = load_base(base.folder, precision="fp32", device=CPU)
    packed = (rows_of(*lengths), Batching(200, 200, CPU, kernel=False, static=False))
    assert prove_packing(model, packed).value < 1e-5
    monkeypatch.setattr(Packing, "kwargs", lambda self: {"conversation_lengths": (sum(self.lengths),)})
    with pytest.raises(ProofError, match="packing changes the base's logits"):
        prove_packing(model, packed)


def test_rows_that_never_share_a_pass_are_called_no_packing(base, monkeypatch):
    """Neither value nor name may say that packing was looked at; held-out rows that do share one are."""
    model, batching = load_base(base.folder, precision="fp32", device=CPU), Batching(200, 200, CPU, False, False)
    proof = prove_packing(model, (rows_of(150, 120, 130), batching), (rows_of(160, 190), batching))
    assert proof.name == packing.ALONE and "packed" not in str(proof) and proof.positions == 120
    held_out = (rows_of(160, 30, 40), batching)
    assert prove_packing(model, (rows_of(150, 120, 130), batching), held_out).positions == 70
    monkeypatch.setattr(Packing, "kwargs", lambda self: {"conversation_lengths": (sum(self.lengths),)})
    with pytest.raises(ProofError, match="packing changes the base's logits"):
        prove_packing(model, (rows_of(150, 120, 130), batching), held_out)


def adapted(base, dropout=0.0):
    """A model with adapters whose B are not zero, its keys, rows and batching."""
    model = load_base(base.folder, precision="fp32", device=CPU)
    keys = attach(model, recipe_with(dropout=dropout).lora, seed=0)
    for _, layer in adapted_layers(model):
        torch.nn.init.normal_(layer.b_OR, std=0.3)
    return model, keys, rows_of(40, 60, 80), Batching(120, 100, CPU, kernel=False, static=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled_layers_have_the_same_gradients_and_b_its_bits(base, dropout):
    model, keys, rows, batching = adapted(base, dropout)
    before = {name: tensor.clone() for name, tensor in adapter_tensors(model).items()}
    proof = prove_compiling(model, keys, rows, batching, backend="aot_eager")
    assert proof.value < 1e-5 and proof.positions == 2 * 7 * 2 + 1  # A and B of 14, and the second layer's input
    assert keys.keys_T is None and all(layer.a_RI.grad is layer.b_OR.grad is None for _, layer in adapted_layers(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_tensors(model).items())


def freeze(part):
    return lambda model, backend: [
        getattr(layer, part).requires_grad_(False) for _, layer in adapted_layers(model.model.layers[:1])
    ]


def forget_dropout(model, backend):
    for _, layer in adapted_layers(model.model.layers[1]):
        layer.dropout = 0.0


def other_dropout(model, backend):
    """As if the layers had been compiled with one number for all."""
    for _, layer in adapted_layers(model):
        layer.layer.zero_()


def detach_input(model, backend):
    model.model.layers[1].self_attn.register_forward_hook(lambda _, __, out: (out[0].detach(), *out[1:]))


@pytest.mark.parametrize(
    "fault", [freeze("a_RI"), freeze("b_OR"), forget_dropout, other_dropout, detach_input],
    ids=["A", "B", "no dropout", "other dropout", "input"],
)  # fmt: skip
def test_the_compiling_proof_catches_a_lost_or_other_gradient(base, monkeypatch, fault):
    model, keys, rows, batching = adapted(base, dropout=0.1)
    monkeypatch.setattr(compiling, "compile_layers", fault)
    with pytest.raises(ProofError, match="compiling changes an adapter's gradient"):
        prove_compiling(model, keys, rows, batching)


def test_the_compiling_proof_catches_a_mask_left_out_of_the_gradient_of_a(base, monkeypatch):
    model, keys, rows, batching = adapted(base, dropout=0.1)

    def use_wrong(model, backend):
        def backward(ctx, grad_TO):
            x_TI, weight_OI, a_RI, b_OR, low_TR, mask_TI = ctx.saved_tensors
            low = (grad_TO @ b_OR) * ctx.scale
            return (
                grad_TO @ weight_OI + low @ a_RI * mask_TI,
                None,
                None,
                low.T @ x_TI,
                ctx.scale * grad_TO.T @ low_TR,
                None,
                None,
            )

        monkeypatch.setattr(lora._LoraProduct, "backward", staticmethod(backward))

    monkeypatch.setattr(compiling, "compile_layers", use_wrong)
    with pytest.raises(ProofError, match="compiling changes an adapter's gradient"):
        prove_compiling(model, keys, rows, batching)


def test_padding_and_empty_conversations_change_nothing(run):
    rows, _ = load_rows(run.data)
    padded = Batching(500, 200, CPU, kernel=True, static=True).micro_batch(rows, [1, 2])
    plain = Batching(500, 200, CPU, kernel=False, static=False).micro_batch(rows, [1, 2])
    assert len(padded.ids_T) == 500 and padded.tokens == plain.tokens == len(plain.ids_T)
    assert torch.equal(padded.at_S, plain.at_S) and torch.equal(padded.targets_S, plain.targets_S)
    ends = padded.packing.cu_seqlens_N1
    assert ends.dtype == torch.int32 and ends[-1] == 500 and len(ends) == 33 and padded.packing.longest == 500


def test_supervised_positions_are_the_tokens_before_supervised_tokens(run):
    rows, _ = load_rows(run.data)
    batch = Batching(500, 200, CPU, kernel=False, static=False).micro_batch(rows, [5, 6])
    assert len(batch.at_S) == supervised_in(rows, [5, 6]) > 0
    flat = np.concatenate([rows.tokens_T[rows.offsets_N1[r] : rows.offsets_N1[r + 1]] for r in batch_order(batch)])
    mask = np.concatenate([rows.supervised_T[rows.offsets_N1[r] : rows.offsets_N1[r + 1]] for r in batch_order(batch)])
    assert (
        batch.targets_S.tolist() == flat[mask].tolist() and (batch.at_S + 1).tolist() == np.flatnonzero(mask).tolist()
    )


def test_a_first_token_is_predicted_by_nothing():
    ids, supervised = np.arange(10, 20, dtype=np.int32), np.ones(10, bool)
    rows = TokenRows(ids, supervised, np.array([0, 3, 4, 10]), np.zeros(3, np.int64))
    batch = Batching(20, 20, CPU, kernel=False, static=False).micro_batch(rows, [2, 0, 1])
    assert batch.ids_T.tolist() == [14, 15, 16, 17, 18, 19, 10, 11, 12, 13]
    assert batch.targets_S.tolist() == [15, 16, 17, 18, 19, 11, 12]  # neither 14 nor 10, nor 13 of the row of one token
    assert batch.at_S.tolist() == [0, 1, 2, 3, 4, 6, 7] and supervised_in(rows, [0, 1, 2]) == 7


def batch_order(batch):
    return list(dict.fromkeys(batch.row_of_T.tolist()))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_one_micro_batch_or_many_give_one_result(run, base, dropout):
    other = twin(run, "other")
    train(recipe_with(micro_batch_tokens=400, dropout=dropout, lr=1e-3), run, base)
    train(recipe_with(micro_batch_tokens=200, dropout=dropout, lr=1e-3), other, base)
    ours, theirs = metrics(run, "loss"), metrics(other, "loss")
    assert ours.keys() == theirs.keys() and len(ours) >= 4
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-5)
    close(run, other, rtol=1e-3, atol=2e-5)


def test_recomputed_activations_change_nothing(run, base):
    other = twin(run, "other")
    train(recipe_with(dropout=0.1), run, base)
    train(recipe_with(dropout=0.1, recompute="on"), other, base)
    for name, tensor in adapter(run).items():
        assert torch.equal(tensor, adapter(other)[name])


def test_recomputed_activations_are_not_kept(run, base):
    batch = Batching(600, 200, CPU, kernel=False, static=False).micro_batch(load_rows(run.data)[0], [0, 1])
    kept = []
    for recompute in (False, True):
        model = load_base(base.folder, precision="fp32", device=CPU)
        attach(model, recipe_with().lora, seed=0)
        if recompute:
            recompute_layers(model)
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        saved = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.setdefault(t.data_ptr(), t), lambda t: t):
            hidden_states(model, batch.ids_T, batch.positions_T, batch.packing)
        kept.append(sum(tensor.nbytes for place, tensor in saved.items() if place not in weights))
    assert 0 < 4 * kept[1] < kept[0]


def test_dropout_differs_by_seed_step_row_and_position(run):
    batch = Batching(600, 200, CPU, kernel=False, static=False).micro_batch(load_rows(run.data)[0], [0, 1])
    found = [batch.dropout_keys(seed, step).tolist() for seed in (0, 1) for step in (0, 1)]
    assert len({key for keys in found for key in keys}) == 4 * len(batch.ids_T)


def test_dropout_is_used_and_only_in_training(run, base):
    other = twin(run, "other")
    train(recipe_with(dropout=0.5), run, base)
    train(recipe_with(), other, base)
    assert metrics(run, "held_out_loss")[0] == metrics(other, "held_out_loss")[0]
    assert metrics(run, "loss") != metrics(other, "loss")


def test_the_record_says_what_happened_and_the_loss_fell(run, base):
    record, done = train(recipe_with(epochs=4), run, base)
    assert done and record.counts["held_out_loss"] < record.counts["base_held_out_loss"]
    assert record.counts["best_step"] in metrics(run, "held_out_loss")
    assert run.loss_plot.read_bytes().startswith(b"\x89PNG") and record.counts["device"].startswith("CPU")
    again, done = train(recipe_with(epochs=4), run, base)
    assert not done and again == record


def test_bits_per_byte_count_the_text_alone(run, base):
    """Against transformers, written out: no end-of-turn token above the line, as there is none below it."""
    from transformers import AutoModelForCausalLM

    record, _ = train(recipe_with(epochs=1), run, base)
    _, held_out = load_rows(run.data)
    model, end = AutoModelForCausalLM.from_pretrained(base.folder), 2
    everything, text, ends = [], [], 0
    for row in range(len(held_out)):
        part = slice(int(held_out.offsets_N1[row]), int(held_out.offsets_N1[row + 1]))
        ids, supervised = (torch.from_numpy(np.array(a[part])) for a in (held_out.tokens_T, held_out.supervised_T))
        with torch.no_grad():
            nats = torch.nn.functional.cross_entropy(
                model(ids[None].long()).logits[0, :-1], ids[1:].long(), reduction="none"
            )
        everything.append(nats[supervised[1:]])
        text.append(nats[supervised[1:] & (ids[1:] != end)])
        ends += int((supervised[1:] & (ids[1:] == end)).sum())
    assert ends > len(held_out)  # some rows have several answers
    counts = record.counts
    assert counts["base_held_out_loss"] == pytest.approx(float(torch.cat(everything).mean()), rel=1e-5)
    wanted = float(torch.cat(text).sum()) / np.log(2) / held_out.answer_bytes_N.sum()
    assert counts["base_bits_per_byte"] == pytest.approx(wanted, rel=1e-5)
    assert metrics(run, "bits_per_byte")[0] == counts["base_bits_per_byte"]
    assert metrics(run, "bits_per_byte")[counts["best_step"]] == counts["bits_per_byte"] != counts["base_bits_per_byte"]
    assert counts["bits_per_byte_definition"] == 2


def test_a_run_begun_by_version_0_1_goes_on_with_its_definition(tmp_path):
    """Its checkpoints know only the loss over all supervised tokens; one run never mixes two definitions."""
    old = Path(__file__).parent / "data" / "version-0.1"
    half = Run(shutil.copytree(old / "half", tmp_path / "half"))
    began = json.loads((half.checkpoints / "step-000006" / "state.json").read_text())
    half.recipe.write_text(half.recipe.read_text().replace("{FOLDER}", str(old)).replace("stop_after: 6 steps", ""))
    recipe, inputs = kept_recipe(half), began["decides"]["inputs"]
    record, _ = train(recipe, half, LocatedBase("base", old / "base", inputs["base"], None, None))
    counts, finished = record.counts, json.loads((old / "finished" / "adapter" / "record.json").read_text())["counts"]
    assert counts["interruptions"] == 1 and counts["steps"] == finished["steps"]
    assert counts["bits_per_byte_definition"] == 1
    for name in ("held_out_loss", "base_held_out_loss", "bits_per_byte", "base_bits_per_byte"):
        assert counts[name] == pytest.approx(finished[name], rel=1e-4)
    assert metrics(half, "bits_per_byte")[counts["best_step"]] == counts["bits_per_byte"]


def test_early_stop_keeps_the_best_checkpoint(run, base):
    rule = {"patience": 2, "min_gain": 0.0}
    recipe = recipe_with(epochs=60, lr=0.3, evaluate_every="2 steps", early_stopping=rule)
    record, _ = train(recipe, run, base)
    losses = metrics(run, "held_out_loss")
    assert record.counts["stopped_early"] and record.counts["steps"] < record.counts["planned_steps"]
    del losses[0]
    best = min(losses, key=losses.get)
    assert record.counts["best_step"] == best < max(losses)
    assert all(
        torch.equal(t, load_file(run.checkpoints / f"step-{best:06d}" / "adapter.safetensors")[n])
        for n, t in adapter(run).items()
    )


def test_another_recipe_is_refused_by_name(run, base):
    with pytest.raises(Paused) as paused:
        train(recipe_with(stop_after="2 steps"), run, base)
    assert paused.value.exit_code == 0
    with pytest.raises(ResumeError, match=r"train\.lr: 0\.01 -> 0\.02\n  fix: set it back"):
        train(recipe_with(lr=2e-2), run, base)
    with pytest.raises(ResumeError, match=r"base: other weights, another tokenizer or chat template"):
        train(recipe_with(), run, LocatedBase("tiny", base.folder, "other", None, None))
    assert train(recipe_with(every="2 steps"), run, base)[1]  # cadence decides nothing


def test_another_micro_batch_goes_on_and_says_so(run, base):
    with pytest.raises(Paused):
        train(recipe_with(stop_after="2 steps"), run, base)
    record, _ = train(recipe_with(micro_batch_tokens=400), run, base)
    assert record.counts["notes"] == ["state-exact, not bit-exact: micro_batch_tokens: 200 -> 400"]


def test_the_note_outlives_a_later_interruption(run, base):
    for micro in (200, 400):
        with pytest.raises(Paused):
            train(recipe_with(micro_batch_tokens=micro, stop_after="2 steps"), run, base)
    record, _ = train(recipe_with(micro_batch_tokens=400), run, base)
    assert record.counts["notes"] == ["state-exact, not bit-exact: micro_batch_tokens: 200 -> 400"]


def test_a_disk_that_is_full_during_a_checkpoint_is_said_once_and_ends_nothing(run, base, monkeypatch, capsys):
    real, fails = snapshot.write_tensors, []

    def write(path, tensors):
        if path.parent.name in (".step-000003.draft", ".step-000004.draft") and path.name == "adapter.safetensors":
            path.symlink_to("/dev/full")  # the kernel's own "no space left"
            fails.append(path)
        real(path, tensors)

    monkeypatch.setattr(snapshot, "write_tensors", write)
    monkeypatch.setattr(saver, "FIRST_RETRY_S", 0.0)
    other = twin(run, "other")
    train(recipe_with(), run, base)
    said = capsys.readouterr().err
    assert len(fails) >= 2 and said.count("tries it again") == 1 and "the disk is full: step-000003" in said
    assert said.count("checkpoints are written again") == 1 and not list(run.checkpoints.glob(".*"))
    assert "step-000002 is deleted to make room" not in said  # the newest whole one
    train(recipe_with(), other, base)
    for name, tensor in adapter(run).items():
        assert torch.equal(tensor, adapter(other)[name])


def test_a_damaged_best_checkpoint_is_not_shipped(run, base, monkeypatch):
    real = verb._take_best

    def damaged(job, state, *rest):
        best = run.checkpoints / f"step-{state.progress.best_step:06d}" / "adapter.safetensors"
        best.write_bytes(best.read_bytes()[:-1] + b"x")
        return real(job, state, *rest)

    monkeypatch.setattr(verb, "_take_best", damaged)
    with pytest.raises(ResumeError, match="the best checkpoint, step-0000"):
        train(recipe_with(), run, base)
    assert not run.adapter.exists()


def test_half_an_epoch_is_half_the_steps(run):
    rows, _ = load_rows(run.data)
    whole, more = (verb._plan(rows, recipe_with(epochs=epochs).train, 0) for epochs in (2, 1.5))
    first = len(verb._plan(rows, recipe_with(epochs=1).train, 0))
    assert more == whole[: len(more)] and len(more) == first + round(0.5 * (len(whole) - first))


def judged(norm, loss=2.0, scale=None, progress=None):
    scaler = SimpleNamespace(is_enabled=lambda: scale is not None, get_scale=lambda: scale)
    state = SimpleNamespace(progress=progress or Progress(), scaler=scaler)
    return loop._is_sound(SimpleNamespace(steps=[range(5, 15)]), state, norm, loss)


def test_a_gradient_of_zero_is_an_error():
    """It is what a compiler made of torch 2.11's: the loss goes on, and nothing is learned."""
    for scale in (None, 4.0):
        with pytest.raises(ProofError, match=r"step 1: the gradient's norm is 0.*rows are 5, 6, 7, 8, 9, 10, 11, 12 a"):
            judged(0.0, scale=scale)


def test_what_is_not_finite_is_not_applied_and_ends_training_where_it_goes_on(capsys):
    for norm, loss in ((math.inf, 2.0), (math.nan, 2.0), (1.0, math.inf), (1.0, math.nan)):
        at = Progress()
        assert not judged(norm, loss, progress=at) and (at.skipped, at.skipped_in_all, at.not_finite) == (1, 1, [1])
    at = Progress()
    for _ in range(40):  # the scaler may halve its scale as often
        assert not judged(math.inf, scale=1.0, progress=at)
    assert judged(1.0, scale=1.0, progress=at) and (at.skipped, at.skipped_in_all, at.not_finite) == (0, 40, [])
    for _ in range(loop.MOST_NOT_FINITE - 1):  # below 1 it is not the scale
        judged(math.inf, scale=0.5, progress=at)
    assert judged(1.0, scale=0.5, progress=at) and at.skipped == 0
    for _ in range(loop.MOST_NOT_FINITE - 1):
        judged(math.inf, scale=0.5, progress=at)
    with pytest.raises(ProofError, match=r"norm is inf, loss 2, as of 5 steps in a row; its training rows are 5, 6"):
        judged(math.inf, scale=0.5, progress=at)
    assert "step 1 is not applied" in capsys.readouterr().err


def test_a_step_that_is_not_finite_leaves_the_adapter_and_is_known_after_a_resume(run, base, monkeypatch):
    real, broken, before = loop.loss_sum, [], {}

    def loss_sum(*args):
        return real(*args) * (math.inf if broken else 1.0)

    def update(job, state, watch, *rest):
        if state.progress.step == 2:
            broken.append(True)
            before.update({name: tensor.clone() for name, tensor in adapter_tensors(state.model).items()})
        line = loop_update(job, state, watch, *rest)
        if broken:
            assert line["loss"] is None and all(
                torch.equal(tensor, before[name]) for name, tensor in adapter_tensors(state.model).items()
            )
        broken.clear()
        return line

    loop_update = loop.update
    monkeypatch.setattr(loop, "loss_sum", loss_sum)
    monkeypatch.setattr(loop, "update", update)
    with pytest.raises(Paused):
        train(recipe_with(stop_after="4 steps"), run, base)
    monkeypatch.undo()
    record, _ = train(recipe_with(), run, base)
    newest = json.loads((sorted(run.checkpoints.iterdir())[-1] / "state.json").read_text())["progress"]
    assert newest["not_finite"] == [3] and record.counts["skipped_steps"] == 1 and before
    assert record.counts["steps_not_finite"] == [3]


def test_a_loss_that_is_no_number_is_named(run, base):
    with pytest.raises(ProofError, match="lower train"):
        train(recipe_with(lr=1e30, epochs=4), run, base)
    assert "NaN" not in run.metrics.read_text() and "Infinity" not in run.metrics.read_text()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (math.nan, "has a number that is nan in fp32"), (math.inf, "has a number that is inf in fp32"),
        (1e6, r"has a number of size 1e\+06, and F16, from which each GGUF is made, ends at 65,504"),
    ],
)  # fmt: skip
def test_a_base_whose_numbers_are_none_is_refused_by_the_tensors_name(run, base, tmp_path, number, said):
    """And neither packing nor training is blamed for it."""
    folder = shutil.copytree(base.folder, tmp_path / "odd")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = -number
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    odd = replace(base, folder=folder)
    with pytest.raises(BaseError, match=rf"the base's model\.layers\.1\.mlp\.up_proj\.weight {said}") as caught:
        train(recipe_with(epochs=1), run, odd)
    assert str(folder) in caught.value.where
    if number == 1e6:  # which fp32 holds: without a GGUF nothing is wrong with it
        model = load_base(folder, precision="fp32", device=torch.device("cpu"))
        refuse_odd_numbers(model, folder, "fp32", in_f16=False)


def test_what_merge_would_not_find_is_not_trained(run, base, tmp_path):
    """Weights without the prefix that transformers puts before their names as it loads them."""
    folder = shutil.copytree(base.folder, tmp_path / "bare")
    held = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in held.items()}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        BaseError, match=r"has the layer model\.layers\.0\.\S+, and the base's weights have none of that"
    ):
        train(recipe_with(epochs=1), run, replace(base, folder=folder))


def test_loss_scaling_is_saved_and_its_skipped_steps_are_counted(run, base):
    other = twin(run, "other")
    settings = {"precision": "fp16", "early_stopping": {"patience": 9}, "lr": 1e-3}
    record, _ = train(recipe_with(**settings), run, base)
    for _ in range(3):
        with pytest.raises(Paused):
            train(recipe_with(**settings, stop_after="3 steps"), other, base)
    resumed, _ = train(recipe_with(**settings), other, base)
    newest = [sorted(each.checkpoints.iterdir())[-1] for each in (run, other)]
    whole, scaler = (json.loads((folder / "state.json").read_text())["scaler"] for folder in newest)
    assert (
        scaler == whole and scaler["_growth_tracker"] >= 4
    )  # steps without an overflow, counted on across the resumes
    assert resumed.counts["skipped_steps"] == record.counts["skipped_steps"] and resumed.counts["interruptions"] == 3
    assert all(torch.equal(tensor, adapter(other)[name]) for name, tensor in adapter(run).items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_peft_reads_the_adapter_with_equal_logits(run, base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    train(recipe_with(epochs=2), run, base)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), run.adapter).eval()
    ours = load_base(base.folder, precision="fp32", device=CPU)
    attach(ours, recipe_with().lora, seed=9)
    loaded = adapter(run)
    for name, tensor in adapter_tensors(ours).items():
        tensor.copy_(loaded[name])
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        wanted = theirs(ids).logits
        torch.testing.assert_close(ours(ids, conversation_lengths=(57,)).logits, wanted, rtol=1e-4, atol=1e-5)
        assert (wanted - theirs.unload()(ids).logits).abs().max() > 0.01


@pytest.mark.parametrize("steps", [0, 1, 80])
def test_the_picture_of_the_losses_fits_them(tmp_path, monkeypatch, steps):
    figures = []
    monkeypatch.setattr(written.pyplot, "close", figures.append)
    lines = [{"step": step, "held_out_loss": 2.31 - step / 1e4} for step in sorted({0, steps})]
    lines += [{"step": step, "loss": 2.32 - step / 1e4} for step in range(1, steps + 1)]
    (tmp_path / "ancestor").mkdir()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    written.plot_losses(written.Metrics(tmp_path / "metrics.jsonl"), tmp_path / "loss.png")
    (figure,) = figures
    (axes,), (legend,) = figure.axes, figure.legends
    low, high = axes.get_ylim()
    assert not steps or (2.2 < low < 2.31 - steps / 1e4 and high < 2.4)
    assert all(tick == round(tick) for tick in axes.get_xticks()) and axes.get_xlim()[1] >= 1
    assert axes.get_title("left").endswith(f"lowest {2.31 - steps / 1e4:.4f}, at step {steps}")
    assert "0: as it began, with the adapter of another run" in axes.get_xlabel()
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    written.pyplot.figure(figure.number).clear()
