"""A checkpoint on its way to the mirror, with files of its own: what prunes checkpoints may delete theirs meanwhile."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.files import DIGESTS, file_entry, make_folder, remove
from tunesmith.json_file import OTHER_JSON
from tunesmith.training.fetched import AS, CHECKPOINTS, best_name
from tunesmith.training.saved import ADAPTER, OPTIMIZER, STATE, digests_in
from tunesmith.training.store import Source


@dataclass
class Offer:
    """One checkpoint, and how much of it is there."""

    name: str
    digests: dict[str, dict[str, Any]]
    """File -> its digest and size."""
    best: str
    """The checkpoint that was the best when this one was saved."""
    folder: Path
    """Where its own files are."""
    files: dict[str, Source] = field(init=False)
    """Name in the mirror -> what is sent."""
    sent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.named(anew=False)

    def named(self, *, anew: bool) -> None:
        """Give its files their names in the mirror; `anew`: such as no file of another content there has."""
        digests = {name: entry | ({AS: _anew(name, entry)} if anew else {}) for name, entry in self.digests.items()}
        self.files = {f"{self.place}/{entry.get(AS, name)}": self.folder / name for name, entry in digests.items()}
        self.files[self.last] = (json.dumps(digests, indent=1) + "\n").encode()

    def is_in(self, content: bytes | None) -> bool:
        """Whether a digests.json of the mirror is of this checkpoint; its lines may be those of another moment."""
        try:
            there = digests_in(content or b"")
        except OTHER_JSON:
            return False
        return all(there.get(name) == self.digests[name] for name in (ADAPTER, OPTIMIZER, STATE))

    @property
    def place(self) -> str:
        """Its folder in the mirror."""
        return f"{CHECKPOINTS}/{self.name}"

    @property
    def last(self) -> str:
        """The file by which it is complete."""
        return f"{self.place}/{DIGESTS}"


def made_offer(step_folder: Path, folder: Path, lines: Mapping[str, bytes]) -> Offer:
    """An offer of a checkpoint that was committed, whose own files are in `folder`.

    `lines`: files of the run as they were at that step, which only the mirror's checkpoint has. Raises OSError where
    the checkpoint is gone or the disk is full, one of OTHER_JSON where its digests cannot be read.
    """
    make_folder(folder)
    try:
        digests = digests_in((step_folder / DIGESTS).read_bytes())
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
    return Offer(step_folder.name, digests, best, folder)


def _anew(name: str, entry: Mapping[str, Any]) -> str:
    """Another name for a file, by its content."""
    stem, dot, kind = name.rpartition(".")
    return f"{stem}-{entry['sha256'][:12]}{dot}{kind}"


def _link(source: Path, target: Path) -> None:
    """Another name for a file; where the disk has none such, a copy."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
