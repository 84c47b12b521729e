"""A process of its own that answers prompts, so that its peak memory is the engine's alone.

Reads a job as JSON from standard input and writes JSON lines to standard output: one an answer, the last one
{"peak_memory_bytes": n}, or {"error": [class, what, fix, where]}.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.inference.engine import Engine
from tunesmith.machine import peak_memory_bytes

CONTEXT = 4096  # as in the chat, so that the memory is the chat's


def answer_all(job: dict[str, Any]) -> None:
    """Answer every prompt as a conversation of its own, greedily, reading each from its first token."""
    opening = [{"role": "system", "content": job["system"]}] if job["system"] else []
    context = max(CONTEXT, 2 * job["max_tokens"])
    with Engine(Path(job["gguf"]), threads=job["threads"], context=context) as engine:
        for prompt in job["prompts"]:
            messages = [*opening, {"role": "user", "content": prompt}]
            answer = engine.chat(messages, max_tokens=job["max_tokens"], cache=False)
            _write({"prompt": prompt} | asdict(answer))
        _write({"peak_memory_bytes": peak_memory_bytes()})


def _write(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    try:
        answer_all(json.load(sys.stdin))
    except TunesmithError as error:
        _write({"error": [type(error).__name__, error.what, error.fix, error.where]})
