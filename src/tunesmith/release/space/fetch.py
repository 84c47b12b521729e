"""Fetch one file of a repository of the Hub while a Space is built.

`python -m tunesmith.release.space.fetch PATH SHA256 FILE`, where PATH is USER/NAME/resolve/COMMIT/FILE. A file with
other bytes than were published ends the build. A private repository needs the Space's secret HF_TOKEN.
"""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tunesmith.errors import BaseError, TunesmithError

SECRET = Path("/run/secrets/HF_TOKEN")
"""Where a secret of the Space stands while its image is built, and only there."""
HUB = "https://huggingface.co"
PIECE_BYTES = 1 << 20
TOKEN = "if the repository is private, add a token that may read it to the Space's secrets as HF_TOKEN"


def endpoint() -> str:
    """Where the Hub is; the variable HF_ENDPOINT names another than the public one."""
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def fetch(path: str, sha256: str, target: Path) -> None:
    """Fetch a file into `target`, which is whole or absent. Raises BaseError if it cannot be had or is another one."""
    request = urllib.request.Request(f"{endpoint()}/{path}")
    token = SECRET.read_text().strip() if SECRET.is_file() else os.environ.get("HF_TOKEN", "")
    if token:  # not to be sent on to the host of large files, which an address of the answer names
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    draft, digest = target.with_name(f".{target.name}.draft"), hashlib.sha256()
    try:
        with urllib.request.urlopen(request, timeout=60) as answer, draft.open("wb") as file:
            while piece := answer.read(PIECE_BYTES):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != sha256:
            what = f"{path} has the sha256 {digest.hexdigest()}, and {sha256} was published"
            raise BaseError(what, fix="build again; if it stays so, make the Space again with `tunesmith space`")
        draft.rename(target)
    except urllib.error.HTTPError as error:
        fix = TOKEN if error.code in (401, 403, 404) else "build the Space again"
        raise BaseError(f"{path} cannot be fetched: {error.code} {error.reason}", fix=fix) from error
    except urllib.error.URLError as error:
        raise BaseError(f"{path} cannot be fetched: {error.reason}", fix="see to the network, and try again") from error
    finally:
        draft.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    except TunesmithError as fault:
        sys.exit(f"error: {fault}")
