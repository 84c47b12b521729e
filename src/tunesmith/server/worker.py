"""The chat's engine in a process of its own, which the parent can end while the page reads an answer.

Takes a job and tells (inference/child.py) what the parent needs once it answers: the URL, the key where there is no
front, what the model is told and how it samples; and later on who was refused, and why.
"""

import threading
from pathlib import Path
from typing import Any

from tunesmith.inference.child import serve_parent, tell
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig
from tunesmith.server.front import Front
from tunesmith.server.page import page_of


def answer_requests(job: dict[str, Any]) -> None:
    """Serve job["gguf"] until the parent ends: through a front, or to the parent alone."""
    chat = ChatConfig.model_validate(job["chat"])
    front = None
    if job["front"]:  # first: a port in use is known at once
        front = Front(job["port"], job["origins"], lambda why: tell({"refused": why}))
    engine = Engine(
        Path(job["gguf"]), threads=job["threads"], context=chat.context, slots=chat.slots, alias=job["alias"],
        chat=chat, own_sampling=job["own_sampling"],
    )  # fmt: skip
    own = engine.own_system()
    system = chat.system or own
    told = {"url": front.url if front else engine.url, "key": "" if front else engine.key}
    tell(told | {"system": system, "own_system": own, "sampling": engine.sampling()})
    if front:
        front.answer(engine, page_of(job["alias"], system))
    else:
        threading.Event().wait()


if __name__ == "__main__":
    serve_parent(answer_requests)
