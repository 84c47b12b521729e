"""How the user started tunesmith: a printed command works as typed, also where .venv/bin is not on the path."""

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "tunesmith"


def program() -> str:
    """What starts tunesmith from this shell: its name where the path has it, else what was typed just now."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == NAME:
        return f"{shlex.quote(sys.orig_argv[0])} -m {NAME}"
    if started.name != NAME or not started.is_file():  # a notebook, or a script that imports us
        return NAME
    found = shutil.which(NAME)
    return NAME if found and os.path.samefile(found, started) else shlex.quote(sys.argv[0])


def to_type(*words: str | Path) -> str:
    """A command of tunesmith with these words, each quoted for the shell."""
    return f"{program()} {shlex.join(str(word) for word in words)}"


def as_typed(text: str) -> str:
    """A message with each command in it, as in `tunesmith run`, as it is to be typed here."""
    return text.replace(f"`{NAME} ", f"`{program()} ")
