"""What makes rows fast is what the libraries make: Arrow columns, the text of tokens, the seconds, the time left."""

import pickle
import re

import pyarrow
import pytest
from families import conversation, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_rows
from tokenizers import Tokenizer, decoders, models

from tunesmith import console
from tunesmith.data.conversation import Conversation, Turn
from tunesmith.data.read import conversations
from tunesmith.errors import ResourceError
from tunesmith.recipe import Source
from tunesmith.tokens.columns import flags, lists, numbers, structs, texts
from tunesmith.tokens.laps import add_laps, lap, timed
from tunesmith.tokens.mask import encode_all
from tunesmith.tokens.pace import paced
from tunesmith.tokens.sent import to_send
from tunesmith.tokens.spelled import spells

TEXTS = st.none() | st.text(max_size=8)


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(TEXTS, st.none() | st.booleans(), st.integers(-(2**63), 2**63 - 1)), max_size=3)))
def test_columns_are_those_of_pyarrow(rows):
    kind = pyarrow.struct({"text": pyarrow.string(), "flag": pyarrow.bool_(), "number": pyarrow.int64()})
    items = [item for row in rows for item in row]
    cells = structs(kind, [texts([a for a, _, _ in items]), flags([b for _, b, _ in items]),
                           numbers([c for _, _, c in items], pyarrow.int64())])  # fmt: skip
    made = lists(pyarrow.list_(kind), [len(row) for row in rows], cells)
    made.validate(full=True)
    expected = [[dict(zip(("text", "flag", "number"), item, strict=True)) for item in row] for row in rows]
    assert made.equals(pyarrow.array(expected, pyarrow.list_(kind)))


def test_more_than_a_table_takes_is_an_error_with_the_fix():
    with pytest.raises(ResourceError, match=r"2\.0 GiB together .*\n  fix: lower train\.max_length"):
        lists(pyarrow.list_(pyarrow.int64()), [2**31], numbers([], pyarrow.int64()))


@settings(deadline=None)
@given(st.text(min_size=1))
def test_tokens_are_looked_up_as_the_decoder_writes_them(text):
    backend = tokenizer_of("llama3").backend_tokenizer
    spell, ids = spells(backend), backend.encode(text, add_special_tokens=False).ids
    assert spell(ids, text.encode()) and spell(ids, text.encode())
    assert not spell(ids[:-1], text.encode()) and not spell([*ids, ids[0]], text.encode())
    assert not spell(ids, backend.decode(ids[::-1]).encode()) or ids == ids[::-1]


def test_a_decoder_that_writes_tokens_by_their_neighbours_is_asked_itself():
    odd = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    odd.decoder = decoders.Metaspace()
    assert not spells(odd)([0], b"a")


@pytest.mark.parametrize("family", ["llama3", "qwen3", "mistral"])
def test_a_tokenizer_that_was_sent_makes_the_same_rows(family):
    tokenizer = tokenizer_of(family)
    sent = pickle.loads(pickle.dumps(to_send(tokenizer)))
    made = [conversation("Hi", "Hello \N{SNOWMAN}.", "And?", " More."), conversation("a", "b", system="Be kind.")]
    of = [encode_all(each, made, system=None, date="2026-01-01") for each in (tokenizer, sent)]
    assert list(map(repr, of[0])) == list(map(repr, of[1]))


def test_conversations_are_handed_over_whole():
    made = Conversation((Turn("assistant", "a", False, "why", "[]"), Turn("tool", "b")), "x:1", "[{}]")
    assert pickle.loads(pickle.dumps(made)) == made


def test_seconds_are_of_the_innermost_that_times_them_and_can_be_handed_on():
    with timed() as outer:
        with timed() as inner, lap("a"):
            sum(range(10000))
        assert outer == {} and inner["a"] > 0
        add_laps({"a": 2.0})
        add_laps({"a": 1.0, "b": 1.0})
    add_laps({"a": 9.0})  # nobody times it
    assert outer == {"a": 3.0, "b": 1.0}


def test_the_time_left_is_told_by_the_bytes_that_are_read(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(console, "LINE_EVERY_S", 0)
    path = write_rows(tmp_path / "rows.jsonl", [["q", "x" * 1000]] * 4000)
    with paced([Source(path=str(path))]) as made:
        for number, _ in enumerate(conversations(Source(path=str(path))), 1):
            if number % 1000 == 0:
                made(1000)
    told = re.findall(r"prepare: (\d) of 4 MB, .* left, ([\d,]+) rows, [\d,]+ rows/s", capfd.readouterr().err)
    assert [rows for _, rows in told] == ["1,000", "2,000", "3,000"] and [int(mb) for mb, _ in told] == [1, 2, 3]
    with paced([Source(path=str(path), limit=5)]) as made:
        made(5)
    assert re.search(r"prepare: 5 rows so far, [\d,]+ rows/s", capfd.readouterr().err)
