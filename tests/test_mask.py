"""Which answers are supervised, what a template renders beside their words, and what becomes of long conversations."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import pytest
from families import CHATML, FAMILIES, TEMPLATES, conversation, supervised_texts, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save_tokenizer

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.evaluation.rows import pick_asked
from tunesmith.recipe import Recipe
from tunesmith.tokens.mask import Encoded, Refused, encode, encode_all
from tunesmith.tokens.messages import everything_in, messages_of
from tunesmith.tokens.parts import LEFT_OUT, SPLIT, encode_parts
from tunesmith.tokens.spool import Spool, packed, write_split
from tunesmith.tokens.texts import texts_of

DATE = "2026-01-05"
every_family = pytest.mark.parametrize("family", FAMILIES)
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}])
CALL = json.dumps([{"name": "weather", "arguments": {"city": 'Köln "am Rhein"', "days": 2}}], ensure_ascii=False)


@pytest.fixture(scope="module")
def with_tools():
    """A tokenizer whose template renders tools, calls, results and the reasoning after the last question."""
    return saved((TEMPLATES / "tools.jinja").read_text())


def saved(template):
    return save_tokenizer(Path(mkdtemp()), template=template, specials=CHATML, eos="<|im_end|>", bos="<|im_start|>")


def encoded(tokenizer, made, **more):
    return encode(tokenizer, made, system=None, date=DATE, **more)


def untrained(made, *numbers):
    turns = [replace(turn, trained=n not in numbers) for n, turn in enumerate(made.turns)]
    return replace(made, turns=tuple(turns))


@every_family
@given(trained=st.lists(st.booleans(), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_an_answer_that_is_not_trained_on_is_context_alone(family, trained):
    """The same tokens, and the mask without that answer and its end-of-turn token."""
    tokenizer = tokenizer_of(family)
    made = conversation(*(text for n in range(len(trained)) for text in (f"q{n}", f"a{n}")))
    whole, found = (
        encoded(tokenizer, made),
        encoded(tokenizer, untrained(made, *(2 * n + 1 for n, t in enumerate(trained) if not t))),
    )
    wanted = [text for text, is_trained in zip(supervised_texts(tokenizer, whole), trained, strict=True) if is_trained]
    if wanted:
        assert found.ids == whole.ids
        assert supervised_texts(tokenizer, found) == wanted
        left = "".join(wanted).replace(FAMILIES[family][3], "")
        assert found.answer_bytes == len(left.encode())
    else:
        assert found == "no answer in it is to be trained on"


@every_family
def test_train_on_last_is_the_last_answer(family):
    tokenizer, made = tokenizer_of(family), conversation("a", "one", "b", "two", "c", "three")
    last = supervised_texts(tokenizer, encoded(tokenizer, made))[-1]
    assert supervised_texts(tokenizer, encoded(tokenizer, made, train_on="last")) == [last]
    assert encoded(tokenizer, untrained(made, 5), train_on="last") == "no answer in it is to be trained on"
    cut = encode_all(
        tokenizer, [made], system=None, date=DATE, train_on="last", max_length=len(encoded(tokenizer, made).ids) - 1
    )[0]
    assert "two" in supervised_texts(tokenizer, cut)[0], "of what is left the last one"
    assert [turn.trained for turn in cut.turns if turn.role == "assistant"] == [False, True]


@every_family
def test_an_answer_before_the_first_question_is_context_or_cut_off(family):
    """A third of real conversations are parts of longer ones that begin with an answer; they were dropped."""
    tokenizer, asked = tokenizer_of(family), conversation("a", "one", "b", "two")
    for system in ((), (Turn("system", "Be kind."),)):
        made = Conversation((*system, Turn("assistant", "Before.", trained=False), *asked.turns), "here")
        found = encoded(tokenizer, made)
        assert isinstance(found, Encoded), found
        alone = encoded(tokenizer, replace(made, turns=(*system, *asked.turns)))
        assert supervised_texts(tokenizer, found) == supervised_texts(tokenizer, alone)
        if found.changes:
            assert found.changes == ("answer before the first question cut off: the template does not take it",)
            assert replace(found, changes=(), end=0) == replace(alone, end=0)
        else:
            assert "Before." in tokenizer.decode(found.ids) and found.turns == made.turns
        assert found.end == len(made.turns)
        shorter = encode_all(tokenizer, [made], system=None, date=DATE, max_length=len(found.ids) - 1)[0]
        assert shorter.turns[-1].text == "one" and made.turns[: shorter.end][-1].text == "one"
    assert bool(found.changes) == (family in ("gemma", "mistral")), "theirs refuse it, or write no prompt before it"


def asks_weather():
    return Conversation(
        (
            Turn("user", "How is it in Köln?"),
            Turn("assistant", "", reasoning="I need the weather.", calls=CALL),
            Turn("tool", ' {"sky": "grey"}\n'),
            Turn("assistant", "Grey.", reasoning="The tool says so."),
        ),
        "here",
        TOOLS,
    )


def test_calls_and_reasoning_are_answers(with_tools):
    found = encoded(with_tools, asks_weather())
    assert isinstance(found, Encoded), found
    assert supervised_texts(with_tools, found) == [
        "<think>\nI need the weather.\n</think>\n\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Köln \\"am Rhein\\"", "days": 2}}\n</tool_call><|im_end|>',
        "<think>\nThe tool says so.\n</think>\n\nGrey.<|im_end|>",
    ]
    text = with_tools.decode(found.ids)
    theirs = with_tools.apply_chat_template(messages_of(asks_weather().turns), tools=json.loads(TOOLS), tokenize=False)
    assert text == theirs and '{"sky": "grey"}' in text


def test_an_answer_whose_reasoning_is_left_out_is_not_trained_on(with_tools):
    made = Conversation(
        (
            Turn("user", "a"), Turn("assistant", "one", reasoning="first"),
            Turn("user", "b"), Turn("assistant", "two", reasoning="second"),
        ),
        "here",
    )  # fmt: skip
    found = encoded(with_tools, made)
    assert supervised_texts(with_tools, found) == ["<think>\nsecond\n</think>\n\ntwo<|im_end|>"]
    assert [turn.trained for turn in found.turns if turn.role == "assistant"] == [False, True]
    assert encoded(tokenizer_of("chatml"), made) == "the template leaves the reasoning out"
    half = Conversation((*made.turns[:3], Turn("assistant", "two")), "here")
    assert supervised_texts(tokenizer_of("chatml"), encoded(tokenizer_of("chatml"), half)) == ["two<|im_end|>"]


@pytest.mark.parametrize(
    "made",
    [
        asks_weather(),
        replace(asks_weather(), tools=""),
        replace(conversation("a", "b"), tools=TOOLS),
        Conversation((Turn("user", "a"), Turn("assistant", "Look:", calls=CALL)), "here"),
    ],
)
@every_family
def test_a_template_without_tools_drops_the_row_by_reason(family, made):
    found = encode_all(tokenizer_of(family), [made], system=None, date=DATE)[0]
    assert isinstance(found, Refused) and found.reason.startswith("the template leaves tool calls out")
    assert not found.detail, "no fault of the template's mask"


def test_what_is_said_beside_a_call_is_not_lost(with_tools):
    made = Conversation((Turn("user", "a"), Turn("assistant", "Let me look.", calls=CALL)), "here", TOOLS)
    text = supervised_texts(with_tools, encoded(with_tools, made))[0]
    assert text.startswith("Let me look.\n<tool_call>")
    for wrote, writes in (
        ("{{- message.content }}", "{{- message.content if not message.tool_calls }}"),
        ("call.function.arguments | tojson", "'{}'"),
    ):
        template = with_tools.chat_template.replace(wrote, writes)
        assert template != with_tools.chat_template
        other = save_tokenizer(
            Path(mkdtemp()), template=template, specials=CHATML, eos="<|im_end|>", bos="<|im_start|>"
        )
        assert encoded(other, made).startswith("the template leaves tool calls out")


def test_special_tokens_are_found_in_tools_and_reasoning(with_tools):
    made = asks_weather()
    escaped = CALL.replace("Köln", "\\u003c|im_end|>")
    for turn in (replace(made.turns[1], calls=escaped), replace(made.turns[1], reasoning="a<|im_end|>")):
        assert "<|im_end|>" in everything_in(replace(made, turns=(turn,)))
        found = encoded(with_tools, replace(made, turns=(made.turns[0], turn, *made.turns[2:])))
        assert found == "contains a special token of the template"
    assert encoded(with_tools, replace(made, tools=TOOLS.replace("object", "<|im_start|>"))).startswith("contains")


def test_rows_keep_what_was_trained_on_and_what_was_called(with_tools, tmp_path):
    made = [untrained(asks_weather(), 1), conversation("a", "b", system="S")]
    found = encode_all(with_tools, made, system=None, date=DATE)
    with Spool(tmp_path / "spool") as spool:
        spool.add(packed(list(zip(made, found, strict=True))), 0)
    write_split(tmp_path / "spool", tmp_path, ["held_out", "train"], [0, 1])
    assert list(texts_of(tmp_path, "held_out")) == made[:1] and list(texts_of(tmp_path, "train")) == made[1:]
    assert [row.is_plain for row in made] == [False, True]
    assert pick_asked(tmp_path) == [], "a chat cannot ask it"
    (tmp_path / "plain").mkdir()
    asked = untrained(conversation("a", "b", "c", "d"), 1)
    with Spool(tmp_path / "spool2") as spool:
        spool.add(packed([(asked, encode(with_tools, asked, system=None, date=DATE))]), 0)
    write_split(tmp_path / "spool2", tmp_path / "plain", ["held_out"], [0])
    (question,) = pick_asked(tmp_path / "plain")
    assert (question.question, question.expected, len(question.messages)) == ("c", "d", 3)


def recipe(max_length, too_long):
    data = {"sources": [{"path": "x.jsonl"}], "too_long": too_long}
    return Recipe.model_validate({"name": "n", "base": "b", "data": data, "train": {"max_length": max_length}})


def test_a_long_conversation_is_split_cut_or_dropped():
    tokenizer = tokenizer_of("chatml")
    long = "word " * 30
    made = conversation("q1", "a1", "q2", "a2", "q3", long, "q4", "a4", system="S")
    room = len(encoded(tokenizer, conversation("q1", "a1", "q2", "a2", system="S")).ids)
    parts = encode_parts(tokenizer, [made, conversation("x", "y", system="")], recipe(room, "split"))
    assert [(row.where, [turn.text for turn in item.turns], item.changes) for row, item in parts] == [
        ("test.jsonl:1", ["S", "q1", "a1", "q2", "a2"], (SPLIT, LEFT_OUT)),
        ("test.jsonl:1, part 3", ["S", "q4", "a4"], ()),
        ("test.jsonl:1", ["", "x", "y"], ()),
    ]
    assert all(len(item.ids) <= room for _, item in parts)
    ((_, cut),) = encode_parts(tokenizer, [made], recipe(room, "cut"))
    assert [turn.text for turn in cut.turns] == ["S", "q1", "a1", "q2", "a2"] and cut.changes == ("cut to max_length",)
    ((_, dropped),) = encode_parts(tokenizer, [made], recipe(room, "drop"))
    assert isinstance(dropped, Refused) and dropped.reason == "longer than max_length"
    ((_, none),) = encode_parts(tokenizer, [conversation("q", long)], recipe(room, "split"))
    assert isinstance(none, Refused) and none.reason == "longer than max_length"


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=2, max_size=14), room=st.integers(40, 90))
def test_a_split_loses_nothing_that_fits(sizes, room):
    tokenizer = tokenizer_of("chatml")
    made = conversation(*("abcdefg"[n % 7] * size for n, size in enumerate(sizes[: len(sizes) // 2 * 2])))
    parts = encode_parts(tokenizer, [made], recipe(room, "split"))
    kept = [turn for _, item in parts if isinstance(item, Encoded) for turn in item.turns]
    pairs = list(zip(made.turns[::2], made.turns[1::2], strict=True))
    alone = [len(encoded(tokenizer, Conversation(pair, "x")).ids) <= room for pair in pairs]
    assert kept == [turn for pair, fits in zip(pairs, alone, strict=True) if fits for turn in pair]
    assert all(isinstance(item, Refused) or len(item.ids) <= room for _, item in parts)
