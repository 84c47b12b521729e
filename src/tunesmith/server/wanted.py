"""What a request for an answer may ask of the engine: within bounds, so that none can end or stall it for the others.

llama.cpp takes memory for as many last tokens as a request names, sends as many alternatives as the vocabulary has,
and reads a grammar by calling itself, which ends it at some hundred thousand brackets.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from starlette.exceptions import HTTPException

LENGTHS, SEVERAL = ("max_tokens", "max_completion_tokens", "n_predict"), ("n", "n_cmpl")
"""What a request may say of how long its answer is, and of how many it wants."""
LAST_TOKENS = ("repeat_last_n", "dry_penalty_last_n")
"""How many tokens back a penalty looks: further than the conversation there are none."""
ALTERNATIVES, MOST_ALTERNATIVES = ("top_logprobs", "n_probs", "logprobs"), 20  # as many as OpenAI's API gives
SETTINGS_BYTES, DEEPEST = 1 << 18, 200
"""Of all that is no message: bytes, and brackets within brackets."""
MOST_COPIES = 10_000
"""Of a part of a pattern: llama.cpp writes them all out before it begins to answer."""
PARTS = re.compile(r"\\.|\[(?:\\.|[^\]])*\]|[()]|\{([0-9, ]+)\}|.", re.DOTALL)
FORMS = ("grammar", "json_schema", "response_format", "tools", "grammar_triggers", "lora")
"""What is not for everybody: forms of an answer, whose cost nobody can tell before, and what is on the model."""


def checked(body: bytes, *, context: int, longest: int | None, public: bool) -> bytes:
    """A request for an answer, with no more tokens than `longest`.

    Raises HTTPException for what can be none, or is out of bounds, before it waits for its turn.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the request is no JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        raise HTTPException(400, "the request has no list of messages")
    if longest is not None and any(found.get(name) not in (None, 1) for name in SEVERAL):
        raise HTTPException(400, "a request gets one answer here")
    for problem in _problems(found, public):
        raise HTTPException(400, problem)
    changed = {name: context for name in LAST_TOKENS if _is_above(found.get(name), context)}
    if longest is not None:
        changed |= _bounded(found, longest)
    return json.dumps(found | changed).encode() if changed else body


def _problems(found: dict[str, Any], public: bool) -> Iterator[str]:
    for name in ALTERNATIVES:
        if _is_above(found.get(name), MOST_ALTERNATIVES):
            yield f"{name} is {str(found[name])[:20]}, {MOST_ALTERNATIVES} is the most"
    if public:
        for name in FORMS:
            if found.get(name) not in (None, "", [], {}, {"type": "text"}):
                yield f"{name} is not for everybody: it takes a chat with a key"
    settings = json.dumps({name: value for name, value in found.items() if name != "messages"})
    if len(settings) > SETTINGS_BYTES:
        yield f"the request has {len(settings):,} bytes beside its messages, {SETTINGS_BYTES:,} is the most"
    if any(_copies(pattern) > MOST_COPIES for pattern in _patterns(found)):
        yield f"a pattern of the request repeats what it repeats more than {MOST_COPIES:,} times"
    if (depth := _depth(settings)) > DEEPEST:
        yield f"the request has brackets {depth} deep, {DEEPEST} is the most"


def _depth(text: str) -> int:
    """How deep brackets of any kind stand in brackets, in strings as well: those of a grammar are in one."""
    depth = deepest = 0
    for letter in text:
        if letter in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in ")]}":
            depth = max(0, depth - 1)
    return deepest


def _patterns(settings: dict[str, Any]) -> Iterator[str]:
    """The patterns of the schemas that a request has, in its tools too. Of a grammar the engine counts itself."""
    left: list[Any] = [value for name, value in settings.items() if name != "messages"]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield from (value for name, value in one.items() if name == "pattern" and isinstance(value, str))
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def _copies(pattern: str) -> int:
    """How many copies of one part a pattern stands for, where what is repeated is repeated: (a{1,9}){1,9} is 81."""
    groups, last = [1], 1  # the most within each group that is open, and of what came last
    for found in PARTS.finditer(pattern):
        if found[0] == "(":
            groups.append(1)
            continue
        if found[0] == ")":
            last = groups.pop() if groups[1:] else 1
        elif times := found[1]:
            last = min(last * max(1, *(int(number) for number in re.findall("[0-9]{1,9}", times))), MOST_COPIES + 1)
        else:
            last = 1
        groups[-1] = max(groups[-1], last)
    return max(groups)


def _bounded(found: dict[str, Any], longest: int) -> dict[str, Any]:
    """The lengths of an answer that are too much, or of no length, at the most there is."""
    asked = [name for name in LENGTHS if found.get(name) is not None] or ["max_tokens"]
    return {name: longest for name in asked if not _is_within(found.get(name), longest)}


def _is_within(value: Any, longest: int) -> bool:
    """Whether an answer of that length may be; what is no number at all the engine refuses."""
    return value is not None and (not isinstance(value, int | float) or 0 <= value <= longest)


def _is_above(value: Any, most: int) -> bool:
    return isinstance(value, int | float) and not value <= most
