"""The chat's engine in a process of its own, which the parent can end while the page reads an answer.

Takes a job and tells (inference/child.py) {"url": ...} once it answers.
"""

import threading
from pathlib import Path
from typing import Any

from tunesmith.inference.child import serve_parent, tell
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig


def answer_requests(job: dict[str, Any]) -> None:
    """Serve job["gguf"] until the parent ends."""
    chat = ChatConfig.model_validate(job["chat"])
    engine = Engine(
        Path(job["gguf"]), threads=job["threads"], context=chat.context, slots=chat.slots,
        port=job["port"], alias=job["alias"], chat=chat,
    )  # fmt: skip
    tell({"url": engine.url})
    threading.Event().wait()


if __name__ == "__main__":
    serve_parent(answer_requests)
