"""The Modelfile: its Go template renders what the Jinja one does, or there is none."""

from pathlib import Path

import pytest
from go_template import execute
from tiny import CHATML, save_tokenizer

from tunesmith.gguf.modelfile import go_template, learn_turns, modelfile, rendered, sample_conversations
from tunesmith.recipe import Recipe
from tunesmith.release.modelfile import modelfile_of, renderer
from tunesmith.tokens.template import chat_template_with
from tunesmith.tokens.tokenizer import load_tokenizer

TEMPLATES = {path.stem: path.read_text() for path in (Path(__file__).parent / "data" / "templates").glob("*.jinja")}
TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|eot_id|>", "<|end|>", "<end_of_turn>")


def tokenizer_with(folder, template):
    save_tokenizer(folder, template=template, specials=TOKENS)
    return load_tokenizer(folder)


@pytest.mark.parametrize("name", [*TEMPLATES, "own system prompt"])
def test_the_go_template_renders_what_the_jinja_one_does(tmp_path, name):
    template = TEMPLATES.get(name) or chat_template_with(CHATML, "Say \"yes\" or 'no'.\nIn {one} line.", "2026-01-01")
    render = renderer(tokenizer_with(tmp_path, template), "2026-01-01")
    turns = learn_turns(render)
    assert turns, f"{name} was not translated"
    text = go_template(turns)
    for messages in sample_conversations(turns.system is not None):
        assert execute(text, messages) == rendered(turns, messages) == render(messages, True)
    begun = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two"}]
    assert execute(text, begun).endswith("One, two")  # left open: Ollama goes on with an answer that is begun


def test_a_template_of_another_form_is_left_out(tmp_path):
    odd = "{% for m in messages %}{{ loop.index }} {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    render = renderer(tokenizer_with(tmp_path / "odd", odd), "2026-01-01")
    assert learn_turns(render) is None
    assert "# no TEMPLATE" in modelfile("a.gguf", render, {}, None, [])
    once = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}{{ messages[0]['content'] }}"
    assert learn_turns(renderer(tokenizer_with(tmp_path / "once", once), "2026-01-01")) is None
    closing = CHATML.replace("<|im_start|>system", '""" {{ "{{" }}')
    assert learn_turns(renderer(tokenizer_with(tmp_path / "closing", closing), "2026-01-01")) is None


def test_a_start_token_that_the_tokenizer_adds_is_not_in_the_text(tmp_path):
    template = "{{ bos_token }}" + CHATML
    tokenizer = tokenizer_with(tmp_path, template)
    assert learn_turns(renderer(tokenizer, "2026-01-01")).opening.startswith("<|im_start|><|im_start|>system")
    tokenizer.add_bos_token = True
    if tokenizer("A text")["input_ids"][0] == tokenizer.bos_token_id:
        assert not learn_turns(renderer(tokenizer, "2026-01-01")).opening.startswith("<|im_start|><|im_start|>")


def test_it_says_file_system_prompt_sampling_and_stop(tmp_path):
    save_tokenizer(tmp_path, template=chat_template_with(CHATML, "Be brief.", "2026-01-01"), eos="<|endoftext|>")
    chat = {"system": "Be brief.", "temperature": 0.2, "top_p": 0.8, "context": 1024}
    recipe = Recipe(name="x", base="b", data={"sources": [{"path": "p"}]}, chat=chat)
    text = modelfile_of(recipe, tmp_path, 512)
    assert text.splitlines()[1] == "FROM ./x-Q8_0.gguf"
    assert 'SYSTEM """Be brief."""' in text and "TEMPLATE" in text
    parameters = [line for line in text.splitlines() if line.startswith("PARAMETER")]
    assert parameters == [
        "PARAMETER temperature 0.2", "PARAMETER top_p 0.8", "PARAMETER num_ctx 512",
        'PARAMETER stop "<|im_end|>"', 'PARAMETER stop "<|endoftext|>"',
    ]  # fmt: skip
