"""What a request may ask: nothing in it ends or stalls the engine for the others."""

import json

import pytest
from starlette.exceptions import HTTPException

from tunesmith.server.wanted import DEEPEST, SETTINGS_BYTES, checked

SAID = [{"role": "user", "content": "a"}]


def asked(context=512, longest=None, public=False, **wanted):
    return json.loads(
        checked(json.dumps({"messages": SAID, **wanted}).encode(), context=context, longest=longest, public=public)
    )


@pytest.mark.parametrize("name", ["repeat_last_n", "dry_penalty_last_n"])
def test_a_penalty_looks_no_further_back_than_the_conversation(name):
    assert asked(**{name: 2**31 - 1})[name] == 512 and asked(**{name: 513})[name] == 512
    assert asked(**{name: 512})[name] == 512 and asked(**{name: -1})[name] == -1 and asked(**{name: "x"})[name] == "x"
    assert asked(**{name: float("nan")})[name] == 512


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"json_schema": {"type": "string", "pattern": "^((a{0,1000}){0,1000}){0,1000}$"}}, "repeats what it repeats"),
        ({"tools": [{"a": [{"pattern": "(a|(b{200}c){51}){1}"}]}]}, "repeats what it repeats"),
        ({"response_format": {"pattern": "(a{9}){ 1, 99999 }"}}, "repeats what it repeats"),
        ({"n_probs": 10**400}, "n_probs is 10000000000000000000, 20 is the most"),
        ({"n_probs": 21}, "n_probs is 21, 20 is the most"),
        ({"top_logprobs": 10**6, "logprobs": True}, "top_logprobs is 1000000, 20 is the most"),
        ({"grammar": "root ::= " + "(" * 201 + '"a"' + ")" * 201}, "brackets 202 deep, 200 is the most"),
        ({"json_schema": {"type": "string", "pattern": "(" * 99999}}, "brackets 100001 deep"),
        ({"response_format": {"a": [[[["{"] * 9] * 9]]}} | {"stop": ["[" * 300]}, "deep, 200 is the most"),
        ({"stop": ["stop here"] * 30000}, "the request has 390,0.. bytes beside its messages, 262,144 is the most"),
    ],
)
def test_what_is_out_of_bounds_is_refused_for_everybody(wanted, said):
    with pytest.raises(HTTPException, match=said) as caught:
        asked(**wanted)
    assert caught.value.status_code == 400


def test_bounds_are_the_last_that_are_let_through():
    asked(n_probs=20, top_logprobs=20, logprobs=True, grammar="root ::= " + "(" * (DEEPEST - 1) + '"a"' + ")" * 199)
    asked(grammar='root ::= "a"{1,100} "b"{,101}', json_schema={"pattern": "^a{10}b{1000}(c{99}){100}[({]{,101}$"})
    asked(stop=["{999999999}" * 9000], tools=[{"description": "{{1000}} {1,500}", "pattern": "\\({1,9999}"}])
    name = "x" * (SETTINGS_BYTES - len(json.dumps({"user": ""})))
    assert asked(user=name)["user"] == name
    long = [{"role": "user", "content": "(" * 3 * SETTINGS_BYTES}]  # what is said has no form
    assert checked(json.dumps({"messages": long}).encode(), context=512, longest=None, public=True)


@pytest.mark.parametrize(
    "form",
    [
        {"grammar": 'root ::= "a"'}, {"json_schema": {"type": "string"}}, {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"lora": [{"id": 0, "scale": 5}]},
        {"grammar_triggers": [{"type": 0, "value": "a"}]},
    ],
)  # fmt: skip
def test_forms_of_an_answer_are_not_for_everybody(form):
    assert asked(**form).items() >= form.items()
    with pytest.raises(HTTPException, match=f"{next(iter(form))} is not for everybody: it takes a chat with a key"):
        asked(public=True, **form)
    empty = {"grammar": "", "tools": [], "json_schema": None, "response_format": {"type": "text"}}
    assert asked(public=True, **empty).items() >= empty.items()


def test_a_request_that_says_all_it_may_is_passed_on_byte_by_byte():
    body = b'{"messages": [],  "temperature": 1e-3, "n": 3}'
    assert checked(body, context=512, longest=None, public=False) is body
    with pytest.raises(HTTPException, match="one answer"):
        checked(body, context=512, longest=9, public=False)


@pytest.mark.parametrize(
    ("wanted", "length"),
    [({}, 9), ({"max_tokens": 3}, 3), ({"max_tokens": 99}, 9), ({"max_tokens": -1}, 9), ({"max_tokens": None}, 9),
     ({"max_tokens": float("nan")}, 9), ({"max_tokens": "x"}, "x")],
)  # fmt: skip
def test_answers_are_no_longer_than_they_may_be(wanted, length):
    assert asked(longest=9, **wanted)["max_tokens"] == length


def test_each_way_to_say_a_length_is_bounded():
    found = asked(longest=9, max_tokens=4, n_predict=-1, max_completion_tokens=1e9)
    assert (found["max_tokens"], found["n_predict"], found["max_completion_tokens"]) == (4, 9, 9)
