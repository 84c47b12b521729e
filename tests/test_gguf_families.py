"""Each family as a GGUF file: equal to transformers, in two builds of llama.cpp, there and back; faults are seen."""

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf_reader import fields_of
from safetensors.torch import load_file, save_file
from second_llama import logits_of
from test_families import edit, recipe_of
from tiny_families import MORE, SPACE, TINY, save_family
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.errors import BaseError
from tunesmith.gguf import vocabulary
from tunesmith.gguf.config import metadata
from tunesmith.gguf.families import read_config
from tunesmith.gguf.read import convert
from tunesmith.gguf.supported import supported
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.engine import Engine
from tunesmith.inference.logits import Library, sequence_logits
from tunesmith.proof.damage import find_damage
from tunesmith.recipe import ChatConfig
from tunesmith.tokens.tokenizer import load_tokenizer

ABOUT = About("tiny", "tiny", None, ChatConfig())
LENGTH = 200  # past Gemma's window of 48 and the 64 positions of Llama 3's rotary scaling
MOST_KL, FAULTY_KL = 1e-4, 1e-3  # nats; F16 alone made 2e-6 to 2.4e-5
LEAST_TOP1 = 0.98


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What `make` makes, by family, each once."""
    known = {}

    def get(name):
        if name not in known:
            known[name] = make(tmp_path_factory.mktemp("whole"), name)
        return known[name]

    return get


@pytest.fixture(params=TINY)
def made(request, whole):
    """(name, folder of the Hugging Face model, its F16 file, token ids, transformers' log-probabilities [T, V])."""
    return request.param, *whole(request.param)


def make(place, name, **config):
    folder = save_family(place / "model", name, **config)
    write_gguf(folder, place / "a.gguf", "F16", ABOUT)
    return folder, place / "a.gguf", *expected(folder)


def expected(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids_T = torch.randint(3, model.config.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return ids_T.tolist(), model(ids_T[None]).logits[0].log_softmax(-1)


def apart(logits_TV, expected_TV):
    """Mean KL divergence, and the share of positions where the likeliest token is the same."""
    found_TV = torch.from_numpy(logits_TV).log_softmax(-1)
    kl_T = (expected_TV.exp() * (expected_TV - found_TV)).sum(-1)
    return float(kl_T.mean()), float((found_TV.argmax(-1) == expected_TV.argmax(-1)).float().mean())


def of_file(path, ids):
    """Logits [T, V] of a file, in this process: quicker than sequence_logits' own."""
    pieces = Library().load(str(path), len(ids), 1).logits(ids, range(len(ids)))
    return np.concatenate([piece.copy() for piece in pieces])


def texts(family, hard_texts):
    """Plain texts, NFC for those whose tokenizer makes it so, and one with the family's own tokens."""
    added = [token for token in (*family.specials, *family.own) if SPACE not in token]
    own = "".join(f"{token}\n  hi {token}a" for token in added)
    return [text for text in (*hard_texts, own, MORE) if "\u0301" not in text or family.layout != "qwen2"]


def wrong_texts(path, folder, family, hard_texts):
    """Those that llama.cpp makes other tokens of than transformers does."""
    tokenizer = load_tokenizer(folder)
    with Engine(path, threads=1, context=256) as engine:
        return [text for text in texts(family, hard_texts) if tokenizer(text).input_ids != engine.tokenize(text)]


def test_llama_cpp_computes_the_family(made, tmp_path, hard_texts):
    name, folder, path, ids, expected_TV = made
    pieces = sequence_logits(path, [(ids, range(LENGTH))], threads=1, window=tmp_path / "window")
    logits_TV = np.concatenate([piece.copy() for piece in pieces])
    kl, top1 = apart(logits_TV, expected_TV)
    assert kl < MOST_KL and top1 >= LEAST_TOP1
    np.testing.assert_array_equal(logits_of(path, ids, tmp_path), logits_TV)  # another build of llama.cpp
    assert wrong_texts(path, folder, TINY[name], hard_texts) == []


def test_the_file_says_what_the_model_is(made):
    name, folder, path, *_ = made
    family, found, config = TINY[name], fields_of(path), AutoConfig.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    arch = found["general.architecture"]
    assert arch == {"mistral": "llama", "gemma3_text": "gemma3"}.get(family.kind, family.kind)
    assert found["tokenizer.ggml.model"] == ("gpt2" if family.pre else "llama")
    assert found["tokenizer.ggml.pre"] == (family.pre or "default")
    assert found["tokenizer.ggml.add_bos_token"] is family.adds_bos
    assert len(found["tokenizer.ggml.tokens"]) == config.vocab_size
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    unknown = {} if family.pre else {"<unk>": gguf.TokenType.UNKNOWN}
    assert all(kinds[token] == unknown.get(token, gguf.TokenType.CONTROL) for token in family.specials)
    assert all(kinds[token] == gguf.TokenType.USER_DEFINED for token in family.own if SPACE not in token)
    for special in ("bos", "eos"):
        id_ = found.get(f"tokenizer.ggml.{special}_token_id")
        assert id_ == getattr(tokenizer, f"{special}_token_id")
    assert found["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
    known, window = config.max_position_embeddings, config.sliding_window if name == "phi3" else None
    original = config.original_max_position_embeddings if name == "phi4" else None  # where its factors change
    assert found[f"{arch}.context_length"] == min(known, window or known, original or known)
    names = {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    assert ("output.weight" in names) is not config.tie_word_embeddings


def test_an_end_of_turn_that_is_no_end_of_text_is_a_stop_token(tmp_path):
    folder = save_family(tmp_path / "base", "gemma3")
    end = load_tokenizer(folder).convert_tokens_to_ids("<end_of_turn>")
    write_gguf(folder, tmp_path / "a.gguf", "F16", replace(ABOUT, end_of_turn=end))
    found = fields_of(tmp_path / "a.gguf")
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (1, end)


def test_the_way_back_gives_model_and_tokenizer(made, tmp_path, hard_texts):
    name, folder, path, ids, expected_TV = made
    if name == "llama3":  # of Llama 3's scaling a GGUF keeps the table, and the table of the real ones is known
        rope = TINY[name].config["rope_parameters"] | {"rope_theta": 5e5, "original_max_position_embeddings": 8192}
        folder, path, ids, expected_TV = make(tmp_path, name, rope_parameters=rope)
    half = {key: tensor.half() if tensor.dim() > 1 else tensor for key, tensor in load_weights(folder).items()}
    back = tmp_path / "back"
    back.mkdir()
    convert(path, back)
    found = load_weights(back)
    assert found.keys() == half.keys()
    for key, tensor in half.items():
        tolerance = 3e-7 if name == "gemma3" and key.endswith("norm.weight") else 0  # 1 was added, in fp32
        torch.testing.assert_close(found[key].float(), tensor.float(), atol=tolerance, rtol=0)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32)
        kl, _ = apart(model(torch.tensor([ids])).logits[0].numpy(), expected_TV)
    assert kl < MOST_KL
    before, after = load_tokenizer(folder), load_tokenizer(back)
    for text in texts(TINY[name], hard_texts):
        assert before(text).input_ids == after(text).input_ids
        assert before.decode(before(text).input_ids) == after.decode(before(text).input_ids)
    write_gguf(back, tmp_path / "again.gguf", "F16", ABOUT)
    said, again = fields_of(path), fields_of(tmp_path / "again.gguf")
    assert {key: (value, again.get(key)) for key, value in said.items() if again.get(key) != value} == {}


def load_weights(folder):
    return load_file(folder / "model.safetensors")


# planted faults


def rewrite(path, part, change):
    """Change the numbers of all tensors whose names end so, in place."""
    found = [tensor for tensor in gguf.GGUFReader(path, "r+").tensors if tensor.name.endswith(part)]
    assert found, part
    for tensor in found:
        tensor.data[...] = change(tensor.data.copy())


def swapped(rows_RC):
    """Rows of heads of 8 in the other of the two orders."""
    return rows_RC.reshape(-1, 2, 4, *rows_RC.shape[1:]).swapaxes(1, 2).reshape(rows_RC.shape)


def swap_rotary(path):
    rewrite(path, "attn_q.weight", swapped)
    rewrite(path, "attn_k.weight", swapped)


def swap_fused_rotary(path):
    rewrite(path, "attn_qkv.weight", lambda rows: np.concatenate([swapped(rows[:48]), rows[48:]]))


def add_noise(path):
    noise = np.random.default_rng(0)
    rewrite(path, "blk.1.ffn_down.weight", lambda rows: rows + noise.normal(0, 0.1, rows.shape).astype(rows.dtype))


def lost(part, value=0.0):
    return lambda path: rewrite(path, part, lambda rows: np.full_like(rows, value))


def field(key, value):
    """Change a number of the metadata in place."""

    def change(path):
        found = gguf.GGUFReader(path, "r+").fields[key]
        found.parts[found.data[0]][0] = value

    return change


BOS, PREFIX = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"
NUMBERS = {  # what llama.cpp then computes is another model
    "a swapped rotary permutation": {
        name: swap_fused_rotary if TINY[name].kind == "phi3" else swap_rotary for name in TINY
    },
    "one tensor of noise": dict.fromkeys(TINY, add_noise),
    "a lost bias": {"qwen2": lost("attn_k.bias")},
    "a lost norm of queries": {"qwen3": lost("attn_q_norm.weight", 1.0), "gemma3": lost("attn_q_norm.weight", 1.0)},
    "a lost norm of keys": {"qwen3": lost("attn_k_norm.weight", 1.0), "gemma3": lost("attn_k_norm.weight", 1.0)},
    "a lost norm after the MLP": {"gemma3": lost("post_ffw_norm.weight", 1.0)},
    "rope factors left out": {
        "llama3": lost("rope_freqs.weight", 1.0), "phi4": lost("rope_factors_short.weight", 1.0),
        "gemma3": field("gemma3.rope.freq_base_swa", 1e6), "smollm3": field("smollm3.rope.freq_base", 1e4),
    },
    "a lost scale": {
        "granite": field("granite.logit_scale", 1.0), "phi4": field("phi3.rope.scaling.attn_factor", 1.0),
    },
    "another window": {"gemma3": field("gemma3.attention.sliding_window", 500)},
}  # fmt: skip
TEXTS = {  # other tokens
    "a BOS flag that is missing or too many": {
        name: field(BOS, not family.adds_bos) for name, family in TINY.items() if family.bos
    },
    "a space before each text": {name: field(PREFIX, TINY[name].layout == "gemma") for name in ("mistral", "gemma3")},
}


def cases(faults):
    return [
        pytest.param(name, change, id=f"{what}-{name}") for what, of in faults.items() for name, change in of.items()
    ]


@pytest.mark.parametrize(("name", "plant"), cases(NUMBERS))
def test_a_fault_in_the_numbers_is_seen(whole, tmp_path, name, plant):
    _, path, ids, expected_TV = whole(name)
    spoilt = tmp_path / "spoilt.gguf"
    spoilt.write_bytes(path.read_bytes())
    plant(spoilt)
    kl, _ = apart(of_file(spoilt, ids), expected_TV)
    assert not kl < FAULTY_KL


@pytest.mark.parametrize(("name", "plant"), cases(TEXTS))
def test_a_fault_in_the_flags_of_the_tokenizer_is_seen(whole, tmp_path, hard_texts, name, plant):
    folder, path, *_ = whole(name)
    spoilt = tmp_path / "spoilt.gguf"
    spoilt.write_bytes(path.read_bytes())
    plant(spoilt)
    assert wrong_texts(spoilt, folder, TINY[name], hard_texts)


@pytest.mark.parametrize("name", [name for name, family in TINY.items() if family.pre])
def test_a_wrong_pre_tokenizer_is_seen(whole, tmp_path, hard_texts, monkeypatch, name):
    folder, *_ = whole(name)
    other = "qwen2" if TINY[name].pre == "smollm" else "gpt-2"
    monkeypatch.setattr(vocabulary, "pre_tokenizer", lambda _: other)
    write_gguf(folder, tmp_path / "spoilt.gguf", "F16", ABOUT)
    assert wrong_texts(tmp_path / "spoilt.gguf", folder, TINY[name], hard_texts)


def test_a_small_fault_in_a_table_of_rotary_factors_is_seen(whole, tmp_path):
    """Which probabilities of short rows hardly show."""
    folder, path, *_ = whole("llama3")
    assert find_damage(folder, tmp_path / "no adapter", path) == ""
    spoilt = tmp_path / "spoilt.gguf"
    spoilt.write_bytes(path.read_bytes())
    tensor = next(one for one in gguf.GGUFReader(spoilt, "r+").tensors if one.name == "rope_freqs.weight")
    tensor.data[-1] *= 1.0001
    del tensor
    assert find_damage(folder, tmp_path / "no adapter", spoilt) == "not the model's: rope_freqs.weight"


# what differs within a family


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                       "original_max_position_embeddings": 64}}),
        ("mistral", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        ("granite", {"attention_bias": True, "mlp_bias": True}),
        ("phi4", {"original_max_position_embeddings": 64}),  # other factors for long texts
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
                    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}}),
    ],
)  # fmt: skip
def test_variants_are_the_same_model_there_and_back(tmp_path, name, config):
    _, path, ids, expected_TV = make(tmp_path, name, **config)
    kl, top1 = apart(of_file(path, ids), expected_TV)
    assert kl < MOST_KL and top1 >= LEAST_TOP1
    back = tmp_path / "back"
    back.mkdir()
    convert(path, back)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32)
        assert apart(model(torch.tensor([ids])).logits[0].numpy(), expected_TV)[0] < MOST_KL


@pytest.mark.parametrize("scheme", ["first", "never"])
def test_a_text_that_begins_with_a_special_token_needs_no_space_before_it(tmp_path, hard_texts, scheme):
    folder = save_family(tmp_path / "model", "mistral")
    cut = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    tokenizer_of(lambda content: content.update(normalizer=None, pre_tokenizer=cut))(folder)
    write_gguf(folder, tmp_path / "a.gguf", "F16", ABOUT)
    tokenizer = load_tokenizer(folder)
    with Engine(tmp_path / "a.gguf", threads=1, context=256) as engine:
        for text in hard_texts:
            whole = f"[INST] {text}[/INST]{text}</s>"
            assert tokenizer(whole).input_ids == engine.tokenize(whole)


def test_the_context_ends_where_a_window_would_begin(tmp_path):
    folder, path, *_ = make(tmp_path, "mistral", sliding_window=100)
    assert fields_of(path)["llama.context_length"] == 100
    supported(folder, recipe_of(max_length=100))
    with pytest.raises(BaseError, match=r"see 100 tokens, llama\.cpp lets all layers of a MistralForCausalLM see all"):
        supported(folder, recipe_of(max_length=101))


@pytest.mark.parametrize("name", TINY)
def test_every_family_is_supported_before_prepare(whole, name):
    folder, *_ = whole(name)
    if name != "granite":  # its head, and what training does with it, are asked elsewhere
        supported(folder, recipe_of(max_length=48))


def test_only_phi3s_tokenizer_goes_by_its_name(tmp_path, whole):
    for name, called, wanted in (
        ("phi3", "my run", "my run Phi-3"),
        ("phi3", "phi3-tuned", "phi3-tuned"),
        ("mistral", "from PHI-3", "from Phi 3"),
    ):
        folder, *_ = whole(name)
        write_gguf(folder, tmp_path / "a.gguf", "F16", replace(ABOUT, name=called))
        assert fields_of(tmp_path / "a.gguf")["general.name"] == wanted
        assert of_file(tmp_path / "a.gguf", [1, 2, 3]).shape[0] == 3


def config_of(**changes):
    return lambda folder: edit(folder / "config.json", **changes)


def in_file(file, change):
    def spoil(folder):
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return spoil


def tokenizer_of(change):
    return in_file("tokenizer.json", change)


def lose_merge(content):
    merges = content["model"]["merges"]
    merges.remove(next(merge for merge in reversed(merges) if len("".join(merge)) > 2))


def without(part):
    def spoil(folder):
        held = load_weights(folder)
        save_file(
            {name: held[name] for name in held if part not in name}, folder / "model.safetensors", {"format": "pt"}
        )

    return spoil


REFUSED = {
    "no_rope_layers is .* is not every 4th": ("smollm3", config_of(no_rope_layers=[1] * 5)),
    "layer_types is .* a window in all layers but every 6th": (
        "gemma3", config_of(layer_types=["full_attention"] * 7),
    ),
    "query_pre_attn_scalar is 32, which is not the 16": ("gemma3", config_of(query_pre_attn_scalar=32)),
    "use_bidirectional_attention is True": ("gemma3", config_of(use_bidirectional_attention=True)),
    "sliding_window is missing or null": (
        "gemma3", in_file("config.json", lambda content: content.update(sliding_window=None)),
    ),
    "hidden_activation is 'gelu'": ("gemma3", config_of(hidden_activation="gelu")),
    "rotary scaling llama3 cannot be exported to GGUF for Qwen3ForCausalLM": (
        "qwen3", config_of(rope_parameters=TINY["llama3"].config["rope_parameters"]),
    ),
    "attention_bias is True": ("qwen3", config_of(attention_bias=True)),
    "beta_fast is 16": ("qwen2", config_of(rope_parameters={
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 16})),
    "long_factor is .* is no list of 3 numbers": ("phi4", config_of(rope_parameters={
        "rope_type": "longrope", "partial_rotary_factor": 0.75, "long_factor": [1.0], "short_factor": [1.0] * 3})),
    "self_attn.q_proj.bias is missing, and 5 more": ("qwen2", without("bias")),
    "self_attn.q_norm.weight is missing, and 1 more": ("qwen3", without("q_norm")),
    "residual_multiplier is -1": ("granite", config_of(residual_multiplier=-1, logits_scaling=1)),
    "a piece .* that is not joined of": ("gemma3", tokenizer_of(lose_merge)),
    "no token <0x00>": ("mistral", tokenizer_of(lambda content: content["model"]["vocab"].pop("<0x00>"))),
    "bytes for unknown characters, and normalizer": (
        "mistral", tokenizer_of(lambda content: content.update(normalizer={"type": "NFKC"})),
    ),
    "takes the spaces beside it, which llama.cpp leaves": (
        "phi4", tokenizer_of(lambda content: content["added_tokens"][1].update(rstrip=True)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_family_does_otherwise_is_refused_by_name(tmp_path, what):
    name, spoil = REFUSED[what]
    folder = save_family(tmp_path / "base", name)
    if name == "granite":
        edit(folder / "config.json", logits_scaling=1.0)
    supported(folder, recipe_of(max_length=48))
    spoil(folder)
    with pytest.raises(BaseError, match=f"(?s){what}") as caught:
        supported(folder, recipe_of(max_length=48))
    assert caught.value.fix


SPOILT = {
    "gemma3": ("layer_types", "sliding_window", "rope_parameters", "query_pre_attn_scalar", "hidden_activation"),
    "smollm3": ("no_rope_layers", "no_rope_layer_interval", "use_sliding_window"),
    "phi4": ("rope_parameters", "sliding_window", "original_max_position_embeddings", "partial_rotary_factor"),
    "qwen2": ("max_window_layers", "layer_types", "use_sliding_window", "sliding_window"),
    "granite": ("attention_multiplier", "logits_scaling"),
}
VALUES = (None, True, "x", -1, 0, 3, 1e30, [], ["x"], {}, {"full_attention": 3}, {"rope_type": "longrope"},
          {"sliding_attention": {"rope_theta": []}}, {"rope_type": "yarn", "factor": "x"})  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_familys_own_fields_spoilt_by_hand(whole, tmp_path, name):
    sound = json.loads((whole(name)[0] / "config.json").read_text())
    for field_name in SPOILT[name]:
        for value in VALUES:
            (tmp_path / "config.json").write_text(json.dumps(sound | {field_name: value}))
            try:
                config = read_config(tmp_path)
            except BaseError as error:
                assert error.fix
            else:
                assert all(isinstance(said, int | float | str) for said in metadata(config).values())
