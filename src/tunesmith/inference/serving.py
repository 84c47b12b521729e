"""An engine in a process of its own, for who chats with it: takes a job, tells where it answers, ends with its parent.

The job has what Engine takes; what is told is its URL and key, the system prompt of the file's template, how it samples
where a request says nothing, and the tokens that a conversation may have.
"""

import threading
from pathlib import Path
from typing import Any

from tunesmith.inference.child import serve_parent, tell
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig


def serve(job: dict[str, Any]) -> None:
    """Serve job["gguf"] until the parent ends."""
    chat = ChatConfig.model_validate(job["chat"])
    engine = Engine(
        Path(job["gguf"]), threads=job["threads"], context=chat.context, slots=chat.slots, alias=job["alias"],
        chat=chat, own_sampling=job["own_sampling"],
    )  # fmt: skip
    own, sampling = engine.own_system(), engine.sampling()
    tell({"url": engine.url, "key": engine.key, "own_system": own, "sampling": sampling, "context": engine.context})
    threading.Event().wait()


if __name__ == "__main__":
    serve_parent(serve)
