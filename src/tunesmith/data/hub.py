"""A data set from the Hugging Face Hub, through `datasets`: its commit first, then its rows; errors say what to do."""

import contextlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Never

import huggingface_hub
import pyarrow
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tunesmith.boundary import explained, is_of_this_machine
from tunesmith.data.tables import BATCH_ROWS
from tunesmith.errors import DataError, ResourceError
from tunesmith.files import write_file
from tunesmith.recipe import Source

COMMIT = re.compile("[0-9a-f]{40}")
CONFIGS = re.compile(r"(?s)(?:available configs|not found\. Available): \[(.*?)\]")
"""What `datasets` says where a config is missing or none of its own, and the names that there are."""
TIMEOUT_S = 30
LOCAL = "name a local file (JSON, JSONL, Parquet, CSV, Arrow) in data.sources; a data set fetched before works offline"


def resolve_commit(source: Source) -> str:
    """The commit that a Hub data set's revision (none: its main branch) names, asked once in a process.

    Without a network it is the commit that was found last time. Raises DataError if the data set is gated, not there,
    has no such revision, or the Hub cannot be reached and the commit is not known.
    """
    return _resolve(source.path, source.revision)


@lru_cache(maxsize=64)
def _resolve(path: str, revision: str | None) -> str:
    if revision and COMMIT.fullmatch(revision):
        return revision
    # where huggingface_hub itself notes what a branch is (its guide "Understand caching"), but it does so only when
    # it fetches a file by the branch's name, which would be a second question with perhaps another answer
    noted = Path(constants.HF_HUB_CACHE, f"datasets--{path.replace('/', '--')}", "refs", revision or "main")
    try:
        commit = _ask_commit(path, revision)
    except Exception as error:  # errors of several HTTP libraries come through, and their texts can hold the token
        if _is_no_answer(error) and noted.is_file():
            return noted.read_text().strip()
        what, fix = _explained(error, path, revision)
    else:
        with contextlib.suppress(OSError):  # a cache that cannot be written to
            write_file(noted, commit)
        return commit
    _refuse(what, fix)  # outside: no nested exception text either


def hub_tables(source: Source) -> Iterator[pyarrow.Table]:
    """One split of a data set as tables of some rows, of the commit that `resolve_commit` gives.

    What was fetched before works without a network. Raises DataError as that does, or if there is no such split or
    config, or where a stream ends before the rows do.
    """
    tables: Iterator[pyarrow.Table] = _split(source).with_format("arrow").iter(BATCH_ROWS)
    return _streamed(source, tables) if source.streaming else tables


def _streamed(source: Source, tables: Iterator[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """The tables; a network that fails on the way is no damage of theirs."""
    number = 0
    while True:
        try:
            table = next(tables, None)
        except Exception as error:  # as in `_resolve`
            what, fix = _explained(error, source.path, source.revision)
        else:
            if table is None:
                return
            number += table.num_rows
            yield table
            continue
        _refuse(f"after row {number} of a stream: {what}", fix)


@lru_cache(maxsize=8)
def _split(source: Source) -> Any:
    """The data set that `datasets` loads."""
    commit = resolve_commit(source)
    try:
        return _load(source, commit)
    except Exception as error:  # as above
        what, fix = _no_such_part(error, source) or _explained(error, source.path, source.revision)
    _refuse(what, fix)


def _no_such_part(error: Exception, source: Source) -> tuple[str, str] | None:
    """What is wrong and what to do, where `datasets` says that there is no such config or split."""
    if not isinstance(error, ValueError):
        return None
    if found := CONFIGS.search(str(error)):
        what = f"has no config {source.config}" if source.config else "has several configs"
        return f"the data set {source.path} {what}", f"choose one in data.sources[].config: {found[1]}"
    if "split" not in str(error):
        return None
    fix = f"choose one in data.sources[].split ({error})"
    if source.streaming and "[" in source.split:
        fix += "; a part of one cannot be streamed: use `limit`"
    return f"the data set {source.path} has no split {source.split}", fix


def _load(source: Source, commit: str) -> Any:
    """The rows of a commit. Raises ConnectionError if it is not cached and cannot be fetched."""
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    # first what is cached: without an answer `datasets` takes what it cached last, also if that is another commit
    owner, _, name = source.path.rpartition("/")
    within = f"{source.config or '*'}/*/{commit}"
    folders = Path(datasets.config.HF_DATASETS_CACHE).glob(f"{owner}___*/{within}" if owner else f"*/{within}")
    whole = [folder for folder in folders if _config_name(folder) == folder.parts[-3]]  # else it is made of some files
    if len(whole) == 1 and (source.config or whole[0].parts[-3] == "default" or not _answers(source, commit)):
        config, version = whole[0].parts[-3:-1]
        cached = Cache(dataset_name=name, config_name=config, version=version, hash=commit, repo_id=source.path)
        return cached.as_dataset(split=source.split)
    _ask_commit(source.path, commit)  # raises the reason at once where `datasets` would try for long
    asked = {"name": source.config, "split": source.split, "revision": commit}
    if source.streaming:
        return datasets.load_dataset(source.path, **asked, streaming=True)
    rows = datasets.load_dataset(source.path, **asked)
    if not all(commit in Path(file["filename"]).parts for file in rows.cache_files):
        raise ConnectionError(f"the rows of commit {commit} were not given")
    return rows


def _answers(source: Source, commit: str) -> bool:
    """Whether the Hub can be asked which config is meant where none is named and one that has a name is cached."""
    try:
        return bool(_ask_commit(source.path, commit))
    except Exception as error:
        if _is_no_answer(error):
            return False
        raise


def _config_name(folder: Path) -> str | None:
    """The configuration that a folder of the cache of `datasets` says it holds."""
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads((folder / "dataset_info.json").read_text(encoding="utf-8")).get("config_name"))
    return None


def _ask_commit(path: str, revision: str | None) -> str:
    return str(huggingface_hub.dataset_info(path, revision=revision, timeout=TIMEOUT_S).sha)


def _is_no_answer(error: Exception) -> bool:
    """True if the Hub was not reached, or was too busy to say."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return not isinstance(error, HFValidationError)


def _explained(error: Exception, path: str, revision: str | None) -> tuple[str, str]:
    """What is wrong and what to do."""
    if is_of_this_machine(error):  # the network is not to blame
        said = explained(error)
        what = f"the data set {path} could not be fetched: {said.what}"
        raise ResourceError(what, fix=f"{said.fix}, the Hub's with HF_HOME") from None
    return _of_the_hub(error, path, revision)


def _of_the_hub(error: Exception, path: str, revision: str | None) -> tuple[str, str]:
    """As above; `datasets` has exceptions of its own, caused by those of huggingface_hub."""
    error = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
    text = str(error)
    if isinstance(error, GatedRepoError) or "is a gated dataset" in text:
        return (
            f"the data set {path} on the Hub is gated",
            f"accept its terms at https://huggingface.co/datasets/{path}, then set the environment variable HF_TOKEN "
            "to a token from https://huggingface.co/settings/tokens; or use a file of its rows",
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the data set {path} has no revision {revision}", "name a branch, tag or commit of it"
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        what = f"there is no file {path}, nor a data set of that name on the Hub, or it is private"
        return what, "check the spelling; a private data set needs the environment variable HF_TOKEN"
    if isinstance(error, HfHubHTTPError) and not _is_no_answer(error):
        what = f"the Hub does not give the data set {path} (HTTP {error.response.status_code})"
        return what, f"check HF_TOKEN, which may be out of date; or {LOCAL}"
    if isinstance(error, OSError | HfHubHTTPError) or type(error).__module__.startswith("httpx"):
        return (
            f"there is no file {path}, and the Hub cannot be reached for a data set of that name",
            f"check the network; or {LOCAL}",
        )
    return f"the data set {path} cannot be read ({type(error).__name__}: {text.splitlines()[0] if text else ''})", LOCAL


def _refuse(what: str, fix: str) -> Never:
    token = huggingface_hub.get_token()
    raise DataError(what.replace(token, "***") if token else what, fix=fix.replace(token, "***") if token else fix)
