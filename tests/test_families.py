"""Whether a base can go the whole way is known before prepare: nothing fails at merge or export, hours later."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import CHATML, save_base, save_tokenizer, write_rows
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from tunesmith.errors import BaseError, RecipeError
from tunesmith.gguf import supported as judge
from tunesmith.gguf.read import convert
from tunesmith.gguf.supported import supported
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.engine import Engine
from tunesmith.model.base import load_base
from tunesmith.model.lora import attach, refuse_unmergeable
from tunesmith.pipeline import run_stages
from tunesmith.proof import packing
from tunesmith.recipe import ChatConfig, Recipe
from tunesmith.record import read_record
from tunesmith.release.base_gguf import export_base
from tunesmith.runs import Run
from tunesmith.stages import STAGES, stage_of
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.locate import locate_base
from tunesmith.weights.small_files import chat_template

ABOUT = About("tiny", "tiny", None, ChatConfig())
SIZES = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


def recipe_of(base="org/model", gguf=("F16", "Q8_0"), max_length=256, **changes):
    return Recipe(
        name="tiny",
        base=str(base),
        data={"sources": [{"path": "rows.jsonl"}], "held_out": 0.25},
        lora={"rank": 4},
        train={"max_length": max_length, "tokens_per_step": 1024, "precision": "fp32", "evaluate_every": "4 steps"},
        export={"gguf": gguf, "positions": 8},
        **changes,
    )


def save_family(folder, kind, **config):
    """A random model of any family of transformers, with the tiny tokenizer."""
    save_tokenizer(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SIZES | config))).save_pretrained(folder)
    return folder


def edit(path, **changes):
    """Change fields of a JSON file; None takes one out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.fixture
def folder(tmp_path):
    """A small base that a test may spoil."""
    return save_base(tmp_path / "mine", width=16, layers=2)


def config(**changes):
    return lambda folder: edit(folder / "config.json", **changes)


def tensors(change):
    def spoil(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return spoil


def dynamic(folder):
    edit(folder / "config.json", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})


def special_token_beyond(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = tokenizer["added_tokens"]
    edit(folder / "tokenizer.json", added_tokens=[*added, added[0] | {"id": 512, "content": "<image>"}])


def llama3(**changes):
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64} | changes
    return config(rope_parameters={name: value for name, value in rope.items() if value is not None})


UNPACKED = {
    "mamba": "Mamba", "mpt": "Mpt", "falcon": "Falcon", "bloom": "Bloom", "stablelm": "StableLm", "rwkv": "Rwkv",
    "qwen3_next": "Qwen3Next",
}  # fmt: skip
ALWAYS = {  # what neither trains nor exports
    "Qwen2ForCausalLM by its model_type qwen2": config(model_type="qwen2"),
    "does not have: it comes with Python code of its own.*never run": config(
        architectures=["MyForCausalLM"], model_type="my", auto_map={"AutoModelForCausalLM": "modeling_my.MyForCausalLM"}
    ),
    "model_type my, which transformers .* does not have": config(architectures=["MyForCausalLM"], model_type="my"),
    "model_type is missing": config(model_type=None),
    "mixture of 8 experts": config(architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=8),
    r"takes 128 tokens \(max_position_embeddings in config.json\), and train.max_length is 256": config(
        max_position_embeddings=128
    ),
    "is stored as I8": tensors(lambda held: held.update({"model.norm.weight": torch.zeros(16, dtype=torch.int8)})),
    "is stored as F8_E4M3": tensors(
        lambda held: held.update({"model.norm.weight": torch.zeros(16, dtype=torch.float8_e4m3fn)})
    ),
    "no whole safetensors": lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
    "more tokens than vocab_size 511: ids up to 511": config(vocab_size=511),
    "is BertLMHeadModel": config(architectures=["BertLMHeadModel"], model_type="bert"),
    "is RobertaForCausalLM, an encoder": config(architectures=["RobertaForCausalLM"], model_type="roberta"),
    "is ElectraForCausalLM, an encoder": config(architectures=["ElectraForCausalLM"], model_type="electra"),
    "tokenizer.json cannot be read": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    **{
        f"is {name}ForCausalLM, whose attention cannot be packed": config(
            architectures=[f"{name}ForCausalLM"], model_type=kind
        )
        for kind, name in UNPACKED.items()
    },
}
IN_A_GGUF = {  # what trains, and cannot be exported
    "rotary scaling dynamic": dynamic,
    "high_freq_factor is missing": llama3(high_freq_factor=None),
    "low_freq_factor is 9.0, which is not below": llama3(low_freq_factor=9),
    "factor is -1, which is no number above zero": llama3(factor=-1),
    "partial_rotary_factor is 0.5": llama3(partial_rotary_factor=0.5),
    "hidden_act is 'gelu'": config(hidden_act="gelu"),
    "tensor model.layers.1.mlp.up_proj.weight is missing": tensors(
        lambda held: held.pop("model.layers.1.mlp.up_proj.weight")
    ),
    "tensor model.extra has no place": tensors(lambda held: held.update({"model.extra": torch.zeros(2)})),
    "tensor model.mask has no place": tensors(
        lambda held: held.update({"model.mask": torch.ones(2, dtype=torch.bool)})
    ),
    "model.norm.weight is .8., and config.json asks for .16.": tensors(
        lambda held: held.update({"model.norm.weight": torch.zeros(8)})
    ),
    "lm_head.weight is missing": config(tie_word_embeddings=False),
    "self_attn.q_proj.bias is missing, and 7 more": config(attention_bias=True),
    "no tokenizer known here for BPE": lambda folder: edit(
        folder / "tokenizer.json", pre_tokenizer={"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}
    ),
    "no tokenizer known here for Unigram": lambda folder: edit(
        folder / "tokenizer.json", model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.0]]}
    ),
}


def test_a_plain_llama_is_supported(folder):
    supported(folder, recipe_of())
    edit(folder / "config.json", sliding_window=8, use_sliding_window=True)  # a Llama has no such layers
    tensors(lambda held: held.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}))(folder)
    supported(folder, recipe_of())
    write_gguf(folder, folder.parent / "a.gguf", "F16", ABOUT)


@pytest.mark.parametrize("what", [*ALWAYS, *IN_A_GGUF])
def test_what_would_fail_later_is_refused_at_once_by_name(folder, what):
    (ALWAYS | IN_A_GGUF)[what](folder)
    with pytest.raises(BaseError, match=f"(?s){what}") as caught:
        supported(folder, recipe_of(folder))
    assert caught.value.fix and caught.value.exit_code == 4


def test_a_special_token_beyond_the_embedding_is_left_out_of_a_gguf(folder):
    special_token_beyond(folder)  # as Gemma 3's for images
    supported(folder, recipe_of())
    write_gguf(folder, folder.parent / "a.gguf", "F16", ABOUT)
    with Engine(folder.parent / "a.gguf", threads=1, context=256) as engine:
        assert len(engine.tokenize("<image>")) > 1


@pytest.mark.parametrize("what", [*ALWAYS, *IN_A_GGUF])
def test_without_a_gguf_only_what_training_and_merging_need_is_asked(folder, what):
    (ALWAYS | IN_A_GGUF)[what](folder)
    if what in ALWAYS:
        with pytest.raises(BaseError, match=f"(?s){what}"):
            supported(folder, recipe_of(gguf=()))
    else:
        supported(folder, recipe_of(gguf=()))


@pytest.mark.parametrize(
    ("kind", "config", "name"),
    [
        ("mixtral", {"num_local_experts": 4}, "MixtralForCausalLM"),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}, "Qwen3MoeForCausalLM"),
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 8, "max_position_embeddings": 131072}, "GptOssForCausalLM"),
    ],
)
@pytest.mark.parametrize("gguf", [(), ("F16", "Q8_0")])
def test_experts_are_refused_by_name_in_the_config_and_in_the_weights(tmp_path, kind, config, name, gguf):
    folder = save_family(tmp_path / "base", kind, **config)
    with pytest.raises(BaseError, match=rf"{name}\) is a mixture of 4 experts, which would get no adapter"):
        supported(folder, recipe_of(gguf=gguf))
    edit(
        folder / "config.json", num_local_experts=None, num_experts=None, quantization_config={"quant_method": "mxfp4"}
    )
    with pytest.raises(BaseError, match=rf"{name}\) is a mixture of experts"):  # and not: look for another form of it
        locate_base(str(folder), convert, lambda found: supported(found, recipe_of(gguf=gguf)))


@pytest.mark.parametrize(
    ("kind", "config", "longest"),
    [
        ("mistral", {"sliding_window": 100}, 512),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1}, 512),
        ("gemma3_text", {"head_dim": 8, "sliding_window": 100, "num_hidden_layers": 6}, 512),
        ("mistral", {"attention_chunk_size": 100, "layer_types": ["full_attention", "chunked_attention"]}, 100),
        ("mistral", {"attention_chunk_size": 100, "layer_types": ["full_attention"] * 2}, 512),
        ("phi3", {"max_position_embeddings": 512, "original_max_position_embeddings": 64, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}}, 64),
    ],
)  # fmt: skip
def test_rows_are_no_longer_than_chunks_positions_and_what_packing_keeps(tmp_path, kind, config, longest):
    folder = save_family(tmp_path / "base", kind, **config)
    supported(folder, recipe_of(gguf=(), max_length=longest))
    with pytest.raises(BaseError, match=rf"takes {longest} tokens.*train.max_length is {longest + 1}") as caught:
        supported(folder, recipe_of(gguf=(), max_length=longest + 1))
    assert f"lower train.max_length to {longest} or less" in caught.value.fix


def test_rows_that_stand_count_by_their_own_length(folder):
    edit(folder / "config.json", max_position_embeddings=128)
    supported(folder, recipe_of(), longest=128)
    with pytest.raises(BaseError, match=r"takes 128 tokens.*a row has 129"):
        supported(folder, recipe_of(), longest=129)


@pytest.mark.parametrize(
    ("kind", "config", "field"),
    [
        ("llama", {"logits_scaling": 8.0}, "logits_scaling is 8.0"),  # Granite alone divides by it
        ("granite", {"logits_scaling": 0.0}, "logits_scaling is 0.0"),
        ("gemma2", {}, "final_logit_softcapping"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ],
)
def test_a_head_or_attention_that_does_what_is_not_known_here_is_refused(tmp_path, kind, config, field):
    folder = save_family(tmp_path / "base", kind, **config)
    with pytest.raises(BaseError, match=f"scales or caps.*{field}"):
        supported(folder, recipe_of(gguf=(), max_length=16))


def test_a_model_of_pictures_too_is_refused_with_the_one_of_text_alone(folder):
    vision = {"hidden_size": 16, "model_type": "siglip_vision_model"}
    edit(
        folder / "config.json", architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3",
        vision_config=vision, text_config={},
    )  # fmt: skip
    with pytest.raises(BaseError, match="is Gemma3ForConditionalGeneration, which takes more than text") as caught:
        supported(folder, recipe_of(gguf=()))
    assert "google/gemma-3-1b-it" in caught.value.fix


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text", "phi3", "opt", "exaone", *UNPACKED])
def test_whether_attention_can_be_replaced_is_what_the_class_says(kind):
    for name in judge._transformers_models()[kind]:
        said = getattr(transformers, name)._supports_attention_backend
        assert judge._is_packable(name) == said == (kind not in UNPACKED)


def test_every_model_type_of_transformers_is_known():
    known = judge._transformers_models()
    assert known["llama"] == ("LlamaForCausalLM",) and known["gpt_oss"] == ("GptOssForCausalLM",) and len(known) > 150


# config.json, spoilt in every way

FIELDS = sorted(json.loads((Path(__file__).parent / "data" / "version-0.1" / "base" / "config.json").read_text()))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "rope_type", "factor", "x"]), inner)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A base, and its config.json."""
    folder = save_base(tmp_path_factory.mktemp("sound") / "base", width=16, layers=1)
    return folder, json.loads((folder / "config.json").read_text())


def goes_or_is_refused(folder, changed):
    """A spoilt config.json is a BaseError, or the base really goes the whole way."""
    (folder / "config.json").write_text(json.dumps(changed))
    for types in ((), ("F16", "Q8_0")):
        try:
            locate_base(str(folder), convert)
            supported(folder, recipe_of(gguf=types, max_length=64))
        except BaseError as error:
            assert error.fix and str(folder) in error.where
        else:
            if types:
                write_gguf(folder, folder.parent / "a.gguf", "F16", ABOUT)


@pytest.mark.parametrize(
    "value", ["taken out", None, True, "x", "", -1, 0, 1, 3, 1.5, 1e30, 10**9, 2**40, [], ["x"], {}, {"a": 1}]
)
def test_every_field_spoilt_by_hand(sound, value):
    folder, whole = sound
    assert len(set(whole) & set(FIELDS)) > 15
    for field in whole:
        goes_or_is_refused(
            folder, {k: v for k, v in whole.items() if k != field} | ({} if value == "taken out" else {field: value})
        )
    for field in whole["rope_parameters"]:
        rope = {k: v for k, v in whole["rope_parameters"].items() if k != field}
        goes_or_is_refused(folder, whole | {"rope_parameters": rope | ({} if value == "taken out" else {field: value})})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(
        st.sampled_from(
            [
                *FIELDS,
                "rope_scaling",
                "quantization_config",
                "auto_map",
                "layer_types",
                "sliding_window",
                "num_experts",
                "head_dim",
                "attention_chunk_size",
            ]
        ),
        VALUES,
        min_size=1,
        max_size=3,
    )
)
@example(fields={"rope_parameters": {"type": {}, "rope_type": []}})
@example(fields={"architectures": [None, 3]})
def test_fields_spoilt_at_random(sound, fields):
    folder, whole = sound
    goes_or_is_refused(folder, whole | fields)


@pytest.mark.parametrize("text", ["", "{", "[]", "[[1, 2]]", "null", "3", '"x"', "[" * 100_000, "\x00"])
@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors.index.json"]
)
def test_a_small_file_that_is_no_object_is_refused(folder, file, text):
    (folder / file).write_text(text)
    with pytest.raises(BaseError):
        locate_base(str(folder), convert, lambda found: supported(found, recipe_of(max_length=64)))


# the whole way


@pytest.fixture
def rows(tmp_path):
    """Conversations to train on."""
    return write_rows(tmp_path / "rows.jsonl", [(f"question {n}", f"answer {n}") for n in range(16)])


def small_recipe(base, rows, gguf, **changes):
    recipe = recipe_of(base, gguf=gguf, max_length=64)
    data = recipe.data.model_copy(update={"sources": (recipe.data.sources[0].model_copy(update={"path": str(rows)}),)})
    return recipe.model_copy(update={"data": data} | changes)


def test_a_family_without_gguf_trains_and_merges_and_the_run_ends_there(tmp_path, rows, own_cache, capsys):
    base = save_family(tmp_path / "base", "olmo2")
    run, recipe = Run(tmp_path / "run"), small_recipe(base, rows, gguf=())
    result = run_stages(recipe, run)
    said = capsys.readouterr().err
    assert result.done and "export    left out: no GGUF was asked for" in said
    assert said.index("merge     done") < said.index("evaluate  left out: no GGUF was asked for")
    assert "none was asked for" in str(result) and "tunesmith chat" not in str(result)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, run.model))
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert len(changed) == 14 and all("proj" in name for name in changed)  # every linear layer of both blocks
    assert all(proof.holds for proof in read_record(run.model).proofs)
    AutoModelForCausalLM.from_pretrained(run.model)
    run_stages(recipe, run)  # what stands stands
    assert capsys.readouterr().err.count("already done") == 3
    for verb in ("export", "evaluate"):
        with pytest.raises(RecipeError, match=f"no GGUF was asked for, which {verb} needs") as caught:
            run_stages(recipe, run, [stage_of(verb)])
        assert "export: {gguf: [F16" in caught.value.fix
    command = [sys.executable, "-c", "from tunesmith.cli import main; main()", "chat", str(run.path)]
    chat = subprocess.run(command, capture_output=True, text=True, check=False)
    assert chat.returncode == 2 and "no GGUF was asked for, which the chat needs" in chat.stderr
    with pytest.raises(BaseError, match=r"Olmo2ForCausalLM, an architecture that cannot be exported"):
        run_stages(small_recipe(base, rows, gguf=("F16", "Q8_0")), Run(tmp_path / "other"))
    assert not (tmp_path / "other" / "data").exists()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (
            tensors(lambda held: held.pop("model.layers.1.mlp.up_proj.weight")),
            "lack model.layers.1.mlp.up_proj.weight\n",
        ),
        (tensors(lambda held: held.update({"model.norm.weight": torch.zeros(8)})), "transformers cannot load the base"),
        (config(initializer_range="wide"), "transformers cannot load the base: .*initializer_range"),
    ],
)
def test_a_family_that_is_not_known_here_is_not_filled_in_with_random_numbers(tmp_path, spoil, what):
    folder = save_family(tmp_path / "base", "qwen2")
    load_base(folder, precision="fp32", device=torch.device("cpu"))
    spoil(folder)
    with pytest.raises(BaseError, match=f"(?s){what}") as caught:
        load_base(folder, precision="fp32", device=torch.device("cpu"))
    assert caught.value.fix


def test_a_layer_whose_weights_have_another_name_is_refused_before_training(tmp_path):
    folder = save_family(tmp_path / "base", "qwen2")
    model = load_base(folder, precision="fp32", device=torch.device("cpu"))
    attach(model, recipe_of().lora, seed=0)
    refuse_unmergeable(model, folder)
    tensors(lambda held: held.update({"other.name": held.pop("model.layers.0.mlp.up_proj.weight")}))(folder)
    with pytest.raises(
        BaseError, match=r"has the layer model\.layers\.0\.mlp\.up_proj, and the base's weights have none"
    ):
        refuse_unmergeable(model, folder)


def test_what_cannot_be_computed_packed_is_an_error_of_ours(tmp_path, monkeypatch):
    folder = save_family(tmp_path / "base", "qwen2")
    model = load_base(folder, precision="fp32", device=torch.device("cpu"))
    rows = SimpleNamespace()

    def fails(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nmore")
        yield

    monkeypatch.setattr(packing, "_differences", fails)
    monkeypatch.setattr(packing, "_Bin", lambda *_: SimpleNamespace(chosen=[0, 1], longest=1))
    monkeypatch.setattr(packing, "rows_of_one_bin", lambda *_: [])
    with pytest.raises(BaseError, match=r"Qwen2ForCausalLM cannot be computed packed: mat1 and mat2 .* multiplied\n"):
        packing.prove_packing(model, (rows, SimpleNamespace(capacity=9)))


def test_windows_without_their_length_are_refused(tmp_path):
    folder = save_family(tmp_path / "base", "qwen2")
    edit(folder / "config.json", layer_types=["sliding_attention", "full_attention"], sliding_window=None)
    with pytest.raises(BaseError, match=r"sliding_window is missing or null, and layer_types has layers with a window"):
        supported(folder, recipe_of())


def test_weights_that_would_be_left_out_are_named(tmp_path):
    folder = save_family(tmp_path / "base", "qwen2")
    tensors(lambda held: held.update({"v_head.summary.weight": torch.zeros(1, 32)}))(folder)  # of a model that rates
    load_base(folder, precision="fp32", device=torch.device("cpu"))
    edit(folder / "config.json", num_hidden_layers=1, layer_types=["full_attention"])
    with pytest.raises(
        BaseError, match=r"have model\.layers\.1\.\S+ and \d+ more, which Qwen2ForCausalLM as"
    ) as caught:
        load_base(folder, precision="fp32", device=torch.device("cpu"))
    assert "a part of it would be left out" in caught.value.fix


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({}, "quantization_config names no method"), ({"bits": 4}, "quantization_config names no method"),
        ("", "quantization_config names no method"), ({"load_in_4bit": True, "load_in_8bit": False}, "load_in_4bit"),
        ({"quant_method": "gptq"}, "gptq"), ("awq", "awq"),
    ],
)  # fmt: skip
def test_a_base_that_is_stored_quantised_is_refused_before_anything_is_made(tmp_path, stored, said):
    folder = save_base(tmp_path / "base")
    locate_base(str(folder), convert)
    edit(folder / "config.json", quantization_config=stored)
    with pytest.raises(BaseError, match=rf"is stored quantised \({said}\)") as caught:
        locate_base(str(folder), convert)
    assert ("delete quantization_config from config.json" in caught.value.fix) == ("no method" in said)
    edit(folder / "config.json", quantization_config=None)
    locate_base(str(folder), convert)


FIN = {"template": CHATML.replace("<|im_end|>", "<|fin|>"), "specials": ("<|endoftext|>", "<|im_start|>", "<|fin|>")}


def save_fin_base(folder, **config):
    """A base whose answers end with <|fin|>, which is not its end of text, nor a token that llama.cpp knows by name."""
    save_base(folder, eos_token_id=0, pad_token_id=0, **config)
    save_tokenizer(folder, eos="<|endoftext|>", **FIN)
    return folder


def test_an_end_of_turn_that_is_not_the_end_of_text_goes_the_whole_way(tmp_path, rows, own_cache):
    base = save_fin_base(tmp_path / "base")
    run = Run(tmp_path / "run")
    recipe = small_recipe(base, rows, gguf=("F16", "Q8_0"))
    run_stages(recipe, run, [stage for stage in STAGES if stage.verb != "evaluate"])
    fields = gguf.GGUFReader(run.gguf_file("tiny", "Q8_0")).fields
    ids = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot")]
    assert ids == [0, 2] and GenerationConfig.from_pretrained(run.model).eos_token_id == [
        2,
        0,
    ]  # transformers stops too
    assert all(proof.limit is None or proof.value <= proof.limit for proof in read_record(run.gguf).proofs)
    reader = gguf.GGUFReader(export_base(locate_base(str(base), convert), "F16", recipe.chat, recipe.data.date))
    assert reader.fields["tokenizer.ggml.eot_token_id"].contents() == 2


@pytest.mark.parametrize(("end_of_turn", "stops"), [(2, True), (None, False)])
def test_llama_cpp_stops_at_the_end_of_turn(tmp_path, end_of_turn, stops):
    folder = save_fin_base(tmp_path / "base", tied=False)

    def only_fin(held):
        for name, tensor in held.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.zero_()  # the layers add nothing
        held["model.embed_tokens.weight"][:] = 1.0
        held["lm_head.weight"][:] = 0.0
        held["lm_head.weight"][2] = 1.0

    tensors(only_fin)(folder)
    about = About("tiny", "tiny", None, ChatConfig(), end_of_turn=end_of_turn)
    write_gguf(folder, tmp_path / "a.gguf", "F16", about)
    with Engine(tmp_path / "a.gguf", threads=1, context=256) as engine:
        answer = engine.chat([{"role": "user", "content": "Go on."}], max_tokens=12)
    assert (answer.stopped, answer.tokens) == ((True, 1) if stops else (False, 12))


# chat templates with names


def named(*names):
    return [{"name": name, "template": CHATML.replace("You are", f"For {name} you are")} for name in names]


def move_template(folder, templates):
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=templates)


def test_of_several_chat_templates_the_default_is_taken_all_the_way(tmp_path, rows, own_cache):
    base = save_base(tmp_path / "base")
    move_template(base, named("tool_use", "default"))
    run = Run(tmp_path / "run")
    run_stages(small_recipe(base, rows, gguf=("F16", "Q8_0")), run, [s for s in STAGES if s.verb != "evaluate"])
    assert "chat_template" not in json.loads((run.model / "tokenizer_config.json").read_text())
    fields = gguf.GGUFReader(run.gguf_file("tiny", "F16")).fields
    assert fields["tokenizer.chat_template"].contents() == (run.model / "chat_template.jinja").read_text()
    assert "For default you are" in (run.model / "chat_template.jinja").read_text()


def test_several_chat_templates_without_a_default_are_refused_with_their_names(folder):
    move_template(folder, named("tool_use", "rag"))
    with pytest.raises(BaseError, match="2 chat templates, tool_use, rag, and none is named default"):
        locate_base(str(folder), convert)


def test_a_template_of_its_own_file_counts_before_one_in_the_settings(folder, tmp_path):
    edit(folder / "tokenizer_config.json", chat_template="{{ 'old' }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 'tools' }}")
    own = (folder / "chat_template.jinja").read_text()
    assert chat_template(folder) == own == load_tokenizer(folder).get_chat_template()
    write_gguf(folder, tmp_path / "a.gguf", "F16", ABOUT)
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == own and "tokenizer.chat_templates" not in fields
