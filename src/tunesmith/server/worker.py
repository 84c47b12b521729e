"""The chat's front in a process of its own, which the parent can end while the page reads an answer.

It keeps the engine, which is one more process. Takes a job and tells (inference/child.py) what the parent needs once
the engine answers, and later on what the user should know.
"""

from pathlib import Path
from typing import Any

from tunesmith.inference.child import serve_parent, tell
from tunesmith.recipe import ChatConfig
from tunesmith.server.door import Door, Limits
from tunesmith.server.facts import model_facts
from tunesmith.server.front import Front
from tunesmith.server.keeper import Keeper
from tunesmith.server.page import Page, described, said_limits


def answer_requests(job: dict[str, Any]) -> None:
    """Serve job["engine"] behind job["door"] until the parent ends. Raises ResourceError for an engine that dies."""
    door, chat = _door(job["door"]), ChatConfig.model_validate(job["engine"]["chat"])
    log = (lambda line: tell({"log": line})) if door.log or door.log_texts else None
    front = Front(door, lambda why: tell({"warning": f"a request was refused: {why}"}), log)  # a port in use: at once
    keeper = Keeper(job["engine"], lambda text: tell({"warning": text}), front.stop, patient=door.public)
    system = chat.system or keeper.first["own_system"]
    tell(keeper.first | {"url": front.url, "key": ""})
    name, file = job["engine"]["alias"], Path(job["engine"]["gguf"])
    facts = [*model_facts(file), *said_limits(door.limits, keeper.first["context"])]
    page = Page(name, described(name, system, facts, job["engine"]["examples"], login=bool(door.key)))
    front.answer(keeper, page, chat.slots)
    if keeper.reason:
        raise keeper.reason


def _door(fields: dict[str, Any]) -> Door:
    plain = {**fields, "origins": tuple(fields["origins"]), "limits": Limits(**fields["limits"])}
    return Door(**plain)


if __name__ == "__main__":
    serve_parent(answer_requests)
