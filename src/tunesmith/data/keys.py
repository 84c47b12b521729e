"""JSON with a key twice in an object is refused: json would take the last value, and nobody knows which was meant."""

import json
from collections.abc import Iterator
from typing import Any


class _Twice(dict[str, Any]):
    """An object that has a key twice."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        found = _Twice(found)
        keys = [key for key, _ in pairs]
        found.key = next(key for key in keys if keys.count(key) > 1)
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def key_twice(value: Any) -> str | None:
    """What is wrong with a value of the decoder, if any object in it has a key twice."""
    for part in objects_in(value):
        if isinstance(part, _Twice):
            shown = json.dumps(part.key, ensure_ascii=False)[1:-1][:40]
            return f"a key twice: {shown.encode(errors='backslashreplace').decode()}"
    return None


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a value, however deep."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            yield part
            parts += part.values()
        elif isinstance(part, list):
            parts += part
