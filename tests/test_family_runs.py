"""A whole run of each family, from conversations to answers, on its tiny model: trained, merged, exported, proved."""

import json
import shutil
from types import SimpleNamespace

import gguf
import pytest
import torch
from plain_loop import reference_steps, steps_of
from safetensors.torch import load_file, save_file
from small_project import write_project
from tiny import write_rows
from tiny_families import TINY, save_family
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tunesmith.gguf.pretokenizers import read_tokenizer
from tunesmith.pipeline import run_stages
from tunesmith.proof.texts import is_composing
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.runs import Run
from tunesmith.tokens.rows import load_rows
from tunesmith.weights.locate import LocatedBase

STOPS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eos_token_id")
WINDOW = 24  # tokens; rows have up to a hundred
WINDOWED = {
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
}
"""llama.cpp has no windows for these: rows longer than one are trained, and no GGUF is made."""
RUNS = [*TINY, *(f"{name} with a window" for name in WINDOWED)]
CHANGED = {"gemma3": {"sliding_window": WINDOW}, "phi4": {"original_max_position_embeddings": 512}}
"""Above these positions of Phi-4's the rotary scaling changes: in transformers with the longest row of a batch, in
llama.cpp with the context, a multiple of 256.
"""
TRAIN = (
    "{tokens_per_step: 256, max_length: 256, epochs: 2, lr: 1e-2, precision: fp32, evaluate_every: 9 steps,"
    " early_stopping: null, sample: false}"
)


@pytest.fixture(scope="module", params=RUNS)
def made(request, tmp_path_factory):
    """A family's base, and a run that trained it on conversations with one to three answers."""
    name, _, windowed = request.param.partition(" ")
    folder, config = tmp_path_factory.mktemp(name), (WINDOWED if windowed else CHANGED).get(name, {})
    base = save_family(folder / "base", name, **config)
    types = "[]" if windowed else "[F16]"
    answers = "{prompts: prompts.yaml, max_tokens: 4, threads: 1, gguf: F16}"
    recipe = write_project(folder, base, train=TRAIN, export=f"{{gguf: {types}, positions: 20}}", evaluate=answers)
    write_rows(folder / "rows.jsonl", [(f"What is {n}?", f"It is {n}.") * (1 + n % 3) for n in range(14)])
    run = Run(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        recipe = read_recipe(recipe)
        run_stages(recipe, run)
    return SimpleNamespace(family=TINY[name], base=base, recipe=recipe, run=run, config=config)


def test_letters_in_parts_end_no_export_and_are_said(tmp_path, own_cache, capsys):
    """Qwen's tokenizer composes them, and llama.cpp does not: nobody could mend the files. Gemma's does not either."""
    base = save_family(tmp_path / "base", "qwen2")
    assert is_composing(read_tokenizer(base))
    assert not any(is_composing(read_tokenizer(save_family(tmp_path / name, name))) for name in ("gemma3", "phi3"))
    recipe = write_project(
        tmp_path, base, train=TRAIN, export="{gguf: [Q8_0], positions: 40}",
        evaluate="{prompts: prompts.yaml, max_tokens: 4, threads: 1}",
    )  # fmt: skip
    write_rows(
        tmp_path / "rows.jsonl", [(f"Cafe\u0301 nai\u0308ve {n}?", f"It is re\u0301ussi {n}.") for n in range(14)]
    )
    assert run_stages(read_recipe(recipe), Run(tmp_path / "run")).done
    said = " ".join(capsys.readouterr().err.split())
    assert "held-out conversations have letters in parts" in said


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_losses_and_gradients_are_those_of_transformers_and_peft(made):
    base, (rows, _) = LocatedBase("tiny", made.base, "digest", None, None), load_rows(made.run.data)
    ours, theirs = steps_of(made.run), reference_steps(made.recipe, rows, base)
    assert len(ours) == len(theirs) >= 3 and len({loss for loss, _ in ours}) == len(ours)
    for (loss, norm), (their_loss, their_norm) in zip(ours, theirs, strict=True):
        assert loss == pytest.approx(their_loss, rel=1e-4)
        assert norm == pytest.approx(their_norm, rel=1e-3)  # AdamW's first steps take rounding up to the rate
    assert max(rows.lengths_N) > 2 * made.config.get("sliding_window", 0)


def test_every_proof_holds_and_every_linear_layer_is_merged(made):
    stages = [made.run.data, made.run.adapter, made.run.model, *([made.run.gguf] if made.recipe.export.gguf else [])]
    proofs = [proof for folder in stages for proof in read_record(folder).proofs]
    assert len(proofs) >= 6 and all(proof.holds and not proof.skipped_because for proof in proofs)
    before, after = (load_file(folder / "model.safetensors") for folder in (made.base, made.run.model))
    changed = {name.rpartition(".")[0].rpartition(".")[2] for name in before if not before[name].equal(after[name])}
    fused = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    single = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert before.keys() == after.keys() and changed == (fused if made.family.kind == "phi3" else single)


def stops_of(folder):
    """The tokens that end an answer, by each file that says so."""
    said = [
        json.loads((folder / name).read_text())["eos_token_id"] for name in ("config.json", "generation_config.json")
    ]
    return [stops if isinstance(stops, list) else [stops] for stops in said]


def test_every_file_says_the_same_stop_tokens_and_the_templates_comes_first(made):
    """The GGUF's own two are among them: its end of text is the tokenizer's, its end of turn the template's."""
    tokenizer = AutoTokenizer.from_pretrained(made.run.model)
    end, eos = tokenizer.convert_tokens_to_ids([made.family.end_of_turn, made.family.eos])
    in_config, in_generation = stops_of(made.run.model)
    assert in_config == in_generation == list(dict.fromkeys([end, eos]))
    assert tokenizer.eos_token_id == eos
    for kind in made.recipe.export.gguf:
        fields = gguf.GGUFReader(made.run.gguf_file("small", kind)).fields
        in_gguf = [fields[key].contents() for key in STOPS if key in fields]
        assert in_gguf == in_config
    stated = GenerationConfig.from_pretrained(made.run.model).eos_token_id
    assert (stated if isinstance(stated, list) else [stated]) == in_config


def only_says(folder, token):
    """Let the model say one token after any text: its layers add nothing, all embeddings point one way."""
    held = load_file(folder / "model.safetensors")
    for name, tensor in held.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "o_proj.bias", "down_proj.bias")):
            tensor.zero_()
    held["model.embed_tokens.weight"][:] = 1.0
    if "lm_head.weight" in held:
        held["lm_head.weight"][:] = 0.0
        held["lm_head.weight"][token] = 1.0
    held["model.embed_tokens.weight"][token] = 2.0
    held["model.norm.weight"][:] = 1.0
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def test_transformers_stops_where_the_template_does_without_being_told(made, tmp_path):
    folder = shutil.copytree(made.run.model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids(made.family.end_of_turn)
    only_says(folder, end)
    chat = [{"role": "user", "content": "What is 3?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    told = AutoModelForCausalLM.from_pretrained(folder).generate(**asked, max_new_tokens=5)
    assert told[0, asked["input_ids"].shape[1] :].tolist() == [end]
    only_says(folder, word := tokenizer.convert_tokens_to_ids("e"))  # and does not stop at any other
    told = AutoModelForCausalLM.from_pretrained(folder).generate(**asked, max_new_tokens=5)
    assert told[0, asked["input_ids"].shape[1] :].tolist() == [word] * 5
    assert torch.equal(told[:, : asked["input_ids"].shape[1]], asked["input_ids"])
