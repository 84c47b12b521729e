"""The supervised mask on eight template families: exactly the answers as rendered, each with its end-of-turn token."""

import copy
import json
import re
from dataclasses import replace

import pytest
from families import FAMILIES, as_rendered, conversation, supervised_texts, tokenizer_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tiny import save_tokenizer
from tokenizers import Tokenizer, normalizers

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.errors import DataError, RecipeError
from tunesmith.tokens.mask import Encoded, Refused, encode, encode_all
from tunesmith.tokens.messages import messages_of
from tunesmith.tokens.sent import to_send
from tunesmith.tokens.template import chat_template_with, end_of_turn_id, render
from tunesmith.tokens.tokenizer import load_tokenizer

DATE = "2026-01-05"
CROSSES = "a token crosses the border of an answer"
every_family = pytest.mark.parametrize("family", FAMILIES)


def encoded_by(family, made, **settings):
    return encode(tokenizer_of(family), made, **({"system": None, "date": DATE} | settings))


def check(family, made):
    """The mask is the answers as rendered; the ids are those of transformers' own rendering and tokenising."""
    tokenizer, encoded = tokenizer_of(family), encoded_by(family, made)
    assert isinstance(encoded, Encoded), encoded
    answers = [turn.text for turn in made.turns if turn.role == "assistant"]
    rendered = [as_rendered(family, text, is_last=n == len(answers)) for n, text in enumerate(answers, 1)]
    end = FAMILIES[family][3]
    assert supervised_texts(tokenizer, encoded) == [text + end for text in rendered]
    assert encoded.answer_bytes == sum(len(text.encode()) for text in rendered)
    dated = tokenizer.chat_template.replace('strftime_now("%d %B %Y")', '"05 January 2026"')
    theirs = tokenizer.apply_chat_template(
        messages_of(made.turns), chat_template=dated, date_string="05 Jan 2026", tokenize=False
    )
    assert encoded.ids == tokenizer(theirs, add_special_tokens=False)["input_ids"]


@every_family
@pytest.mark.parametrize(
    "made",
    [
        conversation("Hi", "Hello."),
        conversation("Hi", "Hello.", "And?", "More.", "And?", "Most.", system="Be kind."),
        conversation("same", "same", "same", "same"),
        conversation("assistant", "user", "assistant\n", "system"),
        conversation("Why 😀?", "é\u0301 ½ 日本語 👩\u200d👩\u200d👧 ١٢٣", "e\u0301", "नमस्ते दुनिया"),
        conversation("Hi", "  indented, trailing \n"),
        conversation("Hi", "\n\nafter lines", "x", " y"),
        conversation("Think", "<think>\none\n\ntwo\n</think>\n\nParis", "Again", "<think>\nthree\n</think>\n\nRome"),
        conversation("Think", "<think>\n\n</think>\n\nParis"),
        conversation("Look", "a {{ messages }} {% if x %} # {# y #}"),
        conversation(*["long question " * 300, "long answer " * 300] * 3),
    ],
    ids=lambda made: repr(made.turns[-1].text[:14]),
)
def test_supervised_is_the_answer_as_rendered(family, made):
    check(family, made)


WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cn")) | st.sampled_from(" \n\t<>[]|/"), max_size=40
)
SPECIAL = re.compile(r"<\|.*\|>|</?\w+>|\[/?[A-Z]+\]")  # of a template, which a row may not hold
SAID = WORDS.map(str.strip).filter(bool).filter(lambda text: not SPECIAL.search(text))


@every_family
@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4), system=st.none() | SAID)
def test_supervised_is_the_answer_in_any_conversation(family, turns, system):
    check(family, conversation(*(text for turn in turns for text in turn), system=system))


WORD = re.compile("one|two|three|With|reason|Paris")
TAGGED = st.lists(
    st.sampled_from(["<think>", "</think>", "one", " two ", "\n", "\n\n", "three"]), min_size=1, max_size=7
)


@every_family
@settings(max_examples=150, deadline=None)
@given(st.lists(TAGGED.map("".join).map(str.strip).filter(bool), min_size=1, max_size=3))
@example(["With </think>"])
@example(["<think>\nreason\n</think>"])
@example(["<think>"])
@example(["</think>"])
@example(["<think></think>", "Paris"])
def test_think_tags_anywhere_in_an_answer(family, answers):
    """An answer that ended in a tag was dropped, and said to have no end-of-turn token."""
    made = conversation(*(text for answer in answers for text in ("Ask", answer)))
    left = [as_rendered(family, text, is_last=n == len(answers)) for n, text in enumerate(answers, 1)]
    pairs = list(zip(answers, left, strict=True))
    if any(not text.strip() or (WORD.search(answer) and not WORD.search(text)) for answer, text in pairs):
        assert family == "qwen3", "no other template takes thoughts out"
        assert encoded_by(family, made) == "an answer is not in the rendered text"
    else:
        check(family, made)


@every_family
def test_the_end_token_and_its_place(family):
    tokenizer, encoded = tokenizer_of(family), encoded_by(family, conversation("a", "b", "c", "d"))
    end = end_of_turn_id(tokenizer)
    assert end == tokenizer.convert_tokens_to_ids(FAMILIES[family][3])
    supervised = [token for token, is_supervised in zip(encoded.ids, encoded.supervised, strict=True) if is_supervised]
    assert supervised.count(end) == 2


@every_family
def test_special_tokens_in_the_data_are_refused(family):
    for special in [*FAMILIES[family][0], *(["[INST]", "[/INST]"] if family == "mistral" else [])]:
        for texts in (("a", f"b {special} c"), (f"a{special}", "b"), ("a", "b", special, "d")):
            assert encoded_by(family, conversation(*texts)) == "contains a special token of the template"
    assert encoded_by(family, conversation("a", "\ufdd0")) == "contains a special token of the template"


@every_family
def test_a_token_across_the_border_is_refused(family):
    tokenizer = save_tokenizer_with_double_newline(family)
    found = encode(tokenizer, conversation("a", "\nb"), system=None, date=DATE)
    if family in ("chatml", "phi"):  # the prompt ends with a new line, and the answer's is kept
        assert found == CROSSES
    else:
        assert isinstance(found, Encoded)
    assert isinstance(encode(tokenizer, conversation("a", "b\n\nc"), system=None, date=DATE), Encoded)


def save_tokenizer_with_double_newline(family):
    tokenizer = copy.deepcopy(tokenizer_of(family))
    tokenizer.add_tokens(["\n\n"])
    return tokenizer


@every_family
def test_a_long_conversation_is_cut_after_the_last_answer_that_fits(family):
    tokenizer = tokenizer_of(family)
    made = conversation(*(word * 20 for word in "abcdefgh"), system="Be kind.")
    whole = encoded_by(family, made)
    for max_length in range(len(whole.ids), 0, -7):
        found = encode_all(tokenizer, [made], system=None, date=DATE, max_length=max_length)[0]
        if isinstance(found, Refused):
            assert found.reason == "longer than max_length"
            break
        assert len(found.ids) <= max_length
        shorter = Conversation(found.turns, made.where)
        assert shorter.turns[-1].role == "assistant"
        assert replace(found, changes=()) == encoded_by(family, shorter)
        assert ("cut to max_length" in found.changes) == (found.end < len(made.turns))
        if found.end < len(made.turns):
            longer = encoded_by(family, Conversation(made.turns[: found.end + 2], made.where))
            assert len(longer.ids) > max_length
    else:
        pytest.fail("the shortest max_length was long enough")


@every_family
def test_one_by_one_and_in_a_batch_are_the_same(family):
    many = [conversation("a", "b" * n, "c", "d") for n in range(1, 30)]
    many[7] = conversation("a", FAMILIES[family][3])
    found = encode_all(tokenizer_of(family), many, system=None, date=DATE)
    alone = [encoded_by(family, made) for made in many]
    assert [item.reason if isinstance(item, Refused) else item for item in found] == alone


@every_family
def test_the_system_prompt_of_the_recipe_stands_in_where_there_is_none(family):
    tokenizer, odd = tokenizer_of(family), 'Say "hi", it\'s {{ x }} %} \\ ok\nline é'
    asked, given_one = conversation("a", "b", "c", "d"), conversation("a", "b", system="Mine.")
    with_system = conversation("a", "b", "c", "d", system=odd)
    assert encoded_by(family, asked, system=odd) == replace(encoded_by(family, with_system), turns=asked.turns, end=4)
    assert encoded_by(family, given_one, system=odd) == encoded_by(family, given_one)
    text = render(tokenizer, messages_of(asked.turns), system=odd, date=DATE)
    assert odd in text and render(tokenizer, messages_of(asked.turns), system=None, date=DATE) != text


@every_family
def test_the_template_with_prefix_is_stable_and_keeps_what_it_renders(family):
    tokenizer = tokenizer_of(family)
    template = chat_template_with(tokenizer.chat_template, "Be kind.", DATE)
    assert chat_template_with(template, "Be kind.", DATE) == template
    messages = messages_of(conversation("a", "b").turns)
    ours = render(tokenizer, messages, system="Be kind.", date=DATE, add_generation_prompt=True)
    theirs = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert ours == theirs


def test_dates_never_come_from_the_clock():
    tokenizer, messages = tokenizer_of("llama3"), messages_of(conversation("a", "b").turns)
    assert "Today Date: 05 Jan 2026\n" in render(tokenizer, messages, system=None, date=DATE)
    template = "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(\"%d %B %Y\") }}{{ messages[0].content }}"
    tokenizer = save_tokenizer_with(template)
    assert render(tokenizer, messages, system=None, date=DATE) == "2026-01-05 05 January 2026a"
    tokenizer = save_tokenizer_with(
        "{{ date_string if date_string is defined else '26 Jul 2024' }}{{ messages[0].content }}"
    )
    assert render(tokenizer, messages, system=None, date=DATE) == "05 Jan 2026a"
    with pytest.raises(RecipeError, match='"tomorrow", which is no day'):
        render(tokenizer, messages, system=None, date="tomorrow")


def save_tokenizer_with(template):
    tokenizer = copy.deepcopy(tokenizer_of("chatml"))
    tokenizer.chat_template = template
    return tokenizer


LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ BODY }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_a_template_that_always_writes_the_generation_prompt():
    tokenizer = save_tokenizer_with(LOOP.replace("BODY", "m.content") + "{{ '<|im_start|>assistant\n' }}")
    encoded = encode(tokenizer, conversation("a", "b", "c", "d"), system=None, date=DATE)
    assert supervised_texts(tokenizer, encoded) == ["b<|im_end|>", "d<|im_end|>"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("m.content[:5]", "the answers cannot be found in the rendered text"),
        (
            "'' if m.role == 'assistant' and 'drop' in m.content else m.content",
            "an answer is not in the rendered text",
        ),
        (
            "m.content + ('. Yes' if m.role == 'assistant' and m.content | length > 3 else '')",
            "no end-of-turn token after an answer",
        ),
        ("raise_exception('too long') if m.content | length > 3 else m.content", "the template refuses it: too long"),
    ],
)
def test_a_template_that_hides_answers_is_refused_with_what_was_found(body, reason):
    tokenizer = save_tokenizer_with(LOOP.replace("BODY", body) + PROMPT)
    found = encode_all(tokenizer, [conversation("a", "drop me", "c", "word " * 5)], system=None, date=DATE)[0]
    assert isinstance(found, Refused) and found.reason == reason and found.detail


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ",
        LOOP.replace("BODY", "m.content if m.role == 'user' or loop.last else ''") + PROMPT,
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_can_train_nothing_is_refused(template):
    with pytest.raises(DataError, match="chat template"):
        encode(save_tokenizer_with(template), conversation("a", "b"), system=None, date=DATE)


@pytest.mark.parametrize(
    ("template", "system", "error", "message"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}" + LOOP + PROMPT,
         "Be kind.", DataError, r"takes no system prompt: No system.\n  fix: remove chat.system"),
        ("{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + LOOP + PROMPT,
         "Be kind.", DataError, r"leaves the system prompt out\n  fix: remove chat.system"),
        ("{{ raise_exception('never') }}", "Be kind.", DataError,
         r"refuses a plain conversation.*\n  fix: use another"),
        (LOOP + PROMPT, "Be <|im_end|> kind.", RecipeError,
         r"chat.system contains '<\|im_end\|>'.*\n  fix: take it out"),
        (LOOP + PROMPT, "Be \ufdd1 kind.", RecipeError, r"chat.system holds .*\n  fix: take it out"),
    ],
)  # fmt: skip
def test_a_system_prompt_of_the_recipe_that_cannot_be_used_is_named(template, system, error, message):
    tokenizer = save_tokenizer_with(template.replace("BODY", "m.content"))
    with pytest.raises(error, match=message):
        encode(tokenizer, conversation("a", "b"), system=system, date=DATE)
    assert (
        system != "Be kind." or "never" in template or encode(tokenizer, conversation("a", "b"), system=None, date=DATE)
    )


def test_a_row_with_a_system_prompt_that_the_template_does_not_take():
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}" + LOOP + PROMPT
    tokenizer = save_tokenizer_with(no_system.replace("BODY", "m.content"))
    made = [conversation("a", "b", system="S"), conversation("a", "b")]
    refused, encoded = encode_all(tokenizer, made, system=None, date=DATE)
    assert (refused.reason, refused.detail) == ("the template takes no system prompt", "No system.")
    assert isinstance(encoded, Encoded)


def test_smollm3_is_told_not_to_think_by_its_system_prompt():
    """Its empty thought is then part of the generation prompt, and no part of the answer."""
    tokenizer, asked = tokenizer_of("smollm3"), conversation("a", "b", "c", "d")
    encoded = encode(tokenizer, asked, system="Be kind. /no_think", date=DATE)
    assert supervised_texts(tokenizer, encoded) == ["b<|im_end|>", "d<|im_end|>"]
    assert tokenizer.decode(encoded.ids).count("<think>\n\n</think>\n") == 2


def test_gemma_refuses_roles_out_of_turn():
    turns = (Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c"))
    found = encoded_by("gemma", Conversation(turns, "here"))
    assert found.startswith("the template refuses it: Conversation roles must alternate")
    with pytest.raises(TemplateError):
        render(tokenizer_of("gemma"), messages_of(turns), system=None, date=DATE)


def test_no_answer_has_no_tokens():
    assert encoded_by("chatml", conversation("only a question")) == "an answer is not in the rendered text"


def test_a_tokenizer_that_composes_letters_is_no_failure(tmp_path):
    tokenizer = save_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    encoded = encode(tokenizer, conversation("e\u0301", "e\u0301 o\u0302"), system=None, date=DATE)
    assert supervised_texts(tokenizer, encoded) == ["é ô<|im_end|>"]


def test_a_tokenizer_that_was_saved_while_it_cut_and_padded_does_neither(tmp_path):
    save_tokenizer(tmp_path)
    rows = [conversation("a", "b"), conversation("a", "b " * 30)]
    whole = encode_all(load_tokenizer(tmp_path), rows, system=None, date=DATE)
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    raw.enable_truncation(20)
    raw.enable_padding()
    raw.save(str(tmp_path / "tokenizer.json"))
    assert encode_all(to_send(load_tokenizer(tmp_path)), rows, system=None, date=DATE) == whole
    assert len(whole[0].ids) < len(whole[1].ids)


def test_token_ids_with_gaps_between_them_are_looked_up(tmp_path):
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    saved = json.loads(path.read_text())
    taken = {token["id"] for token in saved["added_tokens"]}
    vocab = saved["model"]["vocab"]
    saved["model"]["vocab"] = {token: id if id in taken else id + 1000 for token, id in vocab.items()}
    path.write_text(json.dumps(saved))
    tokenizer = load_tokenizer(tmp_path)
    encoded = encode(tokenizer, conversation("a", "b é 日"), system=None, date=DATE)
    assert min(encoded.ids[-3:-2]) > len(tokenizer) and supervised_texts(tokenizer, encoded) == ["b é 日<|im_end|>"]
