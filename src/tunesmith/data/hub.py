"""A data set from the Hugging Face Hub, through `datasets`, and errors that say what to do."""

import re
from functools import lru_cache
from typing import Any

import datasets
import huggingface_hub
from datasets.exceptions import DatasetNotFoundError

from tunesmith.errors import DataError
from tunesmith.recipe import Source


@lru_cache(maxsize=8)
def hub_rows(source: Source) -> Any:
    """One split of a data set as a sequence of rows (dicts). What was fetched before works without a network.

    Raises DataError if it is gated, not there, has no such split, or the Hub cannot be reached.
    """
    try:
        rows = datasets.load_dataset(source.path, split=source.split, revision=source.revision)
        if source.revision in (None, _commit(rows)) or not re.fullmatch("[0-9a-f]{40}", source.revision):
            return rows
        raise ConnectionError  # without a network `datasets` takes what it has, also if it is another commit
    except Exception as error:  # errors of several HTTP libraries come through, and their texts can hold the token
        what, fix = _explained(error, source)
    token = huggingface_hub.get_token()
    raise DataError(what.replace(token, "***") if token else what, fix=fix)  # outside: no nested exception text either


def hub_commit(source: Source) -> str | None:
    """The commit that the rows came from; None if `datasets` does not tell."""
    return _commit(hub_rows(source))


def _commit(rows: Any) -> str | None:
    found = re.search(r"[/\\]([0-9a-f]{40})[/\\]", rows.cache_files[0]["filename"])  # its cache is named by it
    return found[1] if found else None


def _explained(error: Exception, source: Source) -> tuple[str, str]:
    name, text = source.path, str(error)
    if isinstance(error, DatasetNotFoundError) and "gated" in text:
        return (
            f"the data set {name} on the Hub is gated",
            f"accept its terms at https://huggingface.co/datasets/{name}, then set the environment variable HF_TOKEN "
            "to a token from https://huggingface.co/settings/tokens; or use a file (JSON, JSONL, Parquet, CSV)",
        )
    if isinstance(error, DatasetNotFoundError) and "Revision" in text:
        return f"the data set {name} has no revision {source.revision}", "name a branch, tag or commit of it"
    if isinstance(error, DatasetNotFoundError):
        what = f"there is no file {name}, nor a data set of that name on the Hub, or it is private"
        return what, "check the spelling; a private data set needs the environment variable HF_TOKEN"
    if isinstance(error, ValueError) and "split" in text:
        return f"the data set {name} has no split {source.split}", f"choose one in data.sources[].split ({text})"
    local = "name a local file (JSON, JSONL, Parquet, CSV) in data.sources; a data set fetched before works offline"
    if isinstance(error, ConnectionError):
        return (
            f"there is no file {name}, and the Hub cannot be reached for a data set of that name",
            f"check the network; or {local}",
        )
    return f"the data set {name} cannot be read ({type(error).__name__}: {text.splitlines()[0] if text else ''})", local
