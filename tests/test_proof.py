"""The gate: a good export passes and says so, each planted fault stops it with its place."""

import contextlib
import json
import re
import shutil
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CORPUS, save_base, write_rows
from training_runs import said_as_written
from transformers import AutoModelForCausalLM

from tunesmith import machine
from tunesmith.errors import ProofError, ResourceError
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.engine import Engine
from tunesmith.model import streamed
from tunesmith.model.base import load_base
from tunesmith.model.batch import Batching, supervised_in
from tunesmith.proof import gguf as proof
from tunesmith.proof import reference
from tunesmith.proof.divergence import NEAR_TIE, Apart
from tunesmith.proof.gguf import compare, loss_limit, prove_gguf, why_unequal
from tunesmith.proof.sample import LONGEST, pick_sample
from tunesmith.recipe import ChatConfig, Limits, Recipe
from tunesmith.release.base_gguf import export_base
from tunesmith.release.export import export
from tunesmith.release.merge import merge_weights
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.prepare import prepare
from tunesmith.tokens.rows import load_rows
from tunesmith.tokens.template import chat_template_with
from tunesmith.training.score import bits_per_byte, measure_held_out
from tunesmith.weights.locate import LocatedBase

SYSTEM = "Answer in one line."
TURN_END = b"{{ message['content'] }}<|im_end|>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recipe, run, base): a run up to its merged model, whose adapter changed two layers; and one merged twice."""
    place = tmp_path_factory.mktemp("made")
    folder = save_base(place / "base", initializer_range=0.2, layers=3)
    base = LocatedBase("tiny", folder, "digest", None, "apache-2.0")
    words = CORPUS.read_text().split()
    texts = [" ".join(words[i : i + 9]) for i in range(0, 9 * 40, 3)]
    rows = write_rows(place / "rows.jsonl", [texts[i : i + 4] for i in range(0, len(texts), 4)])
    recipe = Recipe(
        name="made",
        base="tiny",
        data={"sources": [{"path": str(rows)}], "held_out": 0.3},
        export={"gguf": ["Q8_0", "Q4_K_M"], "positions": 100, "adapter": False},  # it is on two layers alone
        evaluate={"gguf": "Q8_0", "threads": 1},
        chat={"system": SYSTEM},
    )
    run = Run(place / "run")
    prepare(recipe, run, base, [])
    adapter = run.adapter
    adapter.mkdir()
    targets = {"q_proj": (64, 64), "down_proj": (64, 128)}
    tensors = {}
    for number, (name, (out, width)) in enumerate(targets.items()):
        module = f"base_model.model.model.layers.{number}.{'self_attn' if name == 'q_proj' else 'mlp'}.{name}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, width, generator=torch.Generator().manual_seed(number)) / 8
        tensors[f"{module}.lora_B.weight"] = torch.randn(out, 4, generator=torch.Generator().manual_seed(9)) / 8
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": list(targets)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))

    def merged(draft, source=folder):
        shutil.copytree(source, draft, dirs_exist_ok=True)
        merge_weights(source, adapter, draft)
        template = draft / "chat_template.jinja"
        template.write_text(chat_template_with(template.read_text(), SYSTEM, recipe.data.date))
        return {}

    commit_stage(run.model, {}, {}, merged)
    merged(place / "twice", run.model)
    return recipe, run, base


@pytest.fixture
def good(made, tmp_path):
    """An F16 file of the merged model, to be damaged."""
    recipe, run, base = made
    write_gguf(run.model, tmp_path / "made-F16.gguf", "F16", About("made", base.name, None, recipe.chat))
    return tmp_path / "made-F16.gguf"


def test_export_writes_what_was_asked_and_proves_it(made):
    recipe, run, base = made
    record, done = export(recipe, run, base)
    assert done and sorted(record.outputs) == ["Modelfile", "made-Q4_K_M.gguf", "made-Q8_0.gguf"]  # F16 was not asked
    proof = json.loads((run.gguf / "proof.json").read_text())
    for kind, facts in record.counts["files"].items():  # how each was written; what was measured is beside it
        assert facts.items() <= proof[kind].items() and {"bytes", "write_s", "tensor_types"} <= facts.keys()
    assert list(proof) == ["F16", "Q8_0", "Q4_K_M"]
    f16, q8, q4 = proof.values()
    assert all(100 <= facts["held_out"]["positions"] < 100 + LONGEST for facts in proof.values())
    assert (
        f16["way"] == "whole sequences"
        and f16["against_model"]["mean_kl"] <= 1e-4
        and f16["against_model"]["top1"] == 1
    )
    assert 0 < q8["against_F16"]["mean_kl"] < q4["against_F16"]["mean_kl"]
    assert q4["tensor_types"]["Q5_0"] and q4["fallbacks"] == 22 and q8["fallbacks"] == 0
    assert f16["tokens_equal"] == load_rows(run.data)[1].lengths_N.sum() > 100
    assert q8["bytes"] == (run.gguf / "made-Q8_0.gguf").stat().st_size
    said = {k: f.contents() for k, f in gguf.GGUFReader(run.gguf / "made-Q8_0.gguf").fields.items()}
    assert (said["general.name"], said["general.base_model.0.name"]) == ("made", base.name)
    assert said["general.license"] == "apache-2.0"
    assert export(recipe, run, base) == (record, False)


def rewrite(path, name, change):
    """Change the numbers of one tensor in place."""
    tensor = next(t for t in gguf.GGUFReader(path, "r+").tensors if t.name == name)
    tensor.data[...] = change(tensor.data.copy())


def field(path, key, value):
    """Change a number of the metadata in place."""
    found = gguf.GGUFReader(path, "r+").fields[key]
    found.parts[found.data[0]][0] = value


def swap_rotary(path):
    for layer in range(3):  # as if q and k had been written in Hugging Face's order
        for name, heads in (("q", 4), ("k", 2)):
            rewrite(
                path,
                f"blk.{layer}.attn_{name}.weight",
                lambda rows, heads=heads: rows.reshape(heads, 8, 2, 64).swapaxes(1, 2).reshape(rows.shape),
            )


def add_noise(path):
    rng = np.random.default_rng(0)
    rewrite(path, "blk.1.ffn_up.weight", lambda rows: rows + rng.normal(0, 0.02, rows.shape).astype(np.float16))


def scale_little(path):
    rewrite(path, "blk.1.ffn_up.weight", lambda rows: rows * np.float16(1.001))


def lose_a_word(path):
    rewrite(path, "token_embd.weight", lambda rows: rows * (np.arange(len(rows)) != 400)[:, None])


def say_bos(path):
    field(path, "tokenizer.ggml.add_bos_token", 1)


def other_stop(path):
    field(path, "tokenizer.ggml.eos_token_id", 0)


def written_over(path, old, new):
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def forget_stop(path):
    written_over(path, TURN_END, TURN_END.replace(b"<|im_end|>", b" " * 10))


def forget_prompt(path):
    written_over(path, b"{% if add_generation_prompt %}", b"{% if add_generation_prompf %}")


def forget_system(path):
    written_over(path, SYSTEM.encode(), SYSTEM.upper().encode())


def cut_otherwise(path):
    written_over(path, b"smollm", b"falcon")


def plain_stop(path):
    kinds = gguf.GGUFReader(path, "r+").fields["tokenizer.ggml.token_type"]
    kinds.parts[kinds.data[2]][0] = gguf.TokenType.NORMAL


def plain_start(path):
    kinds = gguf.GGUFReader(path, "r+").fields["tokenizer.ggml.token_type"]
    kinds.parts[kinds.data[1]][0] = gguf.TokenType.NORMAL


def other_theta(path):
    field(path, "llama.rope.freq_base", 500.0)


FAULTS = {
    swap_rotary: r"is not the merged model: mean KL .*; rows in the order of transformers, where the two "
    r"halves .*: blk.0.attn_k.weight, blk.0.attn_q.weight, blk.1.attn_k.weight and 3 more\n.*first at held-out row "
    r"\d+, token \d+: the merged model has "
    r"'.*' \(token \d+, log-probability -\d.*\), the file '.*' \(token \d+, -\d",
    add_noise: r"is not the merged model: mean KL .*; not the model's: blk.1.ffn_up.weight \(relative "
    r"difference 0\.\d+\)\n.*first at held-out row \d+, token \d+",
    scale_little: r"is not the merged model: not the model's: blk.1.ffn_up.weight \(relative difference 0\.0",
    lose_a_word: r"is not the merged model: .*not the model's: token_embd.weight \(relative difference 0\.\d+\)",
    other_theta: r"is not the merged model: .*; llama.rope.freq_base is 500, and config.json has 10000\n",
    say_bos: r"llama.cpp has \[1, .*; its tokenizer.ggml.add_bos_token is True, and the model's is "
    r"False\n.*add_bos_token",
    other_stop: r"would not stop: the chat template ends an answer with '<\|im_end\|>' \(token 2\), and it names "
    r"'<\|endoftext\|>' \(token 0\) as its stop token",
    plain_stop: r"would not stop: .* with '<\|im_end\|>' \(token 2\), and that is typed NORMAL "
    r"where it must be CONTROL",
    plain_start: r"<\|im_start\|>' \(token 1\) is typed NORMAL there, and is a special token",
    forget_stop: r"llama.cpp has .*rows.jsonl:\d+, as the chat template renders it",
    forget_prompt: r"llama.cpp has '' where transformers has '<\|im_start\|>assistant.*as the chat template renders it",
    forget_system: r"llama.cpp has 'NSWER IN ONE LINE.*where transformers has 'nswer in one line",
    cut_otherwise: r"reads texts otherwise than the merged model: its tokenizer.ggml.pre is falcon, and the "
    r"model's is smollm",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_fails_the_gate(made, good, fault):
    recipe, run, _ = made
    fault(good)
    with pytest.raises(ProofError, match=f"(?s){FAULTS[fault]}"):
        prove_gguf(recipe, run, {"F16": good}, good.parent)


def test_with_too_little_memory_the_comparison_with_the_model_is_skipped_and_said(made, good, monkeypatch):
    recipe, run, _ = made
    details, proofs = prove_gguf(recipe, run, {"F16": good}, good.parent)
    assert [proof.skipped_because for proof in proofs] == [None] * 11 and all(p.holds for p in proofs)
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 1_000_000)
    less, skipped = prove_gguf(recipe, run, {"F16": good}, good.parent)
    assert [proof.name for proof in skipped] == [proof.name for proof in proofs]
    without = [proof for proof in skipped if proof.skipped_because]
    assert [proof for proof in skipped if proof in proofs] == [proof for proof in skipped if proof not in without]
    assert [(proof.value, proof.positions) for proof in without] == [(None, 0)] * 5
    assert all("GB of memory, 0.0 GB are free" in str(p) and str(p).startswith("NOT proved") for p in without)
    assert details["F16"].keys() - less["F16"].keys() == {"against_model", "model_held_out", "greedy"}
    say_bos(good)  # what needs no memory is looked at all the same
    with pytest.raises(ProofError, match="add_bos_token"):
        prove_gguf(recipe, run, {"F16": good}, good.parent)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_merged_model_that_gives_no_numbers_is_named_before_its_file(made, tmp_path, value):
    recipe, run, _ = made
    broken = Run(tmp_path / "run")
    for stage in (run.data, run.model):
        shutil.copytree(stage, broken.path / stage.name)
    sample = pick_sample(load_rows(run.data)[1], recipe.export.positions)
    weights = load_file(broken.model / "model.safetensors")
    before = {token for row in sample.rows[:-1] for token in row.ids}
    last = sample.rows[-1]
    once = next(token for token in last.ids[last.places[0] :] if token not in before)
    weights["model.embed_tokens.weight"][once, 0] = value
    # the head apart, or that word would be no number everywhere
    weights.setdefault("lm_head.weight", load_file(run.model / "model.safetensors")["model.embed_tokens.weight"])
    save_file(weights, broken.model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ProofError) as caught:
        prove_gguf(recipe, broken, {"F16": tmp_path / "never-opened.gguf"}, tmp_path)
    place = re.fullmatch(r"the merged model gives no numbers at held-out row (\d+), token (\d+)", caught.value.what)
    assert int(place[1]) == last.number and len(sample.rows) > 1  # attention makes nothing of a whole block of a row
    assert int(place[2]) - 1 in last.places
    assert caught.value.fix == "delete model/ and run again" and caught.value.where == str(broken.model)


@pytest.mark.parametrize(("pass_tokens", "piece"), [(1, 1), (100, 5), (100_000, 1_000)])
def test_log_probabilities_of_the_model_are_those_of_transformers(made, tmp_path, monkeypatch, pass_tokens, piece):
    _, run, _ = made
    monkeypatch.setattr(streamed, "PASS_TOKENS", pass_tokens)
    monkeypatch.setattr(reference, "PIECE_BYTES", piece * 4 * 512)
    monkeypatch.setattr(reference, "WORDS", 100)
    sample = pick_sample(load_rows(run.data)[1], 24)
    kept = reference.Reference(tmp_path / "reference")
    assert reference.store_model(run.model, sample, kept) == ""
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    with torch.no_grad():
        wanted = torch.stack([model(torch.tensor([ids])).logits[0, -1].log_softmax(0) for ids in sample.prefixes()])
    torch.testing.assert_close(kept.read(0, len(sample)), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept.read(3, 7), wanted[3:7], rtol=1e-4, atol=1e-4)
    kept.close()
    cost = -wanted.gather(1, torch.from_numpy(sample.targets_S)[:, None]).mean()
    assert kept.loss.loss == pytest.approx(float(cost), abs=1e-5)


def test_the_loss_of_the_f16_file_is_what_training_measures(made, good):
    """On rows that are all there: the definition of training/score.py, by transformers."""
    recipe, run, _ = made
    held_out = load_rows(run.data)[1]
    whole = recipe.model_copy(update={"export": recipe.export.model_copy(update={"positions": 100_000})})
    facts, _ = prove_gguf(whole, run, {"F16": good}, good.parent)
    batching = Batching(400, 200, torch.device("cpu"), kernel=False, static=False)
    trained = measure_held_out(load_base(run.model, precision="fp32", device=torch.device("cpu")), held_out, batching)
    found = facts["F16"]["held_out"]
    assert found["positions"] == supervised_in(held_out, range(len(held_out))) and found["rows"] == len(held_out)
    assert found["loss"] == pytest.approx(trained.loss, abs=1e-3)
    assert found["bits_per_byte"] == pytest.approx(bits_per_byte(trained, held_out), abs=1e-3)
    assert facts["F16"]["model_held_out"]["loss"] == pytest.approx(trained.loss, abs=1e-5)
    assert facts["F16"]["model_held_out"]["bits_per_byte"] == pytest.approx(bits_per_byte(trained, held_out), abs=1e-5)


def test_a_loss_that_is_off_fails_the_gate():
    same = Apart()
    logprobs = torch.randn(2000, 8).log_softmax(1)
    same.add(logprobs, logprobs)
    found = same.found(str)
    assert why_unequal(found, 0.99e-3, Limits()) == "" == why_unequal(found, 0.9, Limits(loss=1))
    for difference in (1.01e-3, float("nan")):
        assert re.match(r"its held-out loss is .* nats off \(limit 0.001\)", why_unequal(found, difference, Limits()))
    assert loss_limit(64, 1e-3) == pytest.approx(4e-3, rel=0.05)  # chance, at so few


def test_a_quantised_file_without_numbers_is_no_result(made, good, tmp_path):
    recipe, run, base = made
    q8 = tmp_path / "made-Q8_0.gguf"
    write_gguf(run.model, q8, "Q8_0", About("made", base.name, None, recipe.chat))
    tensor = next(t for t in gguf.GGUFReader(q8, "r+").tensors if t.name == "token_embd.weight")
    tensor.data[7, :2] = np.frombuffer(np.float16("nan").tobytes(), np.uint8)  # the scale of one word's first block
    with pytest.raises(ProofError, match=r"made-Q8_0.gguf computes no numbers at held-out row \d+, token \d+"):
        prove_gguf(recipe, run, {"F16": good, "Q8_0": q8}, tmp_path)


@pytest.mark.parametrize("why", ["version", "crash", "other numbers"])
def test_where_whole_sequences_cannot_be_had_fewer_positions_are_proved_and_it_is_said(
    made, good, monkeypatch, capsys, why
):
    recipe, run, _ = made
    monkeypatch.setattr(proof, "FEW", 5)
    whole, asked = proof.sequence_logits, []

    def sequence_logits(path, sequences, **rest):
        asked.append(sequences)
        if why == "version":
            raise proof.Unavailable("xllamacpp 9 is not known")
        if why == "crash":
            raise ResourceError("the process ended with code -11", fix="none")
        yield from (logits + np.arange(512, dtype=np.float32) % 3 for logits in whole(path, sequences, **rest))

    monkeypatch.setattr(proof, "sequence_logits", sequence_logits)
    facts, proofs = prove_gguf(recipe, run, {"F16": good}, good.parent)
    reason = {"version": "xllamacpp 9 is not known", "crash": "code -11", "other numbers": "not those of llama.cpp"}[
        why
    ]
    assert reason in facts["F16"]["way"] and len(asked) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "only 5 positions are compared" in said and reason in said
    assert {proof.positions for proof in proofs[4:-1]} == {5} and all(proof.holds for proof in proofs)
    assert facts["F16"]["held_out"]["bits_per_byte"] is None  # of no whole row
    assert facts["F16"]["against_model"]["positions"] == 5


def test_an_adapter_merged_twice_fails_the_gate(made, good):
    recipe, run, base = made
    prove_gguf(recipe, run, {"F16": good}, good.parent)  # once is fine
    write_gguf(run.path.parent / "twice", good, "F16", About("made", base.name, None, recipe.chat))
    with pytest.raises(
        ProofError, match=r"mean KL .*; the adapter's update is there twice: blk.0.attn_q.weight, blk.1.ffn_down"
    ):
        prove_gguf(recipe, run, {"F16": good}, good.parent)


def test_nothing_is_committed_when_the_gate_fails(made, tmp_path):
    recipe, run, base = made
    broken = Run(tmp_path / "run")
    for stage in (run.data, run.model):
        shutil.copytree(stage, broken.path / stage.name)
    template = broken.model / "chat_template.jinja"
    template.write_text(template.read_text().replace(SYSTEM, SYSTEM.upper()))  # the recipe says otherwise
    said_as_written(broken.model)
    with pytest.raises(ProofError, match="as the chat template renders it"):
        export(recipe, broken, base)
    assert not broken.gguf.exists() and not list(broken.path.glob(".gguf*"))


def test_positions_are_those_of_whole_rows_spread_over_all(made):
    _, run, _ = made
    held_out = load_rows(run.data)[1]
    sample = pick_sample(held_out, 100)
    assert sample == pick_sample(held_out, 100) and 100 <= len(sample) < 100 + LONGEST
    assert len(pick_sample(held_out, 1).rows) == 1 and len(pick_sample(held_out, 10**6).rows) == len(held_out)
    numbers = [row.number for row in sample.rows]
    assert numbers == sorted(numbers) and numbers != list(range(len(numbers)))  # not the first ones
    for row, start in zip(sample.rows, sample.starts, strict=False):
        ids = held_out.tokens_T[held_out.offsets_N1[row.number] : held_out.offsets_N1[row.number + 1]].tolist()
        marks = held_out.supervised_T[held_out.offsets_N1[row.number] : held_out.offsets_N1[row.number + 1]]
        assert [place + 1 for place in row.places] == np.flatnonzero(marks).tolist()
        assert list(row.ids) == ids[: row.places[-1] + 1] and list(row.targets) == [ids[p + 1] for p in row.places]
        assert [ids[place + 1] == 2 for place in row.places] == list(row.ends) and any(row.ends)
        assert row.answer_bytes == held_out.answer_bytes_N[row.number]
        assert sample.place(start + 1) == f"held-out row {row.number}, token {row.places[1] + 1}"
    few = sample.spread(7)
    assert len(few) == 7 and all(row.answer_bytes is None for row in few.rows)
    assert set(few.prefixes()) < set(sample.prefixes()) and len(few.rows) > 1


def test_the_start_of_long_rows_is_read_where_something_is_supervised_there(made, monkeypatch):
    held_out = load_rows(made[1].data)[1]
    monkeypatch.setattr("tunesmith.proof.sample.LONGEST", 60)
    cut = pick_sample(held_out, 10**6)
    assert max(len(row.ids) for row in cut.rows) < 60 and any(row.answer_bytes is None for row in cut.rows)
    monkeypatch.setattr("tunesmith.proof.sample.LONGEST", 2)
    assert pick_sample(held_out, 10**6) == pick_sample_whole(held_out)


def pick_sample_whole(held_out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.proof.sample.LONGEST", 10**6)
        return pick_sample(held_out, 10**6)


def apart_of(reference_NV, other_NV):
    found = Apart()
    for start in range(0, len(reference_NV), 4):  # a piece at a time
        found.add(reference_NV[start : start + 4], other_NV[start : start + 4])
    return found.found(lambda position: f"position {position}")


def test_divergence_is_torchs_and_near_ties_are_counted_apart():
    torch.manual_seed(0)
    ours, theirs = torch.randn(6, 300).log_softmax(1), torch.randn(6, 300).log_softmax(1)
    found = apart_of(ours, theirs)
    expected = torch.nn.functional.kl_div(theirs, ours, reduction="none", log_target=True).sum(1)
    assert found.mean_kl == pytest.approx(float(expected.mean())) and found.positions == 6
    assert found.max_kl == pytest.approx(float(expected.max()))
    assert found.worst == f"position {int(expected.argmax())}"
    top = ours.topk(100, dim=1).indices
    assert found.max_difference_top100 == pytest.approx(float((ours - theirs).gather(1, top).abs().max()))
    tied = ours.clone()
    tied[0, :2] = ours.max() + 1  # two best, equal in the reference
    other = tied.clone()
    other[0, 0] -= 1e-4
    tied[0, 1] -= 1e-4
    found = apart_of(tied, other)
    assert (found.top1, found.near_ties) == (1, 1)
    zero = ours.clone()
    zero[0, 7] = -3e38  # as llama.cpp writes a probability of zero
    assert np.isfinite(apart_of(ours, zero).mean_kl)


def test_of_few_positions_one_near_tie_fails_nothing():
    """What the model likes nearly as well is no other model, as in greedy answers; smaller types are only measured."""
    reference = torch.tensor([[0.0, -0.03, -5.0]] * 20).log_softmax(1)
    file = reference.clone()
    file[3] = file[3].flip(0).roll(-1)  # 0.03 nats between the two
    for near_tie, same in ((0.05, True), (0.02, False)):
        found = Apart(near_tie)
        found.add(reference, file)
        assert found.found(str).top1 == (1 if same else 0.95) and found.found(str).near_ties == same
    default = Apart()
    default.add(reference, file)
    assert default.found(str).top1 == 0.95


def test_metadata_of_each_file_are_the_models(made, good, tmp_path):
    """Of a smaller type too, whose probabilities may be far from F16's without that."""
    recipe, run, base = made
    q4 = tmp_path / "made-Q4_K_M.gguf"
    write_gguf(run.model, q4, "Q4_K_M", About("made", base.name, None, recipe.chat))
    field(q4, "llama.context_length", 128)
    with pytest.raises(
        ProofError, match=r"made-Q4_K_M\.gguf is not the merged model: llama.context_length is 128, and"
    ):
        prove_gguf(recipe, run, {"F16": good, "Q4_K_M": q4}, tmp_path)


def test_the_limit_of_near_ties_is_for_f16_alone(made, good, tmp_path, monkeypatch):
    recipe, run, base = made
    q8, limits, compare = tmp_path / "made-Q8_0.gguf", [], proof.compare
    write_gguf(run.model, q8, "Q8_0", About("made", base.name, None, recipe.chat))
    monkeypatch.setattr(
        proof, "compare", lambda *given, near_tie, **rest: [limits.append(near_tie), compare(*given, **rest)][1]
    )
    prove_gguf(recipe, run, {"F16": good, "Q8_0": q8}, tmp_path)
    assert limits == [recipe.export.limits.near_tie, NEAR_TIE]


def test_the_first_position_that_differs_is_named_with_both_choices():
    torch.manual_seed(0)
    ours = torch.randn(6, 300).log_softmax(1)
    theirs = ours.clone()
    theirs[3, 5] = 4.0
    theirs[3] = theirs[3].log_softmax(0)
    theirs[4] = (-3 * theirs[4]).log_softmax(0)  # the worst, and not the first
    found = Apart()
    found.add(ours, theirs)
    first, of_file = found.first(lambda position: f"position {position}", 1e-4), float(theirs[3, 5])
    assert (first.place, first.reference, first.other) == ("position 3", int(ours[3].argmax()), 5)
    assert (first.reference_logprob, first.other_logprob) == (pytest.approx(float(ours[3].max())), of_file)
    whole = found.found(str)
    assert whole.worst == "4" and whole.widest_other == pytest.approx(float(ours[4].max() - ours[4].min()))
    logits = ours + 7  # log-probabilities less a constant
    centred = [one - one.mean(dim=1, keepdim=True) for one in (logits - theirs, logits)]
    assert whole.max_relative_difference == pytest.approx(
        float((centred[0].norm(dim=1) / centred[1].norm(dim=1)).max())
    )
    assert found.first(str, 1e9).place == "3"  # another first choice
    same = Apart()
    same.add(ours, ours)
    assert same.first(str, 1e-4).place == "0"


def test_a_divergence_is_never_below_zero():
    """Rounding leaves that of two equal models at -1e-7."""
    ours = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    found = apart_of(ours, ours + 1e-6)
    assert (found.mean_kl, found.max_kl) == (0, 0) and str(found.mean_kl) == "0.0"


def test_not_a_number_is_not_equal():
    logprobs = torch.full((1, 200), np.nan)
    found = apart_of(logprobs, logprobs)
    assert np.isnan(found.mean_kl) and np.isnan(found.max_kl)
    assert why_unequal(replace(found, top1=1.0), 0.0, Limits()).startswith("mean KL nan")


def test_what_is_compared_may_take_the_references_place(made, tmp_path):
    """F16's log-probabilities are those that the smaller files are compared with, and no longer the model's."""
    sample = pick_sample(load_rows(made[1].data)[1], 24)
    ours, theirs = (torch.randn(len(sample), 50).log_softmax(1) for _ in range(2))
    targets = replace(sample, rows=tuple(replace(row, targets=(7,) * len(row.targets)) for row in sample.rows))
    with contextlib.closing(reference.Reference(tmp_path / "reference")) as kept:
        kept.write(0, ours)
        kept.loss = targets.held_out_loss(-ours[:, 7].double().numpy())
        first, loss = compare(iter(theirs.split(5)), targets, kept, "a.gguf", keep=True)
        again, _ = compare(iter(theirs.split(7)), targets, kept, "b.gguf", keep=False)
        last, _ = compare(iter([ours]), targets, kept, "c.gguf", keep=False)
    first, again, last = (apart.found(sample.place) for apart in (first, again, last))
    assert first.mean_kl > 0.1 and again.mean_kl == 0 and again.top1 == 1 and last.mean_kl > 0.1
    assert loss.loss == pytest.approx(float(-theirs[:, 7].mean()), abs=1e-5) and loss.positions == len(sample)


def test_the_untouched_base_is_made_once_with_the_runs_template(made, own_cache):
    _, _, base = made
    chat = ChatConfig(system=SYSTEM)
    path = export_base(base, "Q8_0", chat, "2026-01-01")
    assert path.is_relative_to(own_cache) and path.name == "tiny-Q8_0.gguf"
    changed = path.stat().st_mtime_ns
    assert export_base(base, "Q8_0", chat, "2026-01-01") == path and path.stat().st_mtime_ns == changed
    others = [(ChatConfig(), "2026-01-01"), (chat, "2026-02-02"), (ChatConfig(system=SYSTEM, top_p=0.5), "2026-01-01")]
    assert len({path, *(export_base(base, "Q8_0", *other) for other in others)}) == 4
    with Engine(path, threads=2, context=256) as engine:
        text = engine.render([{"role": "user", "content": "Hi"}])
    assert text == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
