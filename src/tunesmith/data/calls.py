"""Tools, and calls of them, in the forms of OpenAI, Hugging Face, ShareGPT and glaive: one form comes out, as JSON."""

import json
from typing import Any

from tunesmith.data.keys import DECODER, key_twice
from tunesmith.data.meaning import NoTurns, says_something

NO_CALL = "a tool call that is not a name with arguments"
NO_NUMBER = "a tool call with a number that JSON does not have (NaN, Infinity)"
NO_TOOLS = "its tools are not a list of schemas with names"


def decoded(value: Any, otherwise: str) -> Any:
    """What a text holds as JSON; anything else as it is. Raises NoTurns with `otherwise` if it is not JSON."""
    if not isinstance(value, str):
        return value
    try:
        found = DECODER.decode(value)
    except (ValueError, RecursionError):
        raise NoTurns(otherwise) from None
    if twice := key_twice(found):
        raise NoTurns(twice)
    return found


def calls_of(value: Any) -> str:
    """Calls as a JSON list of {"name", "arguments"}: from one or a list of them, each perhaps below `function`.

    The arguments are an object, or one written as JSON (OpenAI). Raises NoTurns for anything else.
    """
    found = decoded(value, NO_CALL)
    return _written([_call(call) for call in (found if isinstance(found, list) else [found])])


def _call(call: Any) -> dict[str, Any]:
    inner = call.get("function") or call if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise NoTurns(NO_CALL)
    given = inner.get("arguments", inner.get("parameters"))
    arguments = decoded(given, NO_CALL) if says_something(given) else {}
    if not isinstance(arguments, dict):
        raise NoTurns(NO_CALL)
    return {"name": inner["name"], "arguments": arguments if isinstance(given, str) else _without_null(arguments)}


def tools_of(value: Any) -> str:
    """Tools as a JSON list of {"type": "function", "function": schema}; "" for none. Raises NoTurns for no such list.

    OpenAI's older `functions` and glaive's tools are the bare schemas.
    """
    if not says_something(value):
        return ""
    tools = decoded(value, NO_TOOLS)
    if not isinstance(tools, list):
        raise NoTurns(NO_TOOLS)
    return _written([_tool(tool) for tool in tools])


def _tool(tool: Any) -> dict[str, Any]:
    tool = decoded(tool, NO_TOOLS)  # some tables keep a list of texts
    whole = tool if isinstance(tool, dict) and isinstance(tool.get("function"), dict) else {"function": tool}
    if not isinstance(whole["function"], dict) or not isinstance(whole["function"].get("name"), str):
        raise NoTurns(NO_TOOLS)
    return dict(_without_null({"type": "function", **whole}))


def _written(items: list[dict[str, Any]]) -> str:
    try:
        return json.dumps(items, ensure_ascii=False, allow_nan=False) if items else ""
    except ValueError:  # Python reads NaN and 1e999, which JSON has no way to write
        raise NoTurns(NO_NUMBER) from None


def _without_null(value: Any) -> Any:
    """Without keys that are null: a table gives every object the keys of all others."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value
