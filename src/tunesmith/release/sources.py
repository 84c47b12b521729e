"""What a run was made from, as others may know it: what is of the Hub by id and commit, files by their names alone."""

import os
from collections.abc import Iterator

from tunesmith.decides import sources_of
from tunesmith.recipe import Recipe, Source
from tunesmith.record import Record
from tunesmith.weights import builtin
from tunesmith.weights.locate import is_local


def base_name(base: str) -> str:
    """A base as others may know it: never by a path of this machine, whether or not something is there still."""
    return base if base.startswith(builtin.SCHEME) or not is_local(base) else os.path.basename(os.path.normpath(base))


def from_hub(data: Record) -> dict[str, str]:
    """The data sets that came from the Hub, with their commits."""
    revisions: dict[str, str] = data.counts.get("revisions", {})
    return revisions


def sources(recipe: Recipe, data: Record) -> Iterator[tuple[str, str | None, bool]]:
    """Each source: its id and commit on the Hub, or the name of its files; and whether it is held out alone."""
    for number, source in enumerate(sources_of(recipe)):
        commit = from_hub(data).get(source.path)
        yield named(source, data).path, commit, number >= len(recipe.data.sources)


def trained_on(recipe: Recipe, data: Record) -> tuple[str, ...]:
    """The names of what was trained on, each once."""
    return tuple(dict.fromkeys(name for name, _, held_out in sources(recipe, data) if not held_out))


def named(source: Source, data: Record) -> Source:
    """A source as others may know it: what came from the Hub by its id, a file by its name alone."""
    on_hub = source.path in from_hub(data)
    return source if on_hub else source.model_copy(update={"path": os.path.basename(source.path)})
