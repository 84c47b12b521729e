"""A store in a repository of the Hub: all files of one put are one commit, so what is there is there as a whole.

Each write through fsspec would be a commit of its own, and the Hub limits those. A token is taken from HF_TOKEN or
huggingface_hub's login.
"""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils._http import default_client_factory  # what set_client_factory replaces

from tunesmith.console import warn
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.training.store import CONNECT_S, READ_S, Source, is_plain, opened, said

URL = re.compile(
    r"hf://(?:(?P<kind>datasets|models)/)?(?P<id>(?!datasets/|models/|spaces/)[\w.-]+/[\w.-]+)"
    r"(?:@(?P<branch>[^/\s]+))?(?:/(?P<path>.+))?"
)
TIMEOUT_S = (CONNECT_S, 300.0, READ_S, CONNECT_S)
"""To connect, to get an answer (a commit of many files takes minutes), to send a piece, to get a connection."""
PAUSE_S = 60.0
"""The Hub takes some hundred commits an hour of one account."""
MAIN = "main"


class HubFolder:
    """A folder of a repository on the Hub; a repository or branch that is not there is made, a repository privately."""

    folder = None
    pause_s = PAUSE_S

    def __init__(self, url: str, name: str) -> None:
        """The folder `name` at a URL. Raises RecipeError for one that names no repository; nothing is asked yet."""
        found = URL.fullmatch(url.rstrip("/"))
        if not found:
            fix = "write hf://datasets/USER/NAME or hf://USER/NAME, with @BRANCH and /FOLDER after it where you want"
            raise RecipeError(f"checkpoint.mirror: {said(url)} names no repository of the Hub", fix=fix)
        self.place = said(f"{url.rstrip('/')}/{name}")
        self._kind = "dataset" if found["kind"] == "datasets" else "model"
        self._id, self._branch = found["id"], unquote(found["branch"] or MAIN)
        self._folder = f"{found['path'].strip('/')}/{name}/" if found["path"] else f"{name}/"
        self._head, self._is_said = "", False
        huggingface_hub.set_client_factory(_client)
        # of a model's repository, which may hold a mirror too; here, as in its thread a filter is not for a block
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")

    def put(self, files: Mapping[str, Source], last: str, allowed: Callable[[], None], sent: set[str]) -> None:
        """As Store's, in one commit on top of what `allowed` has looked at: refused where something came between."""
        head = self._now()
        allowed()
        if left := [name for name in files if name not in sent]:
            with contextlib.ExitStack() as at_end:
                contents = {name: at_end.enter_context(opened(files[name])) for name in left}
                adds = [CommitOperationAdd(f"{self._folder}{name}", content) for name, content in contents.items()]
                self._commit(adds, last, head)
            sent.update(left)

    def read(self, name: str) -> bytes | None:
        """As Store's."""
        self._now()
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as place:
            try:
                return self._fetched(name, Path(place)).read_bytes()
            except EntryNotFoundError:
                return None

    def get(self, name: str, to: Path) -> None:
        """As Store's: as it was when `names` was asked."""
        with tempfile.TemporaryDirectory(prefix=".", dir=to.parent) as place:
            try:
                self._fetched(name, Path(place)).replace(to)
            except EntryNotFoundError as error:
                raise FileNotFoundError(f"{name} is not there") from error

    def names(self, under: str = "") -> list[str]:
        """As Store's."""
        self._now()
        with _quiet():
            tree = self._api().list_repo_tree(self._id, recursive=True, revision=self._head, repo_type=self._kind)
            paths = [entry.path for entry in tree if isinstance(entry, RepoFile)]
        start = f"{self._folder}{under.rstrip('/')}/" if under else self._folder
        names = (path.removeprefix(self._folder) for path in paths if path.startswith(start))
        return sorted(name for name in names if is_plain(name))

    def delete(self, folders: Sequence[str], first: str, keep: Container[str] = ()) -> None:
        """As Store's, in one commit."""
        starts = tuple(f"{folder.rstrip('/')}/" for folder in folders)
        names = [name for name in self.names() if name.startswith(starts) and name not in keep]
        gone = [CommitOperationDelete(f"{self._folder}{name}") for name in names]
        if gone:
            self._commit(gone, f"without {', '.join(folders)}", self._head)

    def _commit(self, operations: Sequence[Any], what: str, head: str) -> None:
        with _quiet():
            done = self._api().create_commit(
                self._id, operations, commit_message=f"tunesmith: {self._folder}{what}", parent_commit=head,
                revision=self._branch, repo_type=self._kind,
            )  # fmt: skip
        self._head = str(done.oid)

    def _fetched(self, name: str, place: Path) -> Path:
        fetch = huggingface_hub.hf_hub_download
        with _quiet():
            found = fetch(
                self._id, f"{self._folder}{name}", repo_type=self._kind, revision=self._head, local_dir=place,
                token=self._token(), etag_timeout=READ_S,
            )  # fmt: skip
        return Path(found)

    def _now(self) -> str:
        """The commit that the branch is at; where there is none, repository and branch are made."""
        try:
            with _quiet():
                info = self._info()
        except RevisionNotFoundError:
            self._api().create_branch(self._id, branch=self._branch, repo_type=self._kind, exist_ok=True)
            info = self._info()
        except RepositoryNotFoundError:
            self._api().create_repo(self._id, private=True, repo_type=self._kind, exist_ok=True)
            if self._branch != MAIN:
                self._api().create_branch(self._id, branch=self._branch, repo_type=self._kind, exist_ok=True)
            info = self._info()
        if not info.private and not self._is_said:
            self._is_said = True
            warn(f"mirror: {self.place} is public: anybody can read the rows and the adapter that are mirrored there")
        self._head = str(info.sha)
        return self._head

    def _info(self) -> Any:
        return self._api().repo_info(self._id, revision=self._branch, repo_type=self._kind, timeout=READ_S)

    def _api(self) -> HfApi:
        return HfApi(token=self._token())

    def _token(self) -> str:
        """The token as it is now: one that is made while a run goes on is taken."""
        if token := huggingface_hub.get_token():
            return token
        fix = "make a token that may write, and set HF_TOKEN to it or type `hf auth login`"
        raise ResourceError("a mirror on the Hub needs a token, and there is none", fix=fix)


def _client() -> Any:
    """The Hub's client, which by itself waits for ever."""
    made = default_client_factory()
    made.timeout = TIMEOUT_S
    return made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """In the block the Hub's client shows no bars of its own."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
