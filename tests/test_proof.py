"""The gate: a good export passes and says so, each planted fault stops it with its place."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CORPUS, save_base, write_rows
from training_runs import said_as_written
from transformers import AutoModelForCausalLM

from tunesmith import machine
from tunesmith.errors import ProofError
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.engine import Engine
from tunesmith.proof import gguf as proof
from tunesmith.proof.gguf import Prefix, check_equal, divergence, pick_prefixes, prove_gguf
from tunesmith.recipe import ChatConfig, Recipe
from tunesmith.release.base_gguf import export_base
from tunesmith.release.export import export
from tunesmith.release.merge import merge_weights
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.prepare import prepare
from tunesmith.tokens.rows import load_rows
from tunesmith.tokens.template import chat_template_with
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
        export={"gguf": ["Q8_0", "Q4_K_M"], "prefixes": 24},
        evaluate={"gguf": "Q8_0"},
        chat={"system": SYSTEM},
    )
    run = Run(place / "run")
    prepare(recipe, run, base, [])
    adapter = place / "adapter"
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
    assert done and sorted(record.outputs) == ["made-Q4_K_M.gguf", "made-Q8_0.gguf"]  # F16 was not asked
    proof = json.loads((run.gguf / "proof.json").read_text())
    for kind, facts in record.counts["files"].items():  # how each was written; what was measured is beside it
        assert facts.items() <= proof[kind].items() and {"bytes", "write_s", "tensor_types"} <= facts.keys()
    assert list(proof) == ["F16", "Q8_0", "Q4_K_M"]
    f16, q8, q4 = proof.values()
    assert f16["against_model"]["mean_kl"] <= 1e-4 and f16["against_model"]["top1"] == 1
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


def say_bos(path):
    field(path, "tokenizer.ggml.add_bos_token", 1)


def other_stop(path):
    field(path, "tokenizer.ggml.eos_token_id", 0)


def forget_stop(path):
    data = path.read_bytes()
    assert data.count(TURN_END) == 1
    path.write_bytes(data.replace(TURN_END, TURN_END.replace(b"<|im_end|>", b" " * 10)))


def forget_system(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(SYSTEM.encode(), SYSTEM.upper().encode()))


FAULTS = {
    swap_rotary: r"(?s)is not the merged model: mean KL .*held-out row \d+, token \d+",
    add_noise: r"(?s)is not the merged model: mean KL .*held-out row \d+, token \d+",
    say_bos: r"(?s)llama.cpp has \[1, .*add_bos_token",
    other_stop: r"(?s)llama.cpp has \[0\] where transformers has \[2\].*stop token",
    forget_stop: r"(?s)llama.cpp has .*rows.jsonl:\d+, as the chat template renders it",
    forget_system: r"(?s)llama.cpp has 'NSWER IN ONE LINE.*where transformers has 'nswer in one line",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_fails_the_gate(made, good, fault):
    recipe, run, _ = made
    fault(good)
    with pytest.raises(ProofError, match=FAULTS[fault]):
        prove_gguf(recipe, run, {"F16": good})


def test_with_too_little_memory_the_comparison_with_the_model_is_skipped_and_said(made, good, monkeypatch):
    recipe, run, _ = made
    details, proofs = prove_gguf(recipe, run, {"F16": good})
    assert [proof.skipped_because for proof in proofs] == [None] * 3 and all(p.value <= p.limit for p in proofs)
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 1_000_000)
    less, skipped = prove_gguf(recipe, run, {"F16": good})
    assert [proof.name for proof in skipped] == [proof.name for proof in proofs] and skipped[0] == proofs[0]
    assert [(proof.value, proof.positions) for proof in skipped[1:]] == [(None, 0)] * 2
    assert all("GB of memory, 0.0 GB are free" in str(p) and str(p).startswith("NOT proved") for p in skipped[1:])
    assert details["F16"].keys() - less["F16"].keys() == {"against_model"}
    say_bos(good)  # what needs no memory is looked at all the same
    with pytest.raises(ProofError, match="add_bos_token"):
        prove_gguf(recipe, run, {"F16": good})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_merged_model_that_gives_no_numbers_is_named_before_its_file(made, tmp_path, value):
    recipe, run, _ = made
    broken = Run(tmp_path / "run")
    for stage in (run.data, run.model):
        shutil.copytree(stage, broken.path / stage.name)
    prefixes = pick_prefixes(load_rows(run.data)[1], recipe.export.prefixes)
    weights = load_file(broken.model / "model.safetensors")
    once = next(token for token in prefixes[-1].ids if all(token not in one.ids for one in prefixes if one.row == 0))
    weights["model.embed_tokens.weight"][once, 0] = value
    # the head apart, or that word would be no number everywhere
    weights.setdefault("lm_head.weight", load_file(run.model / "model.safetensors")["model.embed_tokens.weight"])
    save_file(weights, broken.model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ProofError) as caught:
        prove_gguf(recipe, broken, {"F16": tmp_path / "never-opened.gguf"})
    first = next(one for one in prefixes if once in one.ids)
    assert caught.value.what == f"the merged model gives no numbers at held-out row {first.row}, token {len(first.ids)}"
    assert caught.value.fix == "delete model/ and run again" and caught.value.where == str(broken.model)


@pytest.mark.parametrize("pass_tokens", [1, 100, 100_000])
def test_log_probabilities_of_the_model_are_those_of_transformers(made, monkeypatch, pass_tokens):
    _, run, _ = made
    monkeypatch.setattr(proof, "PASS_TOKENS", pass_tokens)
    monkeypatch.setattr(proof, "WORDS", 100)
    prefixes = pick_prefixes(load_rows(run.data)[1], 24)
    found, reason = proof.model_logprobs(run.model, prefixes)
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    with torch.no_grad():
        wanted = [model(torch.tensor([prefix.ids])).logits[0, -1].log_softmax(0) for prefix in prefixes]
    torch.testing.assert_close(torch.from_numpy(found), torch.stack(wanted), rtol=1e-4, atol=1e-4)
    assert reason == ""


def test_an_adapter_merged_twice_fails_the_gate(made, good):
    recipe, run, base = made
    prove_gguf(recipe, run, {"F16": good})  # once is fine
    write_gguf(run.path.parent / "twice", good, "F16", About("made", base.name, None, recipe.chat))
    with pytest.raises(ProofError, match="is not the merged model: mean KL"):
        prove_gguf(recipe, run, {"F16": good})


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


def test_prefixes_are_spread_over_rows_and_end_before_a_supervised_token(made):
    _, run, _ = made
    held_out = load_rows(run.data)[1]
    prefixes = pick_prefixes(held_out, 24)
    assert prefixes == pick_prefixes(held_out, 24) and len(prefixes) == 24
    assert len({prefix.row for prefix in prefixes}) == len(held_out)
    for prefix in prefixes:
        start = held_out.offsets_N1[prefix.row]
        assert held_out.tokens_T[start : start + len(prefix.ids)].tolist() == list(prefix.ids)
        assert held_out.supervised_T[start + len(prefix.ids)]


def test_divergence_is_torchs_and_near_ties_are_counted_apart():
    torch.manual_seed(0)
    ours, theirs = torch.randn(6, 300).log_softmax(1), torch.randn(6, 300).log_softmax(1)
    prefixes = [Prefix((1,) * (n + 1), n) for n in range(6)]
    found = divergence(ours.numpy(), theirs.numpy(), prefixes)
    expected = torch.nn.functional.kl_div(theirs, ours, reduction="none", log_target=True).sum(1)
    assert found.mean_kl == pytest.approx(float(expected.mean())) and found.max_kl == pytest.approx(
        float(expected.max())
    )
    assert found.worst == f"held-out row {int(expected.argmax())}, token {int(expected.argmax()) + 1}"
    top = ours.topk(100, dim=1).indices
    assert found.max_difference_top100 == pytest.approx(float((ours - theirs).gather(1, top).abs().max()))
    tied = ours.clone()
    tied[0, :2] = ours.max() + 1  # two best, equal in the reference
    other = tied.clone()
    other[0, 0] -= 1e-4
    tied[0, 1] -= 1e-4
    found = divergence(tied.numpy(), other.numpy(), prefixes)
    assert (found.top1, found.near_ties) == (1, 1)
    zero = ours.clone()
    zero[0, 7] = -3e38  # as llama.cpp writes a probability of zero
    assert np.isfinite(divergence(ours.numpy(), zero.numpy(), prefixes).mean_kl)


def test_a_divergence_is_never_below_zero():
    """Rounding leaves that of two equal models at -1e-7."""
    ours = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).log_softmax(1).numpy()
    found = divergence(ours, ours + np.float32(1e-6), [Prefix((1,), n) for n in range(4)])
    assert (found.mean_kl, found.max_kl) == (0, 0) and str(found.mean_kl) == "0.0"


def test_not_a_number_is_not_equal():
    logprobs = np.full((1, 200), np.nan, np.float32)
    with pytest.raises(ProofError):
        check_equal(divergence(logprobs, logprobs, [Prefix((1,), 0)]), "a.gguf")


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
