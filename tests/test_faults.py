"""Faults that a writer may have, on a model with what a plain Llama lacks: biases, rope factors, a start token."""

import json
import platform

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from second_llama import logits_of
from tiny import CHATML, CORPUS, save_base, save_tokenizer, write_rows
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM

from tunesmith.errors import ProofError
from tunesmith.gguf import write as writer
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.engine import Engine
from tunesmith.inference.logits import sequence_logits
from tunesmith.proof.gguf import prove_gguf
from tunesmith.proof.texts import CONVERSATIONS, held_out_rows
from tunesmith.recipe import Recipe
from tunesmith.runs import Run, commit_stage
from tunesmith.tokens.prepare import prepare
from tunesmith.tokens.rows import load_rows
from tunesmith.tokens.template import end_of_turn_id
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.locate import LocatedBase

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


def save_rich_base(folder):
    """A random Llama with biases, scaled rotary frequencies, and a tokenizer that puts <s> first."""
    save_base(folder, initializer_range=0.2, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3)
    save_tokenizer(
        folder, template="{{ bos_token }}" + CHATML, specials=("<s>", "<|im_start|>", "<|im_end|>"), bos="<s>"
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": 0}))
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    biases = {name: torch.randn(tensor.shape) / 4 for name, tensor in weights.items() if name.endswith(".bias")}
    save_file(weights | biases, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """(recipe, run): a run whose merged model is that base."""
    place = tmp_path_factory.mktemp("rich")
    folder = save_rich_base(place / "base")
    words = CORPUS.read_text().split()
    texts = [" ".join(words[i : i + 9]) for i in range(0, 300, 3)]
    rows = write_rows(place / "rows.jsonl", [texts[i : i + 4] for i in range(0, len(texts), 4)])
    (place / "prompts.yaml").write_text("- What is a step?\n- Why is the sky blue?\n")
    recipe = Recipe(
        name="rich", base="rich", data={"sources": [{"path": str(rows)}], "held_out": 0.3},
        export={"positions": 60}, evaluate={"threads": 1, "prompts": str(place / "prompts.yaml")},
    )  # fmt: skip
    run = Run(place / "run")
    prepare(recipe, run, LocatedBase("rich", folder, "digest", None, None), [])
    commit_stage(run.model, {}, {}, lambda draft: save_rich_base(draft) and {})
    return recipe, run


def proved(rich, folder, kind="F16", **about):
    """Write the file, and prove it."""
    recipe, run = rich
    stop = end_of_turn_id(load_tokenizer(run.model))
    path = folder / f"rich-{kind}.gguf"
    write_gguf(run.model, path, kind, About("rich", "rich", None, recipe.chat, **{"end_of_turn": stop} | about))
    return prove_gguf(recipe, run, {kind: path}, folder)


def without(kept):
    """A writer that leaves tensors out."""
    plan = writer.plan_tensors
    return lambda *given: [tensor for tensor in plan(*given) if kept(tensor.name)]


def test_biases_scaled_frequencies_and_a_start_token_pass(rich, tmp_path):
    facts, proofs = proved(rich, tmp_path)
    assert all(proof.holds for proof in proofs) and facts["F16"]["greedy"]["prompts"] == 2
    assert facts["F16"]["stops"] == 1 and facts["F16"]["against_model"]["mean_kl"] < 1e-4


LOST = {
    "bias": (
        lambda name: name != "blk.1.attn_q.bias",
        r"lacks blk.1.attn_q.bias \(model.layers.1.self_attn.q_proj.bias",
    ),
    "biases": (lambda name: not name.endswith(".bias"), r"lacks blk.0.ffn_down.bias .* and 11 more"),
    "rope factors": (lambda name: name != "rope_freqs.weight", r"lacks rope_freqs.weight \(the factors of .* llama3\)"),
}


@pytest.mark.parametrize("what", LOST)
def test_tensors_that_llama_cpp_does_not_miss_are_missed(rich, tmp_path, monkeypatch, what):
    kept, said = LOST[what]
    monkeypatch.setattr(writer, "plan_tensors", without(kept))
    with pytest.raises(ProofError, match=f"rich-F16.gguf is not the merged model: it {said}"):
        proved(rich, tmp_path)


def test_a_bias_that_is_zero_is_named(rich, tmp_path, monkeypatch):
    encoded = writer._encoded

    def forgetful(tensor, rows):
        return encoded(tensor, rows) * (tensor.name != "blk.1.attn_v.bias")

    monkeypatch.setattr(writer, "_encoded", forgetful)
    with pytest.raises(ProofError, match=r"; not the model's: blk.1.attn_v.bias \(relative difference 1\)"):
        proved(rich, tmp_path)


def test_a_start_token_that_the_file_does_not_add_is_named(rich, tmp_path, monkeypatch):
    monkeypatch.setattr(writer.gguf.GGUFWriter, "add_add_bos_token", lambda *_: None)
    with pytest.raises(ProofError, match=r"(?s)llama.cpp has .* where transformers has \[0, .*add_bos_token") as caught:
        proved(rich, tmp_path)
    assert "its tokenizer.ggml.add_bos_token is None, and the model's is True" in caught.value.what


def test_a_word_as_stop_token_is_named(rich, tmp_path):
    """llama.cpp would end answers in the middle."""
    with pytest.raises(ProofError, match=r"ends an answer at '.*' \(token 300\) too, and the model does not"):
        proved(rich, tmp_path, end_of_turn=300)


def test_an_end_of_turn_that_does_not_end_is_named(rich, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "stops_at", lambda self, ids, token: self.go_on([*ids, token], 2) == [])
    with pytest.raises(ProofError, match=r"does not stop: llama.cpp goes on after '<\|im_end\|>' \(token 2\)"):
        proved(rich, tmp_path)


def test_the_server_says_whether_a_token_ends_the_answer(rich, tmp_path):
    recipe, run = rich
    write_gguf(run.model, tmp_path / "a.gguf", "F16", About("rich", "rich", None, recipe.chat, end_of_turn=2))
    with Engine(tmp_path / "a.gguf", threads=1, context=256) as engine:
        assert engine.stops_at([0, 1, 300, 301], 2) and not engine.stops_at([0, 1, 300, 301], 302)
        one = engine.go_on([0, 1, 300], 5)
        assert one == [int(engine.next_token_logprobs([0, 1, 300, *one[:n]]).argmax()) for n in range(5)]


def test_an_answer_that_is_not_the_models_fails_where_it_parts(rich, tmp_path, monkeypatch):
    """Only where the model finds its own token much more likely; else it is a near tie, and counted."""
    go_on = Engine.go_on
    monkeypatch.setattr(Engine, "go_on", lambda self, ids, count: [*go_on(self, ids, 3), 7, 8])
    with pytest.raises(ProofError, match="evaluation prompt 1 otherwise than the merged model") as caught:
        proved(rich, tmp_path)
    assert (
        caught.value.where.startswith("token 4 of the answer: the model has ") and "(token 7, -" in caught.value.where
    )
    assert "each of its tensors is the model's" in caught.value.what
    recipe, run = rich
    patient = recipe.export.model_copy(update={"limits": recipe.export.limits.model_copy(update={"near_tie": 50.0})})
    facts, proofs = proved((recipe.model_copy(update={"export": patient}), run), tmp_path)
    greedy = facts["F16"]["greedy"]
    assert (greedy["prompts"], greedy["near_ties"], greedy["tokens"]) == (2, 2, 8) and 0.1 < greedy["widest_tie"] < 50
    assert proofs[-1].holds and proofs[-1].positions == 8


def test_without_prompts_the_answers_are_skipped_with_the_reason(rich, tmp_path):
    recipe, run = rich
    gone = recipe.evaluate.model_copy(update={"prompts": str(tmp_path / "gone.yaml")})
    facts, proofs = proved((recipe.model_copy(update={"evaluate": gone}), run), tmp_path)
    assert "gone.yaml cannot be read" in proofs[-1].skipped_because and "greedy" not in facts["F16"]


def test_a_limit_for_smaller_files_stops_one_that_is_beyond_it(rich, tmp_path, monkeypatch):
    recipe, run = rich
    files = {kind: tmp_path / f"rich-{kind}.gguf" for kind in ("F16", "Q4_K_M")}
    for kind, path in files.items():
        write_gguf(run.model, path, kind, About("rich", "rich", None, recipe.chat, end_of_turn=2))
    facts, proofs = prove_gguf(recipe, run, files, tmp_path)
    assert facts["Q4_K_M"]["against_F16"]["mean_kl"] > 1e-3
    assert next(proof for proof in proofs if proof.name == "Q4_K_M against F16, mean KL in nats").limit is None
    strict = recipe.export.model_copy(update={"limits": recipe.export.limits.model_copy(update={"quantised_kl": 1e-3})})
    with pytest.raises(ProofError, match=r"rich-Q4_K_M.gguf is too far from F16: mean KL .* \(limit 0.001\)") as caught:
        prove_gguf(recipe.model_copy(update={"export": strict}), run, files, tmp_path)
    assert "raise export.limits.quantised_kl" in caught.value.fix and "first at held-out row" in caught.value.where


def test_no_more_conversations_than_enough_are_compared_spread_over_all(rich, monkeypatch):
    _, run = rich
    rows = held_out_rows(run)
    assert len(rows) == 3 < CONVERSATIONS
    monkeypatch.setattr("tunesmith.proof.texts.CONVERSATIONS", 2)
    assert held_out_rows(run) == [rows[0], rows[-1]]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the second build's structs are not known")
@pytest.mark.parametrize(("kind", "apart"), [("F16", 0.02), ("Q8_0", 0.2)])  # activations are rounded to 8 bits there
def test_another_build_of_llama_cpp_has_the_same_logits(rich, tmp_path, kind, apart):
    """With biases and scaled frequencies, far beyond the length that these were made for."""
    recipe, run = rich
    path = tmp_path / "a.gguf"
    write_gguf(run.model, path, kind, About("rich", "rich", None, recipe.chat, end_of_turn=2))
    ids = load_rows(run.data)[1].tokens_T[:100].tolist()
    ours = np.concatenate(list(sequence_logits(path, [(ids, range(100))], threads=1, window=tmp_path / "window")))
    theirs = logits_of(path, ids, tmp_path)
    assert theirs.shape == ours.shape == (100, 512)
    np.testing.assert_allclose(theirs, ours, atol=apart * ours.std())
    if kind == "F16":
        model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
        with torch.no_grad():
            np.testing.assert_allclose(theirs, model(torch.tensor([ids])).logits[0].numpy(), atol=0.02 * ours.std())
