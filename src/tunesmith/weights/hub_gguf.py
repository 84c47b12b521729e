"""A GGUF file from a Hub repository, to be served: which of its types, and cached."""

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from tunesmith.errors import BaseError
from tunesmith.weights.hub import TIMEOUT_S, explained_error

BEST_FIRST = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "BF16", "F16")
"""What is taken where nobody says: the smallest that loses next to nothing, as a run's own chat does."""
NO_MODEL = re.compile(r"mmproj|[-.]lora[-.]|-\d{5}-of-\d{5}", re.IGNORECASE)
"""Parts of names of files that are no whole model of text."""


def fetch_gguf(repo: str, revision: str | None, kind: str | None) -> Path:
    """The file of a type (None: the best for two cores) in a repository. What is cached is served offline too.

    Raises BaseError if there is none such, or the repository is gated, not there or out of reach.
    """
    try:
        info = huggingface_hub.model_info(repo, revision=revision, timeout=TIMEOUT_S)
        name = pick(repo, [file.rfilename for file in info.siblings or ()], kind)
        return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))  # it keeps what a branch stands at
    except BaseError:
        raise
    except Exception as error:
        if cached := _cached(repo, revision, kind):
            return cached
        raised = explained_error(error, repo, revision)
    raise raised


def pick(repo: str, names: Sequence[str], kind: str | None) -> str:
    """The name of the file to serve. Raises BaseError where there is none of that type."""
    found = {type_of(name): name for name in sorted(names, reverse=True) if name.endswith(".gguf")}
    found.pop("", None)
    wanted = [kind] if kind else [*BEST_FIRST, *found]
    name = next((found[one] for one in wanted if one in found), None)
    if name is None:
        have = ", ".join(sorted(found)) or "none"
        fix = "choose one of them with --gguf" if found else "name a repository of GGUF files, often NAME-GGUF"
        raise BaseError(f"{repo} has no GGUF file{f' of type {kind}' if kind else ''}; types there: {have}", fix=fix)
    return name


def type_of(name: str) -> str:
    """The type in a file's name, such as Q8_0 of model-Q8_0.gguf; empty for what is no whole model."""
    found = re.search(r"[-._]((?:IQ|Q|TQ)\d\w*|BF16|F16|F32)\.gguf$", name, re.IGNORECASE)
    return found[1].upper() if found and not NO_MODEL.search(name) else ""


def _cached(repo: str, revision: str | None, kind: str | None) -> Path | None:
    """What was fetched before of a branch or commit; the Hub is not asked."""
    try:
        folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True))
        return folder / pick(repo, [str(file.relative_to(folder)) for file in folder.rglob("*.gguf")], kind)
    except Exception:  # nothing of it is here
        return None
