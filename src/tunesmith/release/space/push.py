"""A Space that was made in a folder, to the Hub: as `publish` sends a model, with the same refusals."""

from collections.abc import Iterator
from pathlib import Path

from tunesmith.console import say
from tunesmith.release.publish import Plan, Repository, on_disk
from tunesmith.release.space.folder import Shipped, refuse_strangers
from tunesmith.release.space.texts import address_of, page_of
from tunesmith.release.space.verb import Wanted
from tunesmith.release.upload import upload
from tunesmith.runs import Run


def to_hub(shipped: Shipped, wanted: Wanted, folder: Path) -> None:
    """Send the Space in a folder, or say what would be sent. Raises PublishError as `upload`."""
    plan = plan_of(shipped, folder, wanted.to, public=wanted.public)
    if not wanted.send:
        say("nothing is sent yet; this would be sent:")
    for line in lines(plan):
        say(line)
    if not wanted.send:
        say(f"to do it: {wanted.words(shipped, *['--try'] * wanted.attempt, '--yes')}")
        return
    for line in upload(plan, wanted.overwrite):
        say(line)
    say(f"next: {page_of(wanted.to)} shows how it is built, which takes some minutes; the chat is there after it")


def plan_of(shipped: Shipped, folder: Path, to: str, *, public: bool) -> Plan:
    """What would be sent: the files that the folder's record lists, and nothing else that stands there.

    What is known of the repository is kept in the run, or, of a GGUF file alone, in the folder.
    """
    listed = refuse_strangers(folder)["files"]
    files = tuple(on_disk(folder / name) for name in sorted(listed))
    run = shipped.run or Run(folder)
    return Plan(run, (Repository(to, "space", files),), public, duties=(), skipped=(), remarks=())


def lines(plan: Plan) -> Iterator[str]:
    """Every file with its size, and where it goes."""
    (repository,) = plan.repositories
    yield from repository.lines(plan.visibility)
    yield f"the Space: {page_of(repository.id)}, and its chat alone: {address_of(repository.id)}"
