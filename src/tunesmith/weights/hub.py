"""A base from the Hugging Face Hub: only the files needed, pinned to a commit, and errors that say what to do."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tunesmith.errors import BaseError

SMALL = ["*.json", "*.jinja", "tokenizer.model", "README.md"]
WEIGHTS = ["*.safetensors"]
NOT_NEEDED = ["original/*", "consolidated*", "onnx/*", "*/*.safetensors"]  # the same weights in other forms
UNGATED = "HuggingFaceTB/SmolLM2-135M-Instruct or builtin:smollm2-135m-instruct"
LOCAL = "a model folder, a GGUF file or builtin:smollm2-135m-instruct"


def fetch(repo: str, revision: str | None, *, weights: bool) -> Path:
    """The snapshot folder of a Hub model; its name is the commit. What is cached is not fetched again, also offline.

    Raises BaseError if the model is gated, not there, or neither reachable nor cached. A token is never shown.
    """
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=SMALL + WEIGHTS * weights, ignore_patterns=NOT_NEEDED
            )
        )
    except Exception as error:  # errors of several HTTP libraries come through, and their texts can hold the token
        raise _explained(error, repo, revision) from None


def _explained(error: Exception, repo: str, revision: str | None) -> BaseError:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, GatedRepoError) or (status in (401, 403) and not isinstance(error, RepositoryNotFoundError)):
        return BaseError(
            f"{repo} is gated: the Hub gives it only to who accepted its licence (HTTP {status})",
            fix=f"accept the licence at https://huggingface.co/{repo}, then set the environment variable HF_TOKEN to a "
            f"token from https://huggingface.co/settings/tokens; or use an ungated base such as {UNGATED}",
        )
    if isinstance(error, RevisionNotFoundError):
        return BaseError(f"{repo} has no revision {revision!r}", fix="check the part after @: a branch, tag or commit")
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return BaseError(
            f"there is no model {repo} on the Hub, and no such folder or file here",
            fix="check the spelling; a private model needs the environment variable HF_TOKEN",
        )
    return BaseError(
        f"{repo} is not on this machine and the Hub could not be reached ({_scrubbed(error)})",
        fix=f"check the network, or use what is local: {LOCAL}; a model fetched before works offline",
    )


def _scrubbed(error: Exception) -> str:
    """First line of the error's text, without the token."""
    text = next(iter(str(error).splitlines()), "")
    token = huggingface_hub.get_token()
    return f"{type(error).__name__}: {text.replace(token, '***') if token else text}"
