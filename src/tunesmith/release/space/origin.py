"""What a run's Space is made of: its GGUF file, where that is published, and what the licence of its base asks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.console import warn
from tunesmith.decides import prompts_of
from tunesmith.errors import TunesmithError
from tunesmith.files import digest_file
from tunesmith.gguf.read import convert
from tunesmith.recipe import Recipe
from tunesmith.release.card import origin_of
from tunesmith.release.licences import Terms, terms_of
from tunesmith.release.published import published
from tunesmith.release.sources import base_name
from tunesmith.release.space.fetch import endpoint
from tunesmith.release.space.folder import Shipped
from tunesmith.runs import Run
from tunesmith.weights.locate import small_files


def of_run(recipe: Recipe, run: Run, gguf: Path, chosen: str, *, strict: bool) -> Shipped:
    """A run's file, by reference where the run has published just these bytes.

    `strict`: raises RecipeError where the licence of the base is not known.
    """
    terms = _terms(recipe, strict)
    place, private = published_at(run, gguf)
    origin = origin_of(recipe)
    base = origin.id or base_name(recipe.base)
    duties = [*(_duties(terms, base) if terms else ()), *filter(None, [origin.remark])]
    return Shipped(
        gguf, recipe.name, run.path, prompts_of(recipe.evaluate), recipe.evaluate.max_tokens, run=run, base=base,
        licence=terms.metadata() if terms else {}, duties=duties, texts=terms.files if terms else {},
        published=place, private=private, chosen=chosen,
    )  # fmt: skip


def _terms(recipe: Recipe, strict: bool) -> Terms | None:
    """The terms of the base; None, with a warning, where they are not known and need not be."""
    try:
        return terms_of(small_files(recipe.base, convert), recipe.publish, recipe.base)
    except TunesmithError as error:
        if strict:
            raise
        warn(f"the Space says nothing of a licence: {error}")
        return None


def _duties(terms: Terms, base: str) -> list[str]:
    own = terms.licence
    changed = f"The model was changed from {base} by fine-tuning; its licence is [{own.title}]({terms.link})."
    return [part for part in (own.built_with, changed, own.limits) if part]


def published_at(run: Run, gguf: Path) -> tuple[str, bool]:
    """Path of a published file on the Hub, pinned by its commit, and whether it is private; ("", False) if there is
    none with these bytes.
    """
    for name, said in _published(run).items():
        if said.get("commit") and gguf.name in said.get("files", {}):
            if said["files"][gguf.name] == digest_file(gguf):
                return f"{name}/resolve/{said['commit']}/{gguf.name}", bool(said.get("private"))
            warn(f"{name} has another {gguf.name} than this run now: publish it anew, or the Space carries its own")
    return "", False


def _published(run: Run) -> Mapping[str, Any]:
    """The models that the run has published on the Hub that is asked now, by their ids."""
    return {
        name: said
        for name, said in published(run).items()
        if said.get("endpoint") == endpoint() and not name.startswith("spaces/")
    }
