"""A process of its own that answers prompts, so that its peak memory is the engine's alone.

Takes a job and tells (inference/child.py) one line an answer, then {"peak_memory_bytes": n}: of the prompts alone,
since it grows with what is read.
"""

import textwrap
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.errors import ResourceError
from tunesmith.inference.child import serve_parent, tell, wait_for_turn
from tunesmith.inference.engine import Engine
from tunesmith.machine import peak_memory_bytes
from tunesmith.recipe import evaluation_context

SHOWN = 60  # letters of a prompt in an error
ROOM = 32  # tokens that an answer may be longer than the one in the data: what rambles is cut, and takes no minutes


def answer_all(job: dict[str, Any]) -> None:
    """Answer every prompt as a conversation of its own, greedily, reading each from its first token.

    job["rows"]: conversations to answer after them, each with its own system prompt and the answer expected. One that
    the context does not hold is told of as "too_long": its own question is no reason to end a run without answers.
    job["in_turn"]: each answer waits for a turn, and has max_tokens tokens whatever the model says: to be timed beside
    others.
    """
    opening = [{"role": "system", "content": job["system"]}] if job["system"] else []
    in_turn = job.get("in_turn", False)
    context = evaluation_context(job["max_tokens"])
    with Engine(Path(job["gguf"]), threads=job["threads"], context=context) as engine:
        if in_turn:
            tell({"ready": True})
        for prompt in job["prompts"]:
            if in_turn:
                wait_for_turn()
            messages = [*opening, {"role": "user", "content": prompt}]
            try:
                answer = engine.chat(messages, max_tokens=job["max_tokens"], cache=False, ignore_end=in_turn)
            except ResourceError as error:  # each prompt is a new conversation, in a context that is not the chat's
                what = f"{error.what}: the prompt {textwrap.shorten(prompt, SHOWN)!r} is too long"
                raise ResourceError(what, fix="shorten it in evaluate.prompts, or chat.system") from error
            tell({"prompt": prompt} | asdict(answer))
        peak, started = peak_memory_bytes(), time.monotonic()
        for number, row in enumerate(job.get("rows", ())):
            most = min(job["max_tokens"], len(engine.tokenize(row["expected"], special=False)) + ROOM)
            try:
                found = asdict(engine.chat(row["messages"], max_tokens=most, cache=False))
            except ResourceError as error:
                found = {"too_long": error.what}
            tell({"row": number} | found)
        took = {"held_out_s": round(time.monotonic() - started, 3)} if job.get("rows") else {}
        tell({"peak_memory_bytes": peak} | took)


if __name__ == "__main__":
    serve_parent(answer_all)
