"""VERB space: make the Space, try it, send it to the Hub, and say what comes next."""

import contextlib
import shlex
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.command import to_type
from tunesmith.console import say
from tunesmith.errors import RecipeError
from tunesmith.release.space.attempt import tried_in_words, try_space
from tunesmith.release.space.folder import Shipped, keep_tried, make_space
from tunesmith.release.space.texts import address_of

NEW = "https://huggingface.co/new-space"


@dataclass(frozen=True)
class Wanted:
    """What the user asks for."""

    out: Path | None = None
    """Folder; without one, `to` makes one for a moment."""
    to: str = ""
    """USER/NAME on the Hub."""
    attempt: bool = False
    send: bool = False
    public: bool = False
    overwrite: bool = False

    def check(self, shipped_run: bool) -> None:
        """Raise RecipeError where nothing says where to, or the name can be none."""
        if self.out is None and not self.to:
            fix = "name a folder for it, --out FOLDER, or a repository on the Hub, --to USER/NAME"
            raise RecipeError("nothing says where the Space is to be", fix=fix)
        if self.to and self.to.count("/") != 1:
            raise RecipeError(f"--to {self.to} is no USER/NAME", fix="name your account and the Space, as in me/chat")
        if self.out is None and not shipped_run:
            what = "a GGUF file alone has no run that knows what was sent to the Hub"
            raise RecipeError(what, fix="add --out FOLDER: it is kept there")

    def words(self, shipped: Shipped, *more: str) -> str:
        """The same command with other words at its end."""
        chosen = ["--gguf", shipped.chosen] if shipped.chosen else []
        out = ["--out", str(self.out)] if self.out else []
        to = ["--to", self.to] if self.to else []
        flags = ["--public"] * self.public + ["--overwrite"] * self.overwrite
        return to_type("space", shipped.source, *chosen, *out, *to, *flags, *more)


def space(shipped: Shipped, wanted: Wanted, to_hub: Callable[[Path], None] | None = None) -> None:
    """Write a Space and try it where that is wanted; `to_hub` gets its folder.

    Raises as make_space and try_space do.
    """
    with _folder(wanted) as folder:
        make_space(shipped, folder, address_of(wanted.to) if wanted.to else "")
        if wanted.attempt:
            tried = try_space(folder, shipped.prompts, shipped.max_tokens)
            keep_tried(folder, tried)
            say(f"space: {tried_in_words(tried)}; written to its README.md")
        elif not wanted.send:
            say(f"space: `{wanted.words(shipped, '--try')}` does its steps here, without Docker")
        if to_hub:
            to_hub(folder)
        else:
            _say_next(folder)


@contextlib.contextmanager
def _folder(wanted: Wanted) -> Iterator[Path]:
    """Where the Space is made: for good, or until it is sent."""
    if wanted.out:
        yield wanted.out
        return
    with tempfile.TemporaryDirectory(prefix="tunesmith-space-") as place:
        yield Path(place, "space")


def _say_next(folder: Path) -> None:
    say(f"next: --to USER/NAME sends it to the Hub. By hand: make an empty Space with the SDK Docker at {NEW}, then")
    say("      git clone https://huggingface.co/spaces/USER/NAME my-space")
    say(f"      cp -r {shlex.quote(str(folder))}/. my-space && cd my-space && git lfs install && git add .")
    say("      git commit -m 'The chat' && git push")
