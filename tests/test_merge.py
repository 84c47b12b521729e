"""merge: base and adapter become one folder with the adapter's logits, or the stage fails and nothing is committed."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import save_base
from training_runs import prepare_rows, recipe_with
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith import machine
from tunesmith.decides import gguf_needs
from tunesmith.errors import ProofError, ResumeError
from tunesmith.model.base import Head
from tunesmith.model.lora import LoraLinear
from tunesmith.proof import merged as proof
from tunesmith.proof.merged import prove_merged, prove_stored
from tunesmith.proof.sample import Row, Sample
from tunesmith.record import read_record
from tunesmith.release import merge as merge_module
from tunesmith.release.merge import merge, merge_weights
from tunesmith.runs import commit_stage
from tunesmith.tokens.rows import load_rows
from tunesmith.training.train import train
from tunesmith.weights import tensorfile
from tunesmith.weights.locate import LocatedBase


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def trained(request, tmp_path_factory):
    """A base in each stored type, and a run trained on it."""
    folder = save_base(tmp_path_factory.mktemp("base") / "base", tied=request.param == "float32")
    if request.param == "bfloat16":
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    base = LocatedBase("tiny", folder, "digest", None, None)
    run = prepare_rows(tmp_path_factory.mktemp("run") / "run", folder)
    train(recipe_with(epochs=2), run, base)
    return recipe_with(), run, base, request.param


def files(base):
    return base.folder / "model.safetensors"


@pytest.fixture
def fresh(trained):
    """The same without its merged model."""
    recipe, run, base, stored = trained
    if run.model.exists():
        shutil.rmtree(run.model)
    return recipe, run, base, stored


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_the_merged_folder_has_the_logits_of_peft(fresh):
    from peft import PeftModel

    recipe, run, base, stored = fresh
    record, done = merge(recipe, run, base)
    weights, merged, rounded, choice, relative, bits, stored_bits = record.proofs
    assert done and merged.value <= 1e-3 and merged.positions == rounded.positions == choice.positions > 100
    assert 0 <= relative.value < 0.1 and abs(bits.value - stored_bits.value) < 0.01 and bits.value > 1
    assert 0 <= weights.value <= 1 and weights.positions == sum(t.numel() for t in load_file(files(base)).values())
    assert (weights.value > 0.1) == (rounded.value > 1e-8) == (stored == "bfloat16")  # fp32 rounds by nothing
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        untouched = plain(ids).logits
        wanted = PeftModel.from_pretrained(plain, run.adapter).eval()(ids).logits
        found = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)(ids).logits
    limit = 1e-4 if stored == "float32" else 0.05  # bf16 rounds each weight to 3 digits
    assert (found - wanted).abs().max() < limit < (untouched - wanted).abs().max()
    ours, theirs = load_file(run.model / "model.safetensors"), load_file(base.folder / "model.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in ours.items()} == {n: (t.dtype, t.shape) for n, t in theirs.items()}
    assert merge(recipe, run, base) == (record, False)


def test_tokenizer_and_template_come_along_with_the_system_prompt_in_it(fresh):
    recipe, run, base, _ = fresh
    recipe = recipe.model_copy(update={"chat": recipe.chat.model_copy(update={"system": "Be brief."})})
    merge(recipe, run, base)
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (run.model, base.folder))
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    text = ours.apply_chat_template(messages, tokenize=False)
    assert text == theirs.apply_chat_template([{"role": "system", "content": "Be brief."}, *messages], tokenize=False)
    assert ours(text).input_ids == theirs(text).input_ids and ours.eos_token == theirs.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("config", "generation", "stops"),
    [
        (9, None, [2, 9]),
        ([9, 2], None, [2, 9]),
        (None, None, 2),
        (-1, {"temperature": 0.6}, 2),
        (5, {"eos_token_id": [9, 7, 2], "temperature": 0.6}, [2, 9, 7]),  # as Llama 3's, which has three
        (5, {"eos_token_id": None}, 2),
    ],
)
def test_the_stop_tokens_of_the_base_are_kept_after_the_templates(fresh, tmp_path, config, generation, stops):
    """What generation_config.json says counts before config.json, as for transformers; its other fields stay."""
    recipe, run, base, _ = fresh
    folder = shutil.copytree(base.folder, tmp_path / "base")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"eos_token_id": config}))
    (folder / "generation_config.json").unlink()
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    merge(recipe, run, LocatedBase("tiny", folder, "digest", None, None))
    ours, theirs = (json.loads((run.model / name).read_text()) for name in ("config.json", "generation_config.json"))
    assert ours == settings | {"eos_token_id": stops} and theirs["eos_token_id"] == stops
    assert theirs.get("temperature") == (generation or {}).get("temperature")


def test_what_the_cache_says_of_its_entry_does_not_come_along(fresh, tmp_path):
    recipe, run, base, _ = fresh
    folder = tmp_path / "entry"
    shutil.copytree(base.folder, folder)
    (folder / "digests.json").write_text("{}")
    merge(recipe, run, LocatedBase("tiny", folder, "digest", None, None))
    assert not (run.model / "digests.json").exists() and (run.model / "tokenizer.json").exists()


def test_a_merge_that_changes_the_logits_fails_and_commits_nothing(fresh, monkeypatch):
    recipe, run, base, _ = fresh
    real = LoraLinear.merge_in_place
    monkeypatch.setattr(LoraLinear, "merge_in_place", lambda layer: [real(layer), layer.base.weight.data.mul_(1.01)])
    with pytest.raises(ProofError, match="merging changes the logits"):
        merge(recipe, run, base)
    assert not run.model.exists()


def test_an_adapter_merged_twice_fails(fresh, monkeypatch, tmp_path):
    recipe, run, base, _ = fresh

    def twice(folder, adapter, out):
        merge_weights(folder, adapter, tmp_path)
        for path in folder.glob("*.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        merge_weights(tmp_path, adapter, out)

    monkeypatch.setattr(merge_module, "merge_weights", twice)
    with pytest.raises(ProofError, match="is not stored as it was merged"):
        merge(recipe, run, base)
    assert not run.model.exists()


def test_a_weight_merged_in_pieces_is_the_same(fresh, tmp_path, monkeypatch):
    _, run, base, _ = fresh
    (tmp_path / "whole").mkdir()
    (tmp_path / "pieces").mkdir()
    merge_weights(base.folder, run.adapter, tmp_path / "whole")
    monkeypatch.setattr(tensorfile, "PIECE_BYTES", 4 * 64 * 3)  # three rows of 64 numbers
    merge_weights(base.folder, run.adapter, tmp_path / "pieces")
    whole, pieces = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys() and len(whole) > 10
    for name, tensor in whole.items():  # products of other shapes may round in another order
        torch.testing.assert_close(
            pieces[name], tensor, rtol=1e-2 if tensor.dtype == torch.bfloat16 else 1e-5, atol=1e-6
        )


@pytest.mark.parametrize("change", ["a norm", "an adapted weight", "one is missing", "another shape"])
def test_each_stored_weight_is_checked_also_where_memory_is_short(fresh, tmp_path, monkeypatch, change):
    """The norm has no adapter; of the adapted weight one number of thousands moves, by less than the logits show."""
    _, run, base, _ = fresh
    merge_weights(base.folder, run.adapter, tmp_path)
    assert prove_stored(base.folder, run.adapter, tmp_path).value <= 1
    tensors = load_file(tmp_path / "model.safetensors")
    norm, weight = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.down_proj.weight"
    if change == "a norm":
        tensors[norm][7] += 0.01
    elif change == "an adapted weight":
        tensors[weight][5, 9] *= 1.02
    elif change == "another shape":
        tensors[weight] = tensors[weight][:-1].clone()
    else:
        del tensors[norm]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 1000)
    with pytest.raises(ProofError, match=r"is not stored as it was merged|not stored in the base's type and shape"):
        prove_merged(base.folder, run.adapter, tmp_path, load_rows(run.data)[1])


def test_with_too_little_memory_it_is_said_and_a_later_run_does_the_proof_alone(fresh, monkeypatch, capsys):
    recipe, run, base, _ = fresh
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 1_000_000)
    record, done = merge(recipe, run, base)
    weights, *logits = record.proofs
    assert done and weights.value <= 1 and len(record.unproved) == len(logits) == 4
    assert {(one.value, one.positions) for one in logits} == {(None, 0)}
    said = capsys.readouterr().err
    assert "NOT proved: merged = adapter, logits in fp32: it needs 0." in said and "0.0 GB are free" in said
    assert merge(recipe, run, base) == (record, False)  # still too little: as it was
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.model.iterdir()}
    later = commit_stage(run.gguf, *gguf_needs(recipe, run, base.digest), lambda draft: {})
    monkeypatch.undo()
    assert capsys.readouterr().err.count("NOT proved") == 4
    proved, done = merge(recipe, run, base)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.model.iterdir()}
    assert not done and not proved.unproved and all(one.value <= one.limit for one in proved.proofs[:3])
    assert proved.outputs == record.outputs and proved == read_record(run.model)
    assert "NOT proved" not in capsys.readouterr().err
    assert {name for name in after if after[name] != before[name]} == {"record.json"}
    assert commit_stage(run.gguf, *gguf_needs(recipe, run, base.digest), lambda draft: {}) == (later[0], False)
    shutil.rmtree(run.gguf)


def test_a_damaged_model_that_was_not_proved_is_caught_later(fresh, monkeypatch):
    recipe, run, base, _ = fresh
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 1_000_000)
    merge(recipe, run, base)
    monkeypatch.undo()
    data = (run.model / "model.safetensors").read_bytes()
    (run.model / "model.safetensors").write_bytes(data[:-100] + bytes(100))
    with pytest.raises(ProofError, match="is not stored as it was merged"):
        merge(recipe, run, base)


@pytest.mark.parametrize("pieces", [1, 7, 512, 4096])
def test_logits_are_compared_as_torch_does_it_whole(pieces, monkeypatch):
    torch.manual_seed(0)
    wanted, merged, stored = (torch.randn(5, 16) for _ in range(3))
    head, other = torch.randn(512, 16), torch.randn(512, 16)
    monkeypatch.setattr(proof, "PIECE_BYTES", 4 * 16 * pieces)
    model, rounded = (SimpleNamespace(head_pieces=lambda c, w=w: (Head(p) for p in w.split(c))) for w in (head, other))
    row = Row(0, (1, 2, 3), (0, 2), (7, 500), (False, True), answer_bytes=3)
    found = proof._Logits(5, [1, 4], Sample((row,)), torch.device("cpu"))
    found.compare((model, wanted, merged), (rounded, stored))
    whole, theirs = wanted @ head.T, stored @ other.T
    torch.testing.assert_close(found.difference_T, (merged @ head.T - whole).abs().amax(1))
    kl = F.kl_div(theirs.log_softmax(1), whole.log_softmax(1), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(found.kl_T.float(), kl, rtol=1e-4, atol=1e-4)
    assert found.other_T.tolist() == (whole.argmax(1) != theirs.argmax(1)).tolist()
    apart, size = (one - one.mean(dim=1, keepdim=True) for one in (whole - theirs, whole))
    torch.testing.assert_close(found.relative_T.float(), apart.norm(dim=1) / size.norm(dim=1), rtol=1e-4, atol=1e-4)
    for bits, logits in zip(found.bits_per_byte(), (whole, theirs), strict=True):
        assert bits == pytest.approx(float(-logits.log_softmax(1)[1, 7]) / math.log(2) / 3, rel=1e-4)
    first, other = whole[2].argmax(), theirs[2].argmax()
    assert found.choices(2) == (
        f"the adapter has token {first} first (logit {whole[2, first]:.3f}), "
        f"the stored model {other} ({theirs[2, other]:.3f})"
    )


def test_what_differs_is_named_by_row_and_token(fresh):
    rows = load_rows(fresh[1].data)[1]
    each_T = torch.zeros(len(rows.tokens_T))
    first = int(rows.lengths_N[0])
    each_T[[first + 3, first + 5]] = torch.tensor([0.5, 0.9])
    error = proof._unequal("merging", 0.9, 0.1, each_T, proof._first_rows(rows))
    assert error.where == f"first at held-out row 1, after token 3 (id {rows.tokens_T[rows.offsets_N1[1] + 3]}): 0.5"


def test_an_adapter_of_another_base_is_refused(fresh, tmp_path):
    _, run, base, _ = fresh
    tensors = load_file(run.adapter / "adapter_model.safetensors")
    save_file(
        {n.replace("layers.0", "layers.7"): t for n, t in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ResumeError, match=r"no weight for model\.layers\.7"):
        merge_weights(base.folder, tmp_path, tmp_path)
