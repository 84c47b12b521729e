"""What evaluate has asked and was answered, as it lies in a run; lines that are damaged are left out."""

from pathlib import Path
from typing import Any

from tunesmith.json_file import json_lines

FIELDS = ("question", "expected", "text")


def held_out_answers(evaluation: Path, prefix: str = "") -> list[dict[str, Any]]:
    """The held-out questions with the answers of the data and the model; `prefix` "base-": of the base."""
    file = evaluation / f"{prefix}held-out.jsonl"
    lines = json_lines(file)[0] if file.is_file() else []
    return [line for _, line in lines if all(isinstance(line.get(name), str) for name in FIELDS)]
