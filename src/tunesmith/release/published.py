"""published.json of a run: what it has published, by which a repository that others wrote to since is known.

Read by `list` too, so that nothing of the Hub's client is needed here.
"""

import json
from typing import Any

from tunesmith import __version__
from tunesmith.errors import ResumeError
from tunesmith.files import write_file
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.runs import Run


def published(run: Run) -> dict[str, Any]:
    """What this run has published: repository -> its last commit and the digests of its files."""
    if not run.published.exists():
        return {}
    try:
        known = json_object(run.published.read_bytes())["repositories"]
        if not all(_is_said(said) for said in known.values()):
            raise ValueError("a repository is not described as tunesmith does")
        return dict(known)
    except (*OTHER_JSON, AttributeError) as error:
        fix = "move it elsewhere; --overwrite then goes on with the repositories that are there"
        raise ResumeError(f"{run.published} is damaged", fix=fix) from error


def _is_said(said: Any) -> bool:
    """Whether a repository is described in full."""
    if not isinstance(said, dict):
        return False
    files, commit = said.get("files"), said.get("commit")
    named = isinstance(files, dict) and all(isinstance(digest, str) for digest in files.values())
    return named and isinstance(said.get("endpoint"), str) and (commit is None or isinstance(commit, str))


def keep_published(run: Run, id: str, endpoint: str, **said: Any) -> None:
    """Write into the run what is known of a repository."""
    known = published(run)
    known[id] = known.get(id, {}) | said | {"endpoint": endpoint}
    text = json.dumps({"made_by": f"tunesmith {__version__}", "repositories": known}, indent=1) + "\n"
    write_file(run.published, text)
