"""What publish.py has planned, onto the Hub: files first, each once, then one commit that has them all.

What this run has published is kept in its published.json: by it a repository that others have written to since, or
made, is known and left alone. A repository is never half of one state and half of another: until its commit nothing of
it is seen.
"""

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.hf_api import RepoFile

from tunesmith import __version__
from tunesmith.console import progress, say
from tunesmith.errors import PublishError, ResumeError
from tunesmith.files import digest_file
from tunesmith.release.hub_client import AGAIN, HubClient, Upload
from tunesmith.release.publish import Plan, Repository, Sent
from tunesmith.release.published import keep_published, published

OF_THE_HUB = {"model": {".gitattributes"}, "space": {".gitattributes", "README.md"}}
"""What the Hub itself puts into a repository that is new."""
ALWAYS_LFS = 10_000_000
"""Bytes from which on a file is a large one, on the Hub, whatever is in it: git takes none of these."""
LOOK = "look at it on the Hub; --overwrite replaces the files that this run has, and keeps what else is there"


def upload(plan: Plan, overwrite: bool = False) -> list[str]:
    """Send what is planned; one line for each repository. Raises PublishError.

    `overwrite`: also into a repository that this run did not make, or that has moved on since.
    """
    hub = HubClient()
    _refuse_other_account(hub, plan)
    states = [(repository, _state(hub, plan, repository, overwrite)) for repository in plan.repositories]
    return [_published(hub, plan, repository, state) for repository, state in states]


def stands_published(plan: Plan) -> bool:
    """Whether this run's record says that just these files are on the Hub, in all repositories."""
    known = published(plan.run)
    return all(
        (said := known.get(repository.place, {})).get("commit") and said.get("endpoint") == constants.ENDPOINT
        and said.get("files") == _digests(repository) and said.get("private") is not plan.public
        for repository in plan.repositories
    )  # fmt: skip


def _digests(repository: Repository) -> dict[str, str]:
    return {file.name: file.sha256 for file in repository.files}


def _refuse_other_account(hub: HubClient, plan: Plan) -> None:
    """Raise PublishError, before anything is made, for an account that the token cannot write to."""
    who = hub.call("asking the Hub whose token this is", hub.api.whoami)
    owner = plan.repositories[0].id.partition("/")[0]
    accounts = [who["name"], *(each.get("name", "") for each in who.get("orgs", []))]
    if owner not in accounts:
        what = f"the token is of {who['name']}, who is neither {owner} nor in an organisation of that name"
        raise PublishError(what, fix=f"name one of {', '.join(accounts)} in --to, or use a token of {owner}")
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        what = f"the token of {who['name']} may only read"
        raise PublishError(what, fix="make one that may write at https://huggingface.co/settings/tokens")


def _state(hub: HubClient, plan: Plan, repository: Repository, overwrite: bool) -> Mapping[str, Any] | None:
    """What is in a repository now: {"head", "private", "tree"}; None if there is none. Raises PublishError.

    That is where it is another's, has moved on, or is seen by more than it should be.
    """
    id, kind, asked = repository.id, repository.kind, f"looking at {repository.place}"
    info = hub.find(asked, lambda: hub.api.repo_info(id, repo_type=kind))
    if info is None:
        return None
    tree = _tree(hub, repository, info.sha)
    known = published(plan.run).get(repository.place, {})
    ours = known.get("endpoint") == constants.ENDPOINT
    unmoved = ours and (
        info.sha == known.get("commit") or (not known.get("commit") and not tree.keys() - OF_THE_HUB[kind])
    )
    gone = _gone(known, repository, tree)
    if not unmoved and not overwrite and (gone or not _holds(tree, repository)):
        if not ours:
            raise PublishError(f"{repository.place} is there already, and this run did not make it", fix=LOOK)
        since = f"since this run published {known['commit'][:8]}" if known.get("commit") else "since this run made it"
        raise PublishError(f"{repository.place} has moved on {since}: it is at {str(info.sha)[:8]}", fix=LOOK)
    if not info.private and not plan.public:
        what = f"{repository.place} is public on the Hub, and was to be published privately"
        raise PublishError(what, fix="say --public, or make it private in its settings there")
    return {"head": info.sha, "private": bool(info.private), "tree": tree}


def _tree(hub: HubClient, repository: Repository, commit: str) -> dict[str, RepoFile]:
    """The files of a repository at a commit, by name."""
    ask = partial(hub.api.list_repo_tree, repository.id, recursive=True, revision=commit, repo_type=repository.kind)
    entries = hub.call(f"looking at the files of {repository.place}", lambda: list(ask()))
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _holds(tree: Mapping[str, RepoFile], repository: Repository) -> bool:
    """Whether a repository holds all these files as they are: then it is as this run left it."""
    return not _others(tree, repository)


def _others(tree: Mapping[str, RepoFile], repository: Repository) -> list[Sent]:
    """The files that a repository does not hold, or holds with other bytes."""
    return [file for file in repository.files if file.name not in tree or not _is_same(tree[file.name], file)]


def _is_same(there: RepoFile, file: Sent) -> bool:
    """Whether a file on the Hub has these bytes, by the sha256 of a large one, and git's own digest of a small one."""
    if there.lfs:
        return bool(there.lfs.sha256 == file.sha256)
    if there.size != file.size:
        return False
    content = file.read()
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


def _gone(known: Mapping[str, Any], repository: Repository, tree: Mapping[str, RepoFile]) -> list[str]:
    """What the run has published before, and would not now, that is still there."""
    return sorted((known.get("files", {}).keys() - _digests(repository).keys()) & tree.keys())


def _is_still(hub: HubClient, repository: Repository, commit: str, there: RepoFile, sha256: str) -> bool:
    """Whether a file on the Hub has this digest; a small one, of which the Hub says another digest, is fetched."""
    if there.lfs:
        return bool(there.lfs.sha256 == sha256)
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as place:
        fetch = partial(hub.api.hf_hub_download, repository.id, there.path, repo_type=repository.kind)
        path = hub.call(
            f"looking at {there.path} of {repository.place}", lambda: fetch(revision=commit, local_dir=place)
        )
        return digest_file(Path(path)) == sha256


def _published(hub: HubClient, plan: Plan, repository: Repository, state: Mapping[str, Any] | None) -> str:
    """Do one repository; what is to be said of it."""
    id, kind, place, run = repository.id, repository.kind, repository.place, plan.run
    if state is None:
        # first, so that after a kill it is known as ours
        keep_published(run, place, constants.ENDPOINT, commit=None, files={}, private=not plan.public)
        hub.call(f"making {place}", lambda: _make(hub, repository, plan))
        head = hub.call(f"looking at {place}", lambda: hub.api.repo_info(id, repo_type=kind)).sha
        state = {"head": head, "private": not plan.public, "tree": {}}
    known = published(run).get(place, {})
    gone = _gone(known, repository, state["tree"])
    if state["head"] != known.get("commit"):
        entries, at = state["tree"], str(state["head"])
        others = [name for name in gone if not _is_still(hub, repository, at, entries[name], known["files"][name])]
        gone = [name for name in gone if name not in others]
        if others:
            say(f"publish: {place}: {', '.join(others)} may be another's by now, and stays")
    head, how = state["head"], "already there"
    if gone or not _holds(state["tree"], repository):
        head, how = _commit(hub, repository, state, gone), "published"
    if plan.public and state["private"]:
        hub.call(f"making {place} public", lambda: hub.api.update_repo_settings(id, private=False, repo_type=kind))
    keep_published(run, place, constants.ENDPOINT, commit=head, files=_digests(repository), private=not plan.public)
    size = f"{len(repository.files)} files, {repository.size / 1e6:,.1f} MB"
    return f"{how}: {constants.ENDPOINT}/{place} ({plan.visibility}), {size}, commit {head}"


def _make(hub: HubClient, repository: Repository, plan: Plan) -> Any:
    sdk = "docker" if repository.kind == "space" else None
    return hub.api.create_repo(repository.id, private=not plan.public, repo_type=repository.kind, space_sdk=sdk)


def _commit(hub: HubClient, repository: Repository, state: Mapping[str, Any], gone: list[str]) -> str:
    """Send the files that are not there, one after the other, then commit all at once; the commit."""
    id, kind = repository.id, repository.kind
    left = _others(state["tree"], repository)
    with contextlib.ExitStack() as opened:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name) for name in gone]
        for file in left:
            operations.append(_sent(hub, repository, file, opened))
        done = hub.call(
            f"committing {repository.place}",
            lambda: hub.api.create_commit(
                id,
                operations,
                commit_message=f"Published by tunesmith {__version__}",
                parent_commit=state["head"],
                repo_type=kind,
            ),
        )
    if others := _others(_tree(hub, repository, done.oid), repository):
        what = f"{repository.place} has other bytes than were sent: {', '.join(file.name for file in others)}"
        raise PublishError(what, fix=f"{LOOK}; and report it")
    return str(done.oid)


def _sent(hub: HubClient, repository: Repository, file: Sent, opened: contextlib.ExitStack) -> CommitOperationAdd:
    """Send one file, where it is a large one that the Hub does not have; what the commit says of it."""
    id, kind = repository.id, repository.kind
    source = opened.enter_context(Upload(file.path) if file.path else io.BytesIO(file.content))
    operation = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=source)  # reads all, for its sha256
    if operation.upload_info.sha256.hex() != file.sha256:
        what = f"{file.path} is not as it was written: it was changed just now"
        raise ResumeError(what, fix=f"put it back, or make it anew; then {AGAIN}")
    sent_mb = 0.0
    with progress(f"{id}: {file.name}", file.size / 1e6, unit="MB") as advance:

        def told(more_mb: float) -> None:
            nonlocal sent_mb
            sent_mb += more_mb
            advance(more_mb, "")

        if isinstance(source, Upload):
            source.told = told
        hub.call(
            f"sending {file.name} to {repository.place}",
            lambda: hub.api.preupload_lfs_files(id, [operation], free_memory=False, repo_type=kind),
        )
    if sent_mb or file.size >= ALWAYS_LFS:
        say(f"publish: {id}: {file.name} {'sent' if sent_mb else 'was there already'}")
    return operation
