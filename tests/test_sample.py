"""Samples while training: what a cache computes is what the model computes, and training is as it was without them."""

import json
import re

import pytest
import torch
from small_project import write_project

from tunesmith.model.base import backbone, compile_layers, head, load_base, recompute_layers
from tunesmith.model.lora import adapted_layers, attach
from tunesmith.pipeline import run_stages
from tunesmith.planning.steps import steps_of
from tunesmith.recipe import LoraConfig, TrainConfig
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import Run
from tunesmith.stages import STAGES
from tunesmith.tokens.order import more_steps
from tunesmith.tokens.rows import load_rows
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.training import sample
from tunesmith.training.metrics import Samples
from tunesmith.training.outcome import outcome, so_far
from tunesmith.training.sample import Question, Sampler, answer, pick_question
from tunesmith.training.state import Progress

FOREVER = float("inf")


def trained(folder, base, *changes, stages=STAGES[:3]):
    recipe = read_recipe(write_project(folder, base), changes)
    run = Run(folder / "run")
    run_stages(recipe, run, stages)
    return run


@pytest.fixture(scope="module")
def model(tiny_base):
    model = load_base(tiny_base, precision="fp32", device=torch.device("cpu"))
    attach(model, LoraConfig(rank=4), seed=0)
    torch.manual_seed(0)
    for _, layer in adapted_layers(model):
        torch.nn.init.normal_(layer.b_OR, std=0.5)
    return model


@torch.no_grad()
def by_hand(model, ids, most):
    """Greedy without a cache: the whole text anew for each token, through the attention of training."""
    weight_VD = head(model).weight_VD
    told = list(ids)
    for _ in range(most):
        hidden = backbone(model)(input_ids=torch.tensor([told]), use_cache=False).last_hidden_state[0, -1]
        told.append(int((weight_VD @ hidden).argmax()))
    return told[len(ids) :]


def test_greedy_with_a_cache_is_greedy_without_and_the_model_stays_as_it_was(model):
    ids = tuple(range(3, 40))
    wanted, attention = by_hand(model, ids, 12), model.config._attn_implementation
    assert len(set(wanted)) > 2
    found, ended = answer(model, Question(0, "", ids, stop=-1), 12, FOREVER)
    assert (found, ended) == (wanted, False)
    stop = wanted[5]
    assert answer(model, Question(0, "", ids, stop), 12, FOREVER) == (wanted[: wanted.index(stop)], True)
    assert model.config._attn_implementation == attention
    assert by_hand(model, ids, 12) == wanted  # packed attention again, without a cache
    assert answer(model, Question(0, "", ids, stop=-1), 12, 0.0)[0] == wanted[:1]  # no time: the first word only


def test_compiled_and_recomputed_layers_are_left_alone(model):
    calls = []

    def backend(graph, _):
        calls.append(1)
        return graph.forward

    compile_layers(model, backend)
    recompute_layers(model)
    answer(model, Question(0, "", (3, 4, 5), stop=-1), 4, FOREVER)
    layers = sample.decoder_layers(model)
    assert not calls and all(layer._compiled_call_impl and layer.training for layer in layers)
    for layer in layers:
        layer._compiled_call_impl, layer.training = None, False


def test_the_question_is_a_held_out_rows_own(tmp_path, tiny_base):
    run = trained(tmp_path, tiny_base, stages=STAGES[:1])
    _, held_out = load_rows(run.data)
    question, tokenizer = pick_question(run.data, held_out), load_tokenizer(tiny_base)
    prompt = tokenizer.decode(question.ids)
    assert prompt.endswith(f"<|im_start|>user\n{question.text}<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode([question.stop]) == "<|im_end|>" and question == pick_question(run.data, held_out)


def test_training_has_the_same_bits_with_and_without_samples(tmp_path, tiny_base, monkeypatch):
    monkeypatch.setattr(sample, "SHARE", 1e6)  # each has time for all its tokens
    (tmp_path / "with").mkdir(), (tmp_path / "without").mkdir()
    asked = trained(tmp_path / "with", tiny_base, "lora.dropout=0.1")
    silent = trained(tmp_path / "without", tiny_base, "lora.dropout=0.1", "train.sample=false")
    file = "adapter_model.safetensors"
    assert (asked.adapter / file).read_bytes() == (silent.adapter / file).read_bytes()
    assert read_record(asked.adapter).fingerprint == read_record(silent.adapter).fingerprint
    assert not silent.samples.exists() and "samples.jsonl" in asked.manifest.read_text()
    lines = [json.loads(line) for line in asked.samples.read_text().splitlines()]
    measured = [json.loads(line) for line in asked.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [line["step"] for line in measured if "held_out_loss" in line]
    assert len({(line["row"], line["question"]) for line in lines}) == 1 and lines[0]["tokens"] <= 16
    assert read_record(asked.adapter).counts["sample_seconds"] == pytest.approx(
        sum(x["seconds"] for x in lines), abs=0.1
    )


def test_samples_are_cut_back_to_the_checkpoint_and_take_a_share_of_the_time(tmp_path, tiny_base, model, capfd):
    lines = Samples(tmp_path / "samples.jsonl")
    for step in (0, 4, 8):
        lines.append({"step": step, "row": 0, "question": "q", "answer": "a", "tokens": 10, "seconds": 1.0})
    with lines.path.open("a") as file:
        file.write('{"step": 4, "question": 5}\n')
        file.write('{"step": 4, "question": "q", "answer": "a", "tokens": 1, "seconds": NaN}\n{"step"')
    lines.cut_back(Progress(step=6, evaluated_step=4))
    assert [line["step"] for line in lines.read()[0]] == [0, 4] and "it is no sample" in capfd.readouterr().err
    sampler = Sampler(lines.path, Question(0, "Why?", (3, 4, 5), stop=-1), load_tokenizer(tiny_base))
    assert sampler.seconds == 2.0
    sampler.sample(model, Progress(step=8, seconds=130.0))  # 2 % are 2.6 s, of which 2 are spent: six tokens
    assert len(lines.read()[0]) == 2
    sampler.sample(model, Progress(step=8, seconds=200.0))
    assert lines.read()[0][-1]["step"] == 8 and 'asked "Why?", it answers: "' in capfd.readouterr().err


@pytest.mark.parametrize(
    ("best", "steps", "planned", "loss", "said"),
    [
        (80, 120, 129, 2.0, "best at step 80 of 129; 40 steps later no better, so training stopped at step 120"),
        (80, 129, 129, 2.0, "best at step 80 of 129; 49 steps later no better"),
        (129, 129, 129, 2.0, "best at the last step, 129: still falling, so more epochs may help"),
        (40, 40, 129, 2.0, "best at step 40 of 129: still falling, but by less than min_gain, so training stopped"),
        (20, 60, 129, 4.0, "in 60 steps never better than the base"),
    ],
)
def test_how_training_ended_in_a_sentence(best, steps, planned, loss, said):
    counts = {"steps": steps, "planned_steps": planned, "stopped_early": steps < planned, "best_step": best}
    assert outcome(counts | {"held_out_loss": loss, "base_held_out_loss": 3.0}) == said
    assert outcome({}) == ""


@pytest.mark.parametrize(("loss", "learned"), [(1.5, False), (0.5, True)])
def test_a_fork_is_measured_by_what_it_began_with(loss, learned):
    counts = {"steps": 9, "planned_steps": 9, "best_step": 9, "held_out_loss": loss, "base_held_out_loss": 3.0}
    said = outcome(counts | {"ancestor": {"held_out_loss_here": 1.0}})
    assert ("never better than the adapter it began with" in said) != learned


def test_a_training_that_stops_at_its_best_does_not_ask_for_more_epochs(tmp_path, tiny_base, capfd):
    slow = "train.early_stopping={patience: 1, min_gain: 5}"  # the loss falls, but never by so much
    counts = read_record(trained(tmp_path, tiny_base, slow).adapter).counts
    assert counts["best_step"] == counts["steps"] < counts["planned_steps"]
    said = capfd.readouterr().err
    assert f"train: {outcome(counts)}\n" in said and "less than min_gain" in said and "more epochs" not in said


def test_a_paused_training_says_where_it_was_best_so_far(tmp_path, tiny_base, capfd):
    run = trained(tmp_path, tiny_base, "train.stop_after=3 steps")
    measured = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    loss = next(line["held_out_loss"] for line in measured if line["step"] == 2 and "held_out_loss" in line)
    assert f"train: best so far at step 2, held-out loss {loss:.4f}\n" in capfd.readouterr().err
    assert so_far(0, FOREVER, 3.0, "the base") == ""
    assert so_far(4, 3.5, 3.0, "the base") == "not yet better than the base"


@pytest.mark.parametrize(
    ("lengths", "size", "max_length", "epochs", "said"),
    [
        ([100] * 300, 16384, 2048, 1, "--set train.tokens_per_step=1024 --set train.max_length=1024 makes about 30"),
        ([50] * 60, 16384, 2048, 1, "--set train.tokens_per_step=128 --set train.max_length=128 makes about 30"),
        ([200] * 9, 512, 256, 1, "--set train.tokens_per_step=256 --set train.epochs=4 makes about 36"),
        ([200] * 2, 256, 256, 1, "these are few rows: add conversations"),
    ],
)
def test_too_few_steps_are_said_with_what_makes_more_and_it_does(lengths, size, max_length, epochs, said):
    def count(train):
        return steps_of(train, sum(lengths), lengths, 0)

    train = TrainConfig(tokens_per_step=size, max_length=max_length, epochs=epochs)
    assert more_steps(train, max(lengths), count) == said
    changes = {name: float(value) for name, value in re.findall(r"--set train[.](\w+)=([0-9]+)", said)}
    made = count(train.model_copy(update=changes | {name: int(changes[name]) for name in changes if name != "epochs"}))
    assert said.endswith(f"makes about {made}") or (made < 30 and not changes)


def test_a_training_of_few_steps_warns(tmp_path, tiny_base, capfd):
    run = trained(tmp_path, tiny_base, "train.epochs=1")
    said = capfd.readouterr().err
    steps = read_record(run.adapter).counts["steps"]
    assert f"warning: {steps} steps teach next to nothing, 30 to 60 are a start; --set train." in said
    assert "of that time for samples" in said and f"train: {outcome(read_record(run.adapter).counts)}\n" in said
