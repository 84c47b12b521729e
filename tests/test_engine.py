"""The engine against transformers, and every way in which a file, a port or a conversation is wrong."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith import machine
from tunesmith.errors import BaseError, DataError, ProofError, ResourceError
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.engine import Engine, PatientEngine, _check_version
from tunesmith.inference.fits import cell_bytes, check_file, need_memory
from tunesmith.recipe import ChatConfig
from tunesmith.tokens.template import chat_template_with
from tunesmith.weights import builtin
from tunesmith.weights.locate import cache_folder

HELLO = [{"role": "user", "content": "Say hello."}]
CALLS_TOOLS = "{% if tools is not none %}You may call {{ tools }}{% endif %}{{ messages[0]['content'] }}"


@pytest.fixture(scope="module")
def tiny_gguf(tiny_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_base, path, "F16", About("tiny", "tiny", None, ChatConfig()))
    return path


@pytest.fixture(scope="module")
def tiny_engine(tiny_gguf):
    with Engine(tiny_gguf, threads=1, context=512, slots=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def builtin_engine(builtin_base):
    gguf = builtin.fetch_builtin(builtin_base.name, cache_folder() / "builtin")
    with Engine(gguf, threads=2, context=512) as engine:
        yield engine


def test_probabilities_are_those_of_transformers(tiny_engine, tiny_base):
    """After prefixes of which many draw half a UTF-8 character, where llama.cpp alone would give nothing back."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    generator = np.random.default_rng(0)
    for _ in range(20):
        ids = generator.integers(3, model.config.vocab_size, generator.integers(1, 30)).tolist()
        logprobs_V = tiny_engine.next_token_logprobs(ids)
        with torch.no_grad():
            wanted_V = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()
        assert logprobs_V.shape == (model.config.vocab_size,) and logprobs_V.dtype == np.float32
        assert np.exp(logprobs_V.astype(float)).sum() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(logprobs_V, wanted_V, atol=0.01)


def test_it_can_be_closed_at_once(tiny_gguf, monkeypatch):
    """Seen on a busy machine, one time in fifty: llama.cpp was told to end before its loop began, and went on."""
    asked, ask = [], Engine._ask
    monkeypatch.setattr(Engine, "_ask", lambda self, path, *body: asked.append(path) or ask(self, path, *body))
    with Engine(tiny_gguf, threads=1, context=256):
        pass
    assert asked[0] == "/lora-adapters"  # the first request that only the loop answers


def test_a_sampling_transform_is_noticed(tiny_engine, monkeypatch):
    ask = tiny_engine._ask
    monkeypatch.setattr(tiny_engine, "_ask", lambda path, body: ask(path, body | {"n_probs": 5}))
    with pytest.raises(ProofError, match="sampling transforms are not off: 5 of"):
        tiny_engine.next_token_logprobs([5, 6, 7])


def test_a_file_that_computes_no_numbers_is_not_blamed_on_sampling(tiny_gguf, tmp_path):
    path = tmp_path / "tiny-F16.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    tensor = next(one for one in GGUFReader(path, "r+").tensors if one.name == "blk.0.ffn_up.weight")
    tensor.data[0, 0] = np.nan
    with Engine(path, threads=1, context=256) as engine, pytest.raises(ProofError) as caught:
        engine.next_token_logprobs([5, 6, 7])
    assert caught.value.what == "tiny-F16.gguf computes no numbers: 512 of 512 probabilities are NaN"
    assert caught.value.fix == "delete model/ and gguf/ and run again"


def test_template_and_tokens_are_those_of_transformers(tiny_engine, tiny_base, hard_texts):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    for text in hard_texts:
        messages = [{"role": "user", "content": text}]
        rendered = tiny_engine.render(messages)
        assert rendered == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tiny_engine.tokenize(rendered)
        assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert tiny_engine.detokenize(ids) == rendered
        assert len(tiny_engine.tokenize("<|im_end|>", special=False)) > len(tiny_engine.tokenize("<|im_end|>"))


def test_tools_of_the_page_stay_out_of_the_prompt(tiny_base, tmp_path):
    gguf = tmp_path / "tools.gguf"
    write_gguf(tiny_base, gguf, "F16", About("tiny", "tiny", None, ChatConfig(), CALLS_TOOLS))
    tool = {
        "type": "function",
        "function": {"name": "get_datetime", "parameters": {"type": "object", "properties": {}}},
    }
    with Engine(gguf, threads=1, context=256) as engine:
        body = {"messages": [{"role": "user", "content": "What time is it?"}], "tools": [tool]}
        assert engine._ask("/apply-template", body)["prompt"] == "What time is it?"


def test_answer_streams_and_ends_by_the_stop_token(builtin_engine):
    pieces = []
    answer = builtin_engine.chat(HELLO, max_tokens=60, on_text=pieces.append)
    assert answer.stopped and 3 < answer.tokens < 60 and "<|" not in answer.text
    assert "".join(pieces) == answer.text and len(pieces) > 3
    assert answer.first_token_s > 0 and answer.tokens_per_s > 0 and answer.prompt_per_s > 0
    assert answer.prompt_tokens == len(builtin_engine.tokenize(builtin_engine.render(HELLO)))
    cut = builtin_engine.chat(HELLO, max_tokens=3, cache=False)
    assert (cut.stopped, cut.tokens) == (False, 3) and answer.text.startswith(cut.text)


def test_leaving_an_answer_stops_it(builtin_engine):
    def leave(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builtin_engine.chat([{"role": "user", "content": "Write a long story."}], max_tokens=400, on_text=leave)
    assert builtin_engine.chat(HELLO, max_tokens=60).stopped


def test_every_slot_has_the_whole_context(tiny_engine):
    """512 tokens in each of two slots; llama.cpp divides what it is given."""
    room = [{"role": "user", "content": "a " * 320}]
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: tiny_engine.chat(room, max_tokens=20), range(2)))
    assert all(300 < answer.prompt_tokens < 512 for answer in answers)
    with pytest.raises(ResourceError, match="the context holds 512") as caught:
        tiny_engine.chat([{"role": "user", "content": "a " * 600}], max_tokens=20)
    assert "chat.context" in caught.value.fix


def test_a_conversation_has_no_more_tokens_than_the_model_knows(tiny_gguf, tiny_engine):
    assert tiny_engine.context < 2048
    with Engine(tiny_gguf, threads=1, context=1 << 20) as engine:  # memory for which nobody has
        assert engine.context == 2048


def test_refusals_of_llama_cpp_are_errors_of_ours(tiny_engine):
    with pytest.raises(BaseError, match="must contain 'content'") as caught:
        tiny_engine.chat([{"role": "user"}], max_tokens=5)
    assert caught.value.fix == "check the model's chat template, and that each message has a role and a text"
    with pytest.raises(BaseError, match="which is 1000000000") as caught:
        tiny_engine.detokenize([10**9])
    assert "template" not in caught.value.fix and "delete gguf/ in its run" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "said"),
    [("caf\udce9", r"U\+DCE9 \(the byte E9 in another encoding\)"), ("\ud83d", r"half a character, U\+D83D\n")],
)
def test_half_a_character_is_named(tiny_engine, text, said):
    messages = [{"role": "user", "content": text}]
    for call in (lambda: tiny_engine.chat(messages, max_tokens=5), lambda: tiny_engine.render(messages),
                 lambda: tiny_engine.tokenize(text)):  # fmt: skip
        with pytest.raises(DataError, match=said) as caught:
            call()
        assert "UTF-8" in caught.value.fix


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is no GGUF file"),
        (b"PK\x03\x04 a zip file", "is no GGUF file"),
        (b"GGUF\x01\x00\x00\x00" + bytes(40), "is GGUF version 1"),
        (b"GGUF\x03\x00\x00\x00" + bytes(4), "is no whole GGUF file: it ends inside its metadata"),
        (b"GGUF\x03\x00\x00\x00" + bytes(16), "has no tensors"),
        ("cut", "is cut: its tensors need"),
        ("adapter", "is a GGUF file of type adapter, and no model that answers"),
        ("odd", "llama.cpp cannot load model.gguf"),
    ],
)
def test_a_file_that_is_no_model(tiny_gguf, tmp_path, content, problem):
    path = tmp_path / "model.gguf"
    if content == "cut":
        path.write_bytes(tiny_gguf.read_bytes()[:-50_000])
    elif content == "odd":
        path.write_bytes(tiny_gguf.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight"))
    elif content == "adapter":
        writer = GGUFWriter(path, "llama")
        writer.add_type("adapter")
        writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((4, 64), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(BaseError, match=re.escape(problem)) as caught:
        Engine(path, threads=1, context=256)
    assert "model.gguf" in str(caught.value) and "gguf" in caught.value.fix
    assert ("delete gguf/ in its run" in caught.value.fix) == (content != "adapter" and problem != "has no tensors")


def test_what_does_not_fit_in_memory_is_said_before_it_is_loaded(tiny_gguf, monkeypatch):
    head = check_file(tiny_gguf)
    each = cell_bytes(tiny_gguf, head)
    assert each == 2 * 2 * 2 * (16 + 16)  # F16, two layers, two heads of keys and values
    logits, file_bytes = 4 * 512 * 512, tiny_gguf.stat().st_size
    enough = file_bytes + logits + 2 * 2048 * each
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: enough)
    need_memory(tiny_gguf, head, 2048, 2)
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: enough - 1)
    with pytest.raises(ResourceError, match=r"tiny\.gguf needs 0\.00 GB of memory, .* 2 x 2,048 tokens") as caught:
        Engine(tiny_gguf, threads=1, context=4096, slots=2)
    assert caught.value.fix.endswith("chat.context (now 2048) or fewer chat.slots (now 2); a context of 1792 fits")
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: file_bytes)
    with pytest.raises(ResourceError) as caught:
        Engine(tiny_gguf, threads=1, context=4096)
    assert "fits" not in caught.value.fix
    with PatientEngine(tiny_gguf, threads=1, context=256) as engine:  # a proof goes on
        assert engine.vocabulary == 512


def test_memory_of_files_whose_layers_differ_or_that_are_split(tmp_path):
    """As Gemma's windows and OpenELM's heads; a split model's other files count as well."""
    path = tmp_path / "model-00001-of-00002.gguf"
    writer = GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, 3), (writer.add_embedding_length, 64), (writer.add_head_count, 4),
        (writer.add_head_count_kv, [1, 2, 4]), (writer.add_sliding_window, 512), (writer.add_key_length, 8),
    ):  # fmt: skip
        add(value)
    writer.add_tensor("output_norm.weight", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "model-00002-of-00002.gguf").write_bytes(bytes(50_000_000))
    head = check_file(path)
    assert cell_bytes(path, head) == 2 * (1 + 2 + 4) * (8 + 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "free_memory_bytes", lambda: 50_000_000)
        with pytest.raises(ResourceError, match=r"needs 0\.05 GB .* the file takes 0\.05, 1 x 100,000 tokens .* 0\.00"):
            need_memory(path, head, 100_000, 1)
        patch.setattr(machine, "free_memory_bytes", lambda: 50_500_000)
        need_memory(path, head, 100_000, 1)  # no more than 512 tokens are kept


def test_a_big_endian_file_is_named_as_one(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x00\x00\x00\x03" + bytes(40))
    with pytest.raises(BaseError, match=r"model\.gguf is a big-endian GGUF file") as caught:
        Engine(tmp_path / "model.gguf", threads=1, context=256)
    assert "gguf-convert-endian" in caught.value.fix


def test_the_files_own_sampling_is_taken_only_where_nobody_says_otherwise(tiny_base, tmp_path):
    """What a file of ours states is what its recipe said then; `chat --set` and evaluation say it now."""
    gguf, said = tmp_path / "own.gguf", ChatConfig(temperature=0.0, top_p=0.5)
    write_gguf(tiny_base, gguf, "F16", About("tiny", "tiny", None, ChatConfig(temperature=0.25, top_p=0.75)))
    for own, wanted in ((False, [0.0, 0.5]), (True, [0.25, 0.75])):
        with Engine(gguf, threads=1, context=256, chat=said, own_sampling=own) as engine:
            found = engine.sampling()
            assert [found[name] for name in ("temperature", "top_p", "top_k", "min_p")] == [*wanted, 0, 0.0]


def test_the_system_prompt_in_force_is_read_from_the_template(tiny_base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    gguf, template = tmp_path / "system.gguf", tokenizer.chat_template
    for text, wanted in (
        (template, "You are a small test model."),
        (chat_template_with(template, "Be 'brief'.", "2026-01-01"), "Be 'brief'."),
        ("{% for message in messages %}{{ message['content'] }}\n{% endfor %}", None),
        ("{{ raise_exception('no') if messages[0]['role'] == 'system' }}{{ messages[0]['content'] }}", None),
    ):  # fmt: skip
        write_gguf(tiny_base, gguf, "F16", About("tiny", "tiny", None, ChatConfig(), text))
        with Engine(gguf, threads=1, context=256) as engine:
            assert engine.own_system() == wanted


def test_nothing_but_our_own_lines_is_printed(tiny_gguf):
    code = (
        "import sys; from pathlib import Path; from tunesmith.inference.engine import Engine\n"
        f"with Engine(Path({str(tiny_gguf)!r}), threads=1, context=256) as engine:\n"
        "    engine.chat([{'role': 'user', 'content': 'a'}], max_tokens=5)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_old_xllamacpp_and_a_missing_library(tmp_path):
    with pytest.raises(ResourceError, match=r"2025\.1\.1, 2026\.10\.11549 is needed"):
        _check_version("2025.1.1")
    _check_version("2026.10.11550")
    (tmp_path / "xllamacpp.py").write_text(
        "raise ImportError('libgomp.so.1: cannot open shared object file: No such file or directory')"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tunesmith.inference.engine"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "apt-get install libgomp1" in done.stderr
