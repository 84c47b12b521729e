"""A base from the Hugging Face Hub: only the files needed, pinned to a commit, and errors that say what to do."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

from tunesmith.boundary import explained, is_of_this_machine
from tunesmith.errors import BaseError, ResourceError
from tunesmith.weights.small_files import CARD, CONFIG, LICENCE_FILES
from tunesmith.weights.tensorfile import weight_files

TIMEOUT_S = 10  # to get an answer at all; a Hub that is slower than this is as good as not there
COMMIT = re.compile("[0-9a-f]{40}")

SMALL = ["*.json", "*.jinja", "tokenizer.model", CARD, *LICENCE_FILES]
NOT_NEEDED = ["consolidated*", "[!a]*/*", "a[!d]*/*", "ad[!d]*/*"]
# such names and folders hold the same weights in other forms; but additional_chat_templates/ is looked at


def fetch_snapshot(repo: str, revision: str | None, *, weights: bool) -> Path:
    """The snapshot folder of a Hub model; its name is the commit. What is cached is not fetched again, also offline.

    Raises BaseError if the model is gated, not there, or neither reachable nor cached, ResourceError if it cannot be
    written. A token is never shown.
    """
    try:
        cached = _cached(repo, revision, weights) if COMMIT.fullmatch(revision or "") else None
        return cached or _fetched(repo, revision, weights)
    except Exception as error:  # errors of several HTTP libraries come through, and their texts can hold the token
        raised = explained_error(error, repo, revision)
    raise raised  # outside: no nested exception text either


def explained_error(error: Exception, repo: str, revision: str | None) -> BaseError:
    """An error of huggingface_hub as ours, without the token. Raises ResourceError where this machine is to blame."""
    what, fix = _explained(error, repo, revision)
    token = huggingface_hub.get_token()
    return BaseError(what.replace(token, "***") if token else what, fix=fix)


def _fetched(repo: str, revision: str | None, weights: bool) -> Path:
    """The snapshot as the Hub has it now; the cached one where it gives none. Raises what huggingface_hub does."""
    try:  # asked first, since snapshot_download asks without a time limit, or for half a minute
        huggingface_hub.model_info(repo, revision=revision, timeout=TIMEOUT_S)
    except Exception as error:
        known = not isinstance(error, RevisionNotFoundError | HFValidationError)
        cached = _cached(repo, revision, weights) if known else None  # also where a token is no longer good
        if cached is None:
            raise
        return cached
    return _snapshot(repo, revision, weights)


def _cached(repo: str, revision: str | None, weights: bool) -> Path | None:
    """The snapshot in the cache, if it holds what is wanted; the Hub is not asked."""
    try:
        folder = _snapshot(repo, revision, weights, local_files_only=True)
        return folder if (folder / CONFIG).exists() and (not weights or weight_files(folder)) else None
    except (LocalEntryNotFoundError, BaseError):  # not there, or cut off while it was fetched
        return None


def _snapshot(repo: str, revision: str | None, weights: bool, **options: bool) -> Path:
    wanted = [*SMALL, "*.safetensors"] if weights else SMALL
    found = huggingface_hub.snapshot_download(
        repo, revision=revision, allow_patterns=wanted, ignore_patterns=NOT_NEEDED, **options
    )
    return Path(found)


def _explained(error: Exception, repo: str, revision: str | None) -> tuple[str, str]:
    if is_of_this_machine(error):  # the network is not to blame
        said = explained(error)
        raise ResourceError(
            f"{repo} could not be fetched: {said.what}", fix=f"{said.fix}, the Hub's with HF_HOME"
        ) from None
    http = error if isinstance(error, HfHubHTTPError) else error.__cause__
    status = http.response.status_code if isinstance(http, HfHubHTTPError) else None
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision}", "name a branch, tag or commit after the @"
    if status in (401, 403):
        reason = "is gated" if isinstance(error, GatedRepoError) else "is gated or private, or misspelt"
        return (
            f"the Hub does not give {repo} (HTTP {status}): it {reason}",
            f"accept its licence at https://huggingface.co/{repo}, then set the environment variable HF_TOKEN to a "
            "token from https://huggingface.co/settings/tokens (one already set may be out of date); or use an "
            "ungated base such as HuggingFaceTB/SmolLM2-135M-Instruct or builtin:smollm2-135m-instruct",
        )
    if status == 404:
        what = f"there is no model {repo} on the Hub, nor a folder or file of that name here"
        return what, "check the spelling; a private model needs the environment variable HF_TOKEN"
    reason = next(iter(str(error).splitlines()), "")
    return (
        f"{repo} is not on this machine and the Hub cannot be reached ({type(error).__name__}: {reason})",
        "check the network, or give what is local: a model folder, a GGUF file or builtin:smollm2-135m-instruct; "
        "a model that was fetched before works offline",
    )
