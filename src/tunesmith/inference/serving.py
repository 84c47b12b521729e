"""An engine in a process of its own, for who chats with it: takes a job, tells where it answers, ends with its parent.

The job has what Engine takes; what is told is its URL and key, the system prompt of the file's template, how it samples
where a request says nothing, and the tokens that a conversation may have.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from tunesmith.inference.child import serve_parent, tell
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig

LOOK_EVERY_S, MOST_PRINTED_BYTES = 10.0, 100_000


def serve(job: dict[str, Any]) -> None:
    """Serve job["gguf"] until the parent ends."""
    chat = ChatConfig.model_validate(job["chat"])
    engine = Engine(
        Path(job["gguf"]), threads=job["threads"], context=chat.context, slots=chat.slots, alias=job["alias"],
        chat=chat, own_sampling=job["own_sampling"],
    )  # fmt: skip
    own, sampling = engine.own_system(), engine.sampling()
    tell({"url": engine.url, "key": engine.key, "own_system": own, "sampling": sampling, "context": engine.context})
    while True:
        time.sleep(LOOK_EVERY_S)
        _forget_what_is_printed()


def _forget_what_is_printed() -> None:
    """llama.cpp prints what it cannot use of a request, such as a grammar: that is neither kept nor fills the disk."""
    with contextlib.suppress(OSError):  # standard error that is no file
        if os.fstat(2).st_size > MOST_PRINTED_BYTES:
            os.ftruncate(2, 0)


if __name__ == "__main__":
    serve_parent(serve)
