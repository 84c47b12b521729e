"""Rows of the four formats, and each way in which they can be wrong."""

import pytest

from tunesmith.data.conversation import Turn
from tunesmith.data.formats import column_names, format_of, to_turns
from tunesmith.data.meaning import BAD, MEDIA, PREFERENCE, REASONING, TOOLS, UNTRAINED
from tunesmith.errors import DataError
from tunesmith.recipe import Source

ASKED = (Turn("user", "Q"), Turn("assistant", "A"))
PARTS = [{"type": "text", "text": "Q"}, {"type": "text", "value": "!"}]


NO_HISTORY = "its history is not a list of questions with their answers"


def turns_of(row, **source):
    source = Source(path="x.jsonl", **source)
    return to_turns(row, format_of(row, source, "x.jsonl:1"), column_names(source))


def listed(*pairs, keys=("role", "content")):
    return [dict(zip(keys, pair, strict=True)) for pair in pairs]


ASKED_BY_ROLE = listed(("user", "Q"), ("assistant", "A"))
EARLIER = (Turn("user", "first"), Turn("assistant", "one"))


def answered(**beside):
    """The question, and the answer with these keys beside it."""
    return [ASKED_BY_ROLE[0], ASKED_BY_ROLE[1] | beside]


SHAREGPT = listed(("human", "Q"), ("gpt", "A"), keys=("from", "value"))


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"conversations": SHAREGPT}, {}, ASKED),
        ({"conversations": SHAREGPT, "system": "S"}, {}, (Turn("system", "S"), *ASKED)),
        ({"conversations": SHAREGPT, "system": " "}, {}, ASKED),
        ({"chat": SHAREGPT, "sys": "S"}, {"conversations": "chat", "system": "sys"}, (Turn("system", "S"), *ASKED)),
        ({"messages": listed(("user", "Q"), ("assistant", "A"))}, {}, ASKED),
        ({"conversations": None, "prompt": None, "messages": listed(("user", "Q"), ("assistant", "A"))}, {}, ASKED),
        ({"messages": [dict.fromkeys(("from", "value")) | turn for turn in ASKED_BY_ROLE]}, {}, ASKED),
        ({"conversations": [dict.fromkeys(("role", "content")) | turn for turn in SHAREGPT]}, {}, ASKED),
        ({"messages": '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]'}, {}, ASKED),
        ({"messages": listed(("user", PARTS), ("assistant", "A"))}, {}, (Turn("user", "Q!"), ASKED[1])),
        ({"messages": listed(("system", "S"), ("user", "Q")), "system": "T"}, {}, (Turn("system", "S"), ASKED[0])),
        ({"instruction": "Q", "input": "", "output": "A"}, {}, ASKED),
        ({"instruction": "Q", "input": None, "output": "A"}, {}, ASKED),
        ({"instruction": "Q", "response": "A"}, {"output": "response"}, ASKED),
        ({"instruction": "Q", "input": "I", "output": "A"}, {}, (Turn("user", "Q\n\nI"), ASKED[1])),
        ({"instruction": "", "input": "Q", "output": "A"}, {}, ASKED),
        ({"instruction": "Q", "output": "A", "history": []}, {}, ASKED),
        ({"instruction": "Q", "output": "A", "history": "[]"}, {}, ASKED),
        ({"instruction": "Q", "output": "A", "history": [["first", "one"]]}, {}, (*EARLIER, *ASKED)),
        ({"instruction": "Q", "output": "A", "history": '[["first", "one"]]'}, {}, (*EARLIER, *ASKED)),
        (
            {"messages": listed(("DEVELOPER", "S"), ("User ", "Q"), ("Assistant", "A"))},
            {},
            (Turn("system", "S"), *ASKED),
        ),
        ({"messages": ASKED_BY_ROLE, "tools": [], "images": None, "rejected": ""}, {}, ASKED),
        ({"messages": ASKED_BY_ROLE, "tools": "[]", "label": True}, {}, ASKED),
        ({"messages": ASKED_BY_ROLE, "label": 0}, {}, ASKED),  # a number of a class
        ({"image": "Q", "label": "A"}, {"prompt": "image", "completion": "label"}, ASKED),
        ({"messages": answered(weight=1, train=True, loss=1.0)}, {}, ASKED),
        ({"messages": answered(weight=None, reasoning_content="", thinking=None, tool_calls=[])}, {}, ASKED),
        ({"messages": [{"role": "user", "content": "Q", "weight": 0}, ASKED_BY_ROLE[1]]}, {}, ASKED),
        ({"prompt": "Q", "completion": "A"}, {}, ASKED),
        ({"prompt": "Q", "answer": "A"}, {"completion": "answer"}, ASKED),
        ({"prompt": listed(("user", "Q")), "completion": listed(("assistant", "A"))}, {}, ASKED),
        ({"prompt": "Q", "completion": "A", "messages": listed(("user", "first"))}, {}, (Turn("user", "first"),)),
    ],
)
def test_a_row_becomes_turns(row, columns, expected):
    assert turns_of(row, columns=columns) == expected


@pytest.mark.parametrize("speaker", ["gpt", "assistant", "chatgpt", "bing", "bard"])
def test_sharegpt_speakers(speaker):
    row = {"conversations": [{"from": "user", "value": "Q"}, {"from": speaker, "value": "A"}]}
    assert turns_of(row) == ASKED


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": listed(("narrator", "x"))}, 'unknown role "narrator"'),
        ({"messages": listed((None, "x"))}, "unknown role null"),
        ({"messages": [{"content": "x"}]}, "unknown role null"),
        ({"messages": listed(([], "x"))}, "unknown role []"),
        ({"messages": listed(("user", None))}, "a turn holds something other than text"),
        ({"messages": listed(("user", [{"type": "image", "url": "x"}]))}, "a turn holds something other than text"),
        ({"messages": listed(("user", ["x"]))}, "a turn holds something other than text"),
        ({"messages": listed(("tool", "x"))}, TOOLS),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, TOOLS),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, TOOLS),
        ({"conversations": [{"from": "observation", "value": "x"}]}, TOOLS),
        ({"messages": [{"role": "assistant", "content": "A", "function_call": {"name": "f"}}]}, TOOLS),
        ({"messages": ASKED_BY_ROLE, "tools": [{"type": "function"}]}, TOOLS),
        ({"conversations": SHAREGPT, "tools": '[{"name": "f"}]'}, TOOLS),
        ({"messages": ASKED_BY_ROLE, "functions": [{"name": "f"}]}, TOOLS),
        ({"messages": ASKED_BY_ROLE, "images": ["a.png"]}, MEDIA),
        ({"instruction": "Q", "output": "A", "image": "a.png"}, MEDIA),
        ({"prompt": "Q", "completion": "A", "label": False}, BAD),
        ({"conversations": SHAREGPT, "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]}, PREFERENCE),
        ({"messages": ASKED_BY_ROLE, "rejected_response": "B"}, PREFERENCE),
        ({"messages": answered(weight=0)}, f"{UNTRAINED} (weight: 0)"),
        ({"messages": answered(weight=0.5)}, f"{UNTRAINED} (weight: 0.5)"),
        ({"messages": answered(train=False)}, f"{UNTRAINED} (train: false)"),
        ({"messages": answered(loss=False)}, f"{UNTRAINED} (loss: false)"),
        ({"messages": answered(reasoning_content="for")}, REASONING),
        ({"messages": answered(thinking="for")}, REASONING),
        ({"instruction": "Q", "output": "A", "history": ["first"]}, NO_HISTORY),
        ({"instruction": "Q", "output": "A", "history": [["first"]]}, NO_HISTORY),
        ({"instruction": "Q", "output": "A", "history": "first"}, "turns are not valid JSON"),
        ({"messages": "hello"}, "turns are not valid JSON"),
        ({"messages": ["hello"]}, "turns are not a list of messages"),
        ({"messages": {"role": "user"}}, "turns are not a list of messages"),
        ({"messages": None}, "nothing in column messages"),
        ({"instruction": "Q", "output": None}, "nothing in column output"),
        ({"instruction": "Q", "output": 7}, "a turn holds something other than text"),
        ({"prompt": 7, "completion": "A"}, "turns are not a list of messages"),
    ],
)
def test_a_row_that_is_no_conversation_has_a_reason(row, reason):
    assert turns_of(row) == reason


def test_unknown_columns_name_those_found_and_those_needed():
    with pytest.raises(DataError) as error:
        turns_of({"question": "Q", "answer": "A"})
    for part in ("question, answer", "alpaca: instruction and output", "prompt-completion: prompt and completion",
                 "data.sources[].columns", "x.jsonl:1"):  # fmt: skip
        assert part in str(error.value)


def test_rows_below_a_key_are_named():
    with pytest.raises(DataError, match=r'columns version, data\..*\n.*fix: the rows are in the list "data"'):
        turns_of({"version": "1", "data": [{"instruction": "Q", "output": "A"}]})


def test_a_format_named_in_the_recipe_is_the_only_one_tried():
    row = {"messages": listed(("user", "Q")), "prompt": "P", "completion": "C"}
    assert turns_of(row, format="prompt-completion")[0] == Turn("user", "P")
    with pytest.raises(DataError, match="needs alpaca: instruction and output"):
        turns_of(row, format="alpaca")
