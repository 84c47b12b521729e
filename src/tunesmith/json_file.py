"""JSON that tunesmith wrote and something else may have changed: what is no object is said, never a traceback."""

import json
import re
from pathlib import Path
from typing import Any

OTHER_JSON = (ValueError, TypeError, KeyError, AttributeError, OverflowError, IsADirectoryError)
"""What reading a file of ours ends with that is there and says something else: no object, other fields, a number that
is none (int(1e999) overflows), a folder.
"""

RAW = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What JSON may hold as it is, but would steer a terminal, end a line for some readers, or be no UTF-8."""


def json_line(value: Any) -> str:
    """A value as a line of a JSONL file, its end too: letters of any script as they are."""
    text = json.dumps(value, ensure_ascii=False)
    return RAW.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def json_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object that a text holds. Raises ValueError that says what it holds instead."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON from character {error.pos + 1} on") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is no object but a {type(found).__name__}")
    return found


def json_lines(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], dict[int, str]]:
    """The objects of a JSONL file, each with the number of its line; and of every other line what is wrong with it.

    A last line that was cut is neither: it was being written when its process was killed.
    """
    found, wrong = list[tuple[int, dict[str, Any]]](), dict[int, str]()
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate([*lines, last], 1):
        try:
            found.append((number, json_object(line)))
        except ValueError as error:
            if number <= len(lines):
                wrong[number] = str(error)
    return found, wrong
