"""VERB space: make the Space, try it, and say what comes next."""

import shlex
from pathlib import Path

from tunesmith.command import to_type
from tunesmith.console import say
from tunesmith.errors import RecipeError
from tunesmith.release.space.attempt import tried_in_words, try_space
from tunesmith.release.space.folder import Shipped, keep_tried, make_space

NEW = "https://huggingface.co/new-space"


def space(shipped: Shipped, out: Path | None, *, attempt: bool = False) -> None:
    """Write a Space to `out`, and with `attempt` do its steps here and write its speed into its README.

    Raises RecipeError where nothing says where to, and as make_space and try_space do.
    """
    if out is None:
        raise RecipeError("nothing says where the Space is to be", fix="name a folder for it: --out FOLDER")
    make_space(shipped, out)
    if attempt:
        tried = try_space(out, shipped.prompts, shipped.max_tokens)
        keep_tried(out, tried)
        say(f"space: {tried_in_words(tried)}; written to {out / 'README.md'}")
    else:
        chosen = ["--gguf", shipped.chosen] if shipped.chosen else []
        command = to_type("space", shipped.source, *chosen, "--out", out, "--try")
        say(f"space: `{command}` does its steps here, without Docker")
    say(f"next: make an empty Space with the SDK Docker at {NEW}, then put these files into it:")
    say("      git clone https://huggingface.co/spaces/USER/NAME my-space")
    say(f"      cp -r {shlex.quote(str(out))}/. my-space && cd my-space && git lfs install && git add .")
    say("      git commit -m 'The chat' && git push")
