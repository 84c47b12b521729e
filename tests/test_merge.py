"""merge: base and adapter become one folder with the adapter's logits, or the stage fails and nothing is committed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_base
from training_runs import prepare_rows, recipe_with
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.errors import ProofError, ResumeError
from tunesmith.model.lora import LoraLinear
from tunesmith.release import merge as merge_module
from tunesmith.release.merge import merge, merge_weights
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


@pytest.fixture
def fresh(trained):
    """The same without its merged model."""
    recipe, run, base, stored = trained
    if run.model.exists():
        import shutil

        shutil.rmtree(run.model)
    return recipe, run, base, stored


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_the_merged_folder_has_the_logits_of_peft(fresh):
    from peft import PeftModel

    recipe, run, base, stored = fresh
    record, done = merge(recipe, run, base)
    merged, rounded = record.proofs
    assert done and merged.value <= 1e-3 and merged.positions == rounded.positions > 100
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
