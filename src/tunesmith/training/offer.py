"""A checkpoint on its way to the mirror, with files of its own: what prunes checkpoints may delete theirs meanwhile."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.files import DIGESTS, file_entry, make_folder, remove
from tunesmith.json_file import json_object
from tunesmith.training.fetched import CHECKPOINTS, best_name
from tunesmith.training.store import Source


@dataclass
class Offer:
    """One checkpoint, and how much of it is there."""

    name: str
    files: dict[str, Source]
    """Name in the mirror -> what is sent."""
    best: str
    """The checkpoint that was the best when this one was saved."""
    folder: Path
    """Where its own files are."""
    sent: set[str] = field(default_factory=set)

    @property
    def last(self) -> str:
        """The file by which it is complete."""
        return f"{CHECKPOINTS}/{self.name}/{DIGESTS}"


def made_offer(step_folder: Path, folder: Path, lines: Mapping[str, bytes]) -> Offer:
    """An offer of a checkpoint that was committed, whose own files are in `folder`.

    `lines`: files of the run as they were at that step, which only the mirror's checkpoint has. Raises OSError where
    the checkpoint is gone or the disk is full, one of OTHER_JSON where its digests cannot be read.
    """
    make_folder(folder)
    try:
        digests = json_object((step_folder / DIGESTS).read_bytes())
        for name in digests:
            _link(step_folder / name, folder / name)
        best = best_name(folder)
        for name, content in lines.items():
            if content:  # a run that asks no question has no samples
                (folder / name).write_bytes(content)
                digests[name] = file_entry(folder / name)
    except BaseException:
        remove(folder)
        raise
    place = f"{CHECKPOINTS}/{step_folder.name}"
    files: dict[str, Source] = {f"{place}/{name}": folder / name for name in digests}
    files[f"{place}/{DIGESTS}"] = (json.dumps(digests, indent=1) + "\n").encode()
    return Offer(step_folder.name, files, best, folder)


def _link(source: Path, target: Path) -> None:
    """Another name for a file; where the disk has none such, a copy."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
