"""Whether a recipe's mirror takes, gives, lists and deletes a file: tried in a folder of its own there."""

import contextlib
import secrets
from collections.abc import Callable
from typing import Any

from tunesmith.doctoring.finding import Finding
from tunesmith.errors import TunesmithError
from tunesmith.training.hub_folder import HubFolder
from tunesmith.training.store import FileStore, reason, said, within

ANSWER_S = 25.0
"""For all of it; doctor waits longer for any try."""
NAME = "file"
FIX = "see to the place and its credentials, or name another with --set checkpoint.mirror=..."


def mirror_finding(url: str) -> Finding:
    """What a mirror's place does. On the Hub nothing is tried: writing would make the repository."""
    name = f"tunesmith-doctor-{secrets.token_hex(4)}"
    doing = ["used"]
    try:
        if url.startswith("hf://"):
            HubFolder(url, name)  # raises for what names no repository
            says = f"{said(url)}: nothing is written there, since that would make the repository; "
            return Finding("recipe", "mirror", "note", f"{says}the line `token` says whether it may write")
        within(ANSWER_S, lambda: _tried(url, name, doing))
    except Exception as error:  # of any library of a store
        fix = error.fix if isinstance(error, TunesmithError) else FIX
        fix = FIX if "--run-dir" in fix else fix  # which is no help for a mirror
        says = f"{said(url)} cannot be {doing[-1]}: {said(reason(error))}"
        is_left = doing[-1] in ("listed", "deleted from") or isinstance(error, TimeoutError)
        left = f"; {name} may be left there" if is_left else ""
        return Finding("recipe", "mirror", "lacks", f"{says}{left}", said(fix))
    return Finding("recipe", "mirror", "ok", f"{said(url)}: a file was written, read, listed and deleted there")


def _tried(url: str, name: str, doing: list[str]) -> None:
    """Write, read, list and delete a file in the folder `name`; `doing` grows with what is begun. Leaves nothing."""
    store, content = FileStore(url, name), secrets.token_bytes(64)
    named = store.folder and store.folder.parent
    is_new = named and not named.exists()

    def delete() -> None:
        store.delete([""], NAME)
        if named and is_new:  # the folder that the URL names, which is made for what is written
            with contextlib.suppress(OSError):
                named.rmdir()

    steps: dict[str, Callable[[], Any]] = {
        "written": lambda: store.put({NAME: content}, NAME, lambda: None, set()),
        "read": lambda: _same(content, store.read(NAME)),
        "listed": lambda: _same([NAME], store.names()),
    }
    try:
        for step, do in steps.items():
            doing.append(step)
            do()
    except BaseException:
        with contextlib.suppress(Exception):
            delete()
        raise
    doing.append("deleted from")
    delete()
    _same([], store.names())


def _same(wanted: object, found: object) -> None:
    if found != wanted:
        raise ValueError("it has something else than was written")
