"""Rows of the formats, what they say beside their words, and each way in which they can be wrong."""

import json

import pytest

from tunesmith.data.calls import NO_CALL, NO_NUMBER, NO_TOOLS
from tunesmith.data.conversation import Conversation, Turn
from tunesmith.data.formats import NO_HISTORY, NO_INSTANCES
from tunesmith.data.judged import HEAD_ROWS, MOST_WAITING, NO_FORMAT, judged
from tunesmith.data.meaning import BAD, MEDIA, NO_WEIGHT, NOT_TRAINED_ON, PARTLY, PREFERENCE
from tunesmith.data.noted import FURTHER, LONGEST_NAME, MOST_NAMES, Noted
from tunesmith.data.turns import NO_LIST, NO_TEXT
from tunesmith.errors import DataError
from tunesmith.recipe import Source

ASKED = (Turn("user", "Q"), Turn("assistant", "A"))
PARTS = [{"type": "text", "text": "Q"}, {"type": "text", "value": "!"}]
UNKNOWN = ' (map it in the recipe, as in data.roles: {"...": user})'


def read(*rows, roles=None, noted=None, **source):
    placed = ((f"x.jsonl:{number}", row) for number, row in enumerate(rows, 1))
    return list(judged(placed, Source(path="x.jsonl", **source), roles or {}, noted or Noted()))


def turns_of(row, **source):
    (found,) = read(row, **source)
    return found.turns if isinstance(found, Conversation) else found.reason


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
        ({"messages": ASKED_BY_ROLE, "weight": 2, "train": True, "loss": 0.7, "training": ""}, {}, ASKED),
        ({"train": "Q", "loss": "0"}, {"prompt": "train", "completion": "loss"}, (ASKED[0], Turn("assistant", "0"))),
        ({"image": "Q", "label": "A"}, {"prompt": "image", "completion": "label"}, ASKED),
        ({"messages": answered(weight=1, train=True, loss=1.0)}, {}, ASKED),
        ({"messages": answered(weight=None, reasoning_content="", thinking=None, tool_calls=[])}, {}, ASKED),
        ({"messages": [{"role": "user", "content": "Q", "weight": 0}, ASKED_BY_ROLE[1]]}, {}, ASKED),
        ({"prompt": "Q", "completion": "A"}, {}, ASKED),
        ({"prompt": "Q", "reply": "A"}, {"completion": "reply"}, ASKED),
        ({"prompt": "Q", "answer": "A"}, {}, ASKED),
        ({"prompt": "Q", "response": "A", "system_prompt": "S"}, {}, (Turn("system", "S"), *ASKED)),
        ({"instruction": "Q", "context": "I", "response": "A"}, {}, (Turn("user", "Q\n\nI"), ASKED[1])),
        ({"instruction": "Q", "input": "", "output": None, "response": "A"}, {}, ASKED),
        ({"question": "Q", "answer": "A"}, {}, ASKED),
        ({"query": "Q", "response": "A", "context": "I"}, {}, (Turn("user", "Q\n\nI"), ASKED[1])),
        ({"system_prompt": "S", "question": "Q", "response": "A"}, {}, (Turn("system", "S"), *ASKED)),
        ({"ask": "Q", "reply": "A"}, {"question": "ask", "answer": "reply"}, ASKED),
        ({"conversation": SHAREGPT}, {}, ASKED),
        ({"conversations": [{"speaker": "human", "text": "Q"}, {"speaker": "gpt", "text": "A"}]}, {}, ASKED),
        ({"instruction": "Q", "instances": [{"input": "", "output": "A"}]}, {}, ASKED),
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
        ({"messages": listed(("narrator", "x"))}, f'unknown role "narrator"{UNKNOWN}'),
        ({"messages": listed((None, "x"))}, "unknown role null"),
        ({"messages": [{"content": "x"}]}, "unknown role null"),
        ({"messages": listed(([], "x"))}, "unknown role []"),
        ({"messages": listed(("user", None))}, NO_TEXT),
        ({"messages": listed(("assistant", None))}, NO_TEXT),
        ({"messages": listed(("user", [{"type": "image_url", "url": "x"}]))}, MEDIA),
        ({"messages": listed(("user", [{"type": "odd"}]))}, NO_TEXT),
        ({"messages": listed(("user", ["x"]))}, NO_TEXT),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, NO_CALL),
        (
            {"messages": [{"role": "assistant", "content": "A", "tool_calls": [{"name": "f", "arguments": "x"}]}]},
            NO_CALL,
        ),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, NO_CALL),
        ({"conversations": [{"from": "tool_call", "value": '{"name": "f", "arguments": {"x": NaN}}'}]}, NO_NUMBER),
        ({"messages": ASKED_BY_ROLE, "tools": "one that looks"}, NO_TOOLS),
        ({"messages": ASKED_BY_ROLE, "tools": [{"type": "function"}]}, NO_TOOLS),
        ({"messages": ASKED_BY_ROLE, "images": ["a.png"]}, MEDIA),
        ({"instruction": "Q", "output": "A", "image": "a.png"}, MEDIA),
        ({"prompt": "Q", "completion": "A", "label": False}, f"{BAD} (label: false)"),
        ({"messages": ASKED_BY_ROLE, "kto_tag": False}, f"{BAD} (kto_tag: false)"),
        ({"prompt": "Q", "completion": "A", "label": "False"}, f"{BAD} (label: false)"),  # of CSV
        ({"question": "Q", "answer": "A", "weight": 0}, f"{NOT_TRAINED_ON} (weight: 0)"),
        ({"question": "Q", "answer": "A", "loss_weight": "0.0"}, f"{NOT_TRAINED_ON} (loss_weight: 0.0)"),
        ({"messages": ASKED_BY_ROLE, "train": False}, f"{NOT_TRAINED_ON} (train: false)"),
        ({"instruction": "Q", "output": "A", "loss": "FALSE"}, f"{NOT_TRAINED_ON} (loss: false)"),
        ({"conversations": SHAREGPT, "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]}, PREFERENCE),
        ({"messages": ASKED_BY_ROLE, "rejected_response": "B"}, PREFERENCE),
        ({"question": "Q", "chosen": "A", "rejected": "B"}, PREFERENCE),  # of no format, and why is known
        ({"messages": answered(weight=0.5)}, f"{NO_WEIGHT} (weight: 0.5)"),
        ({"messages": answered(train="no")}, f'{NO_WEIGHT} (train: "no")'),
        ({"messages": answered(train_detail=[{"begin_offset": 0}])}, PARTLY),
        ({"instruction": "Q", "output": "A", "history": ["first"]}, NO_HISTORY),
        ({"instruction": "Q", "output": "A", "history": [["first"]]}, NO_HISTORY),
        ({"instruction": "Q", "output": "A", "history": "first"}, NO_HISTORY),
        ({"instruction": "Q", "instances": []}, NO_INSTANCES),
        ({"instruction": "Q", "instances": [{"input": ""}]}, NO_TEXT),
        ({"messages": "hello"}, "turns are not valid JSON"),
        ({"messages": ["hello"]}, NO_LIST),
        ({"messages": {"role": "user"}}, NO_LIST),
        ({"messages": None}, "nothing in column messages"),
        ({"instruction": "Q", "output": None}, "nothing in column output"),
        ({"instruction": "Q", "output": 7}, NO_TEXT),
        ({"prompt": 7, "completion": "A"}, NO_LIST),
    ],
)
def test_a_row_that_is_no_conversation_has_a_reason(row, reason):
    assert turns_of(row) == reason


def test_unknown_columns_name_those_found_and_those_needed():
    with pytest.raises(DataError) as error:
        read({"theme": "Q", "reply": "A"}, {"title": "Q"})
    for part in ("theme, reply", "alpaca: instruction and output/response/answer", "question/query and answer/response",
                 "data.sources[].columns", "x.jsonl:1"):  # fmt: skip
        assert part in str(error.value)


def test_rows_below_a_key_are_named():
    with pytest.raises(DataError, match=r'columns version, data\..*\n.*fix: the rows are in the list "data"'):
        turns_of({"version": "1", "data": [{"instruction": "Q", "output": "A"}]})


def test_a_format_named_in_the_recipe_is_the_only_one_tried():
    row = {"messages": listed(("user", "Q")), "prompt": "P", "completion": "C"}
    assert turns_of(row, format="prompt-completion")[0] == Turn("user", "P")
    with pytest.raises(DataError, match="needs alpaca: instruction and output/"):
        turns_of(row, format="alpaca")


NAMED = {"name": "look", "arguments": {"at": "é"}}
CALLED = '[{"name": "look", "arguments": {"at": "é"}}]'
TEXT = '{"at": "é"}'
SCHEMA = {"name": "look", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (answered(tool_calls=[{"id": "1", "type": "function", "function": NAMED}], content=None), ("", CALLED)),
        (answered(tool_calls=[{"function": {"name": "look", "arguments": TEXT}}], content="So:"), ("So:", CALLED)),
        (answered(tool_calls=json.dumps([NAMED]), content=""), ("", CALLED)),
        (answered(function_call={"name": "look", "arguments": TEXT}, content=None), ("", CALLED)),
        (answered(tool_calls=[{"name": "look", "arguments": {"at": "é", "padded": None}}]), ("A", CALLED)),
        (answered(tool_calls=[{"name": "now", "arguments": ""}]), ("A", '[{"name": "now", "arguments": {}}]')),
        ([*SHAREGPT[:1], {"from": "function_call", "value": json.dumps(NAMED)}], ("", CALLED)),
        ([*SHAREGPT, {"from": "function_call", "value": json.dumps([NAMED])}], ("A", CALLED)),  # one answer, not two
        (
            [*SHAREGPT, *[{"from": "tool_call", "value": json.dumps(NAMED)}] * 2],
            ("A", f"{CALLED[:-1]}, {CALLED[1:]}"),
        ),
    ],
)
def test_tool_calls_of_each_form_are_one(turns, expected):
    *_, last = turns_of({"messages": [*turns, {"role": "ipython", "content": {"seen": 1}}]})[:2]
    assert (last.text, last.calls) == expected
    assert turns_of({"messages": [*turns, {"role": "observation", "content": {"seen": 1}}]})[2:] == (
        Turn("tool", '{"seen": 1}'),
    )


@pytest.mark.parametrize(
    "tools",
    [
        {"tools": [{"type": "function", "function": SCHEMA}]},
        {"tools": json.dumps([SCHEMA])},
        {"functions": [SCHEMA | {"strict": None}]},
        {"tools": [], "functions": [SCHEMA]},
        {"tools": [json.dumps(SCHEMA)]},
    ],
)
def test_tools_of_each_form_are_one(tools):
    (found,) = read({"messages": ASKED_BY_ROLE} | tools)
    assert json.loads(found.tools) == [{"type": "function", "function": SCHEMA}] and found.turns == ASKED


@pytest.mark.parametrize(
    ("row", "trained"),
    [
        ({"messages": answered(weight=0) + answered()}, [False, True]),
        ({"messages": answered(train=False) + answered(weight=1.0)}, [False, True]),
        ({"messages": answered(loss=False) + answered(loss=True)}, [False, True]),
        ({"messages": answered(training=False) + answered(training=True)}, [False, True]),
        ({"messages": answered(loss_weight=0.0) + answered(loss_weight=1.0)}, [False, True]),
        ({"messages": answered(weight=1, train=False)}, [False]),
        ({"prompt": ASKED_BY_ROLE * 2, "completion": "B"}, [False, False, True]),
        ({"prompt": "Q", "completion": answered(weight=0)[1:]}, [False]),
    ],
)
def test_answers_that_are_context_are_not_trained(row, trained):
    assert [turn.trained for turn in turns_of(row) if turn.role == "assistant"] == trained
    assert all(turn.trained for turn in turns_of(row) if turn.role != "assistant")


THOUGHT = (ASKED[0], Turn("assistant", "A", reasoning="for"))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": answered(reasoning_content="for")},
        {"messages": answered(thinking="for", reasoning=None)},
        {"messages": answered(content=[{"type": "thinking", "thinking": "for"}, {"type": "text", "text": "A"}])},
        {"messages": answered(
            content=[{"type": "thinking", "thinking": [{"type": "text", "text": "for"}]}, {"type": "text", "text": "A"}]
        )},
        {"question": "Q", "answer": "A", "reasoning": "for"},
        {"instruction": "Q", "output": "A", "thinking": "for"},
        {"prompt": "Q", "completion": "A", "reasoning_content": "for"},
    ],
)  # fmt: skip
def test_what_was_thought_is_kept_beside_the_answer(row):
    assert turns_of(row) == THOUGHT


def test_columns_and_keys_that_are_not_used_are_named_once_with_their_rows():
    noted, row = Noted(), {"messages": [ASKED_BY_ROLE[0] | {"name": "Eve"}, *answered()], "id": 7, "tools": None}
    read(row, row | {"source": ""}, {"prompt": "Q", "answer": "A", "response": "B"}, noted=noted)
    assert dict(noted.unused) == {"id": 2, "messages[].name": 2, "answer": 1}
    assert dict(noted.formats) == {"messages": 2, "prompt-completion": 1} and noted.form == "messages"


def test_names_of_columns_that_are_not_used_are_short_few_and_steer_nothing():
    noted = Noted()
    found = read({"prompt": "Q", "completion": "A", "k" * 10_000: 1, "\u202egnp": 2, "a\nb": 3}, noted=noted)
    assert dict(noted.unused) == {"k" * (LONGEST_NAME - 1) + "…": 1, "\ufffdgnp": 1, "a b": 1} and len(found) == 1
    read(*({"prompt": "Q", "completion": "A", f"id-{n}": 1} for n in range(2 * MOST_NAMES)), noted=noted)
    assert len(noted.unused) == MOST_NAMES + 1
    assert noted.unused[FURTHER] == MOST_NAMES + 3
    assert turns_of({"messages": [{"role": "\u202ex", "content": "Q"}]}).startswith('unknown role "\ufffdx"')


def test_each_row_of_mixed_formats_is_judged_by_its_own_columns():
    found = read({"theme": "x"}, {"messages": ASKED_BY_ROLE}, {"question": "Q", "answer": "A"}, {"theme": "y z"},
                 {"messages": ASKED_BY_ROLE, "instruction": "B", "output": "C"},
                 {"messages": None, "conversations": SHAREGPT})  # fmt: skip
    assert [getattr(row, "turns", None) or row.reason for row in found] == [NO_FORMAT, ASKED, ASKED, NO_FORMAT, ASKED,
                                                                            ASKED]  # fmt: skip
    assert (found[3].where, found[3].words) == ("x.jsonl:4", '{"theme": "y z"}')
    rows = ((f"x:{number}", {"theme": "x"}) for number in range(HEAD_ROWS + 1))
    with pytest.raises(DataError, match="columns theme"):
        next(judged(rows, Source(path="x"), {}, Noted()))
    assert len(list(rows)) == 1  # a source of another kind is not read to its end


def test_a_source_of_bad_rows_alone_is_not_held():
    taken = []
    rows = ((str(taken.append(n)), {"chosen": "A", "rejected": "B"}) for n in range(3 * MOST_WAITING))
    found = judged(rows, Source(path="x.jsonl"), {}, Noted())
    assert next(found).reason == PREFERENCE
    assert len(taken) == MOST_WAITING
    assert 1 + sum(1 for _ in found) == 3 * MOST_WAITING


def test_speakers_are_those_that_the_recipe_maps():
    row = {"conversations": [{"from": "Ann", "value": "Q"}, {"from": "BOB ", "value": "A"}]}
    assert read(row, roles={"Ann": "user", "Bob": "assistant"})[0].turns == ASKED
    assert read(row, roles={"Ann": "user"})[0].reason == f'unknown role "BOB "{UNKNOWN}'
    swapped = read({"conversations": SHAREGPT}, roles={"gpt": "user", "human": "assistant"})[0].turns
    assert [turn.role for turn in swapped] == ["assistant", "user"]


def test_each_instance_of_a_task_is_a_conversation():
    row = {"instruction": "Q", "instances": [{"input": "", "output": "A"}, {"input": "I", "output": "B"}]}
    found = read(row)
    assert [turn.text for turns in found for turn in turns.turns] == ["Q", "A", "Q\n\nI", "B"]
    assert [one.where for one in found] == ["x.jsonl:1, instance 1", "x.jsonl:1, instance 2"]
