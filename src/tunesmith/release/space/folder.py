"""VERB space: a folder that the Hub builds and runs as a chatbot on a free machine of two CPUs.

Of what stands in the folder only files that our record lists, and that are still as they were written, are replaced.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.console import say, warn
from tunesmith.errors import ProofError, ResourceError, ResumeError
from tunesmith.files import RECORD, digest_file, file_entry, flush, is_clutter, remove, scratch_folder, write_file
from tunesmith.gguf.metadata import read_singles
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.machine import need_disk
from tunesmith.record import Record, made_anew, read_record
from tunesmith.release.licences import refuse_clash
from tunesmith.release.space import texts
from tunesmith.release.space.texts import Model
from tunesmith.release.space.wheel import FILE as WHEEL
from tunesmith.release.space.wheel import pinned, wheel
from tunesmith.runs import Run

MOST_BYTES = 14 * 10**9
"""A free Space has 16 GB of memory (and 50 GB of disk): 2 GB are left for the context, the engine and the system."""
IN_ONE_SPACE = 10**9
"""What the Hub takes in a Space's repository; a larger model is to be published in one of its own."""
ELSEWHERE = "name another folder with --out, or move that elsewhere"


@dataclass(frozen=True)
class Shipped:
    """What is to be served: the GGUF file of a run, or one that came alone."""

    gguf: Path
    name: str
    source: Path
    """What the user has named."""
    prompts: Sequence[str]
    max_tokens: int
    run: Run | None = None
    base: str = ""
    licence: Mapping[str, str] = field(default_factory=dict)
    duties: Sequence[str] = ()
    """Sentences that the licence of the base asks for on the Space's page."""
    texts: Mapping[str, bytes] = field(default_factory=dict)
    """Files that it asks to go along, by name."""
    chosen: str = ""
    """The type that the user has chosen with --gguf."""
    published: str = ""
    """Path of the same file on the Hub, USER/NAME/resolve/COMMIT/FILE, where it is published."""
    private: bool = False
    """Whether only who has a token may fetch it there."""


def make_space(shipped: Shipped, folder: Path, address: str = "") -> Model:
    """Write the Space of a model to `folder`; what was measured before stays where the same is served.

    Raises BaseError for what is no GGUF; ResourceError for one that is too large for a free Space; ResumeError for a
    folder or file that is not ours; ProofError where a proof does not hold.
    """
    standing = refuse_strangers(folder)
    model = _looked_at(shipped)
    files: dict[str, bytes | Path] = {
        "Dockerfile": texts.dockerfile(model).encode(),
        "requirements.txt": texts.requirements(pinned()).encode(),
        WHEEL: wheel(),
        ".gitattributes": texts.ATTRIBUTES.encode(),
        ".dockerignore": texts.IGNORED.encode(),
    }
    refuse_clash(shipped.texts, {*files, model.file, "README.md", RECORD})
    files |= shipped.texts
    if not model.published:
        files[model.file] = shipped.gguf
        need_disk(folder, shipped.gguf.stat().st_size, f"the Space in {folder}", fix=ELSEWHERE)
    with scratch_folder(folder) as draft:
        for name, content in files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, draft / name)
            else:
                (draft / name).write_bytes(content)
        made = {name: file_entry(draft / name) for name in files}
        if not model.published and made[model.file]["sha256"] != model.sha256:
            raise ResumeError(f"{shipped.gguf} was changed while it was copied", fix="type the same again")
        served = {name: entry for name, entry in made.items() if name not in (".gitattributes", ".dockerignore")}
        same = all(standing["files"].get(name) == entry for name, entry in served.items())
        tried = standing["tried"] if same and standing["model"] == json.loads(json.dumps(asdict(model))) else None
        (draft / "README.md").write_text(texts.readme(model, tried, address), encoding="utf-8")
        made["README.md"] = file_entry(draft / "README.md")
        record = {"made_by": f"tunesmith space {__version__}", "model": asdict(model), "address": address,
                  "tried": tried, "files": made}  # fmt: skip
        _move_in(draft, folder, record, standing)
    _say_made(folder, model, made)
    return model


def keep_tried(folder: Path, tried: Mapping[str, Any]) -> None:
    """Write what was measured into the Space's README and record."""
    record = refuse_strangers(folder)
    model = Model(**record["model"])
    page = texts.readme(model, tried, record["address"]).encode()
    with scratch_folder(folder) as draft:
        (draft / "README.md").write_bytes(page)
        made = record["files"] | {"README.md": file_entry(draft / "README.md")}
        _move_in(draft, folder, record | {"tried": tried, "files": made}, record)


def refuse_strangers(folder: Path) -> dict[str, Any]:
    """The record of the Space that stands in a folder; an empty one where it is new or empty.

    Raises ResumeError for a folder of another kind, and for a file of ours that the user has changed.
    """
    empty: dict[str, Any] = {"files": {}, "tried": None, "model": None, "address": ""}
    if not os.path.lexists(folder):
        return empty
    if not folder.is_dir():
        raise ResumeError(f"{folder} is a file, so no Space can be made there", fix=ELSEWHERE)
    if not (folder / RECORD).is_file():
        if others := sorted(
            path.name for path in folder.iterdir() if path.name != ".git" and not is_clutter(path.name)
        ):
            what = f"{folder} is no Space that tunesmith made, and holds {', '.join(others[:3])}"
            raise ResumeError(f"{what}{' and more' if len(others) > 3 else ''}", fix=ELSEWHERE)
        return empty
    record = _record(folder)
    for name in _known(record):
        allowed = [files.get(name) for files in (record["files"], record.get("before", {}))]
        path = folder / name
        if os.path.lexists(path) and (not path.is_file() or file_entry(path) not in allowed):
            what = f"{path} is not as tunesmith wrote it, so it is not replaced"
            raise ResumeError(what, fix="move it elsewhere to have it written anew, and put your changes in again")
    return record


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json_object((folder / RECORD).read_bytes())
        if not str(record["made_by"]).startswith("tunesmith space"):
            raise ValueError("it is of another kind")
        Model(**record["model"])
        if odd := [name for name in _known(record) if Path(name).name != name]:
            raise ValueError(f"it lists {odd[0]!r}, which is no file of its folder")
        return {"tried": record["tried"], "address": str(record["address"])} | record
    except OTHER_JSON as error:
        raise ResumeError(f"{folder / RECORD} is no record of a Space: {error}", fix=ELSEWHERE) from error


def _looked_at(shipped: Shipped) -> Model:
    """What is to be known of the file, each thing that stands against it said."""
    size = shipped.gguf.stat().st_size
    if size > MOST_BYTES:
        what = f"{shipped.gguf} has {size / 1e9:.1f} GB, and a free Space has 16 GB of memory for it and its context"
        raise ResourceError(what, fix=f"choose a smaller type with --gguf; at most {MOST_BYTES / 1e9:.0f} GB fit")
    said = read_singles(shipped.gguf)
    digest, proofs, unproved = digest_file(shipped.gguf), [], []
    for folder in (shipped.run.model, shipped.run.gguf) if shipped.run else ():
        if record := read_record(folder):
            listed = record.outputs.get(shipped.gguf.name, {"sha256": digest})
            if folder == shipped.gguf.parent and listed["sha256"] != digest:
                raise ResumeError(
                    f"{shipped.gguf} is not as it was written, so it is not shipped", fix=made_anew(folder)
                )
            about = [proof for proof in record.proofs if not _is_of_another(proof.name, shipped.gguf, record)]
            if failed := [proof for proof in about if not proof.skipped_because and not proof.holds]:
                fix = f"type `tunesmith run {folder.parent}`; delete {folder.name}/ if it stands as it is"
                raise ProofError(f"{folder}: a proof does not hold, so nothing is shipped: {failed[0]}", fix=fix)
            unproved += [str(proof) for proof in about if proof.skipped_because]
            proofs += [str(proof) for proof in about if not proof.skipped_because]
    if unproved:
        more = f" and {len(unproved) - 1} more" if len(unproved) > 1 else ""
        warn(f"{shipped.name}: {unproved[0]}{more}; what is shipped may not be what was trained")
    elif not proofs:
        warn(f"{shipped.name} comes without a run's records: nothing is proved of it")
    if size > IN_ONE_SPACE and not shipped.published:
        what = f"{shipped.gguf.name} has {size / 1e9:.1f} GB, and the Hub takes {IN_ONE_SPACE / 1e9:.0f} GB in a Space"
        warn(f"{what}: publish the model first, and the Space fetches it; or choose a smaller type with --gguf")
    return Model(
        name=shipped.name, file=plain(shipped.gguf.stem) + ".gguf", sha256=digest, file_bytes=size, base=shipped.base,
        published=shipped.published, private=shipped.private, licence=dict(shipped.licence) or _own_licence(said),
        duties=list(shipped.duties), proofs=proofs, unproved=unproved,
    )  # fmt: skip


def _own_licence(said: Mapping[str, Any]) -> dict[str, str]:
    """The licence that the file's own metadata name."""
    return {"license": str(said["general.license"])} if said.get("general.license") else {}


def _is_of_another(proof: str, gguf: Path, record: Record) -> bool:
    """Whether a proof is of a GGUF file beside this one, or the adapter's; that of F16 is of the model itself."""
    types = {name.removesuffix(".gguf").rpartition("-")[2] for name in record.outputs if name != gguf.name}
    return re.split(r"[ :]", proof)[0] in {*types, "adapter"} - {"F16"}


def plain(name: str) -> str:
    """A name of letters that need no quotes, in a Dockerfile or elsewhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _move_in(draft: Path, folder: Path, record: dict[str, Any], standing: Mapping[str, Any]) -> None:
    """Move each file of a draft into the folder, so that a kill leaves a record that knows old files and new ones."""
    before = _known(standing)
    for path in draft.iterdir():
        flush(path)
        if path.name not in before and os.path.lexists(folder / path.name):
            raise ResumeError(f"{folder / path.name} is not tunesmith's, so it is not replaced", fix=ELSEWHERE)
    record = {key: value for key, value in record.items() if key != "before"}
    write_file(folder / RECORD, _text(record | {"before": before}))
    for path in sorted(draft.iterdir()):
        path.replace(folder / path.name)
    for name in before.keys() - record["files"].keys():  # such as the GGUF file of another type, as we wrote it
        remove(folder / name)
    flush(folder)
    write_file(folder / RECORD, _text(record))


def _known(standing: Mapping[str, Any]) -> dict[str, Any]:
    """The files of a Space that stands, and those that a killed command was about to replace."""
    return standing.get("before", {}) | standing["files"]


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


def _say_made(folder: Path, model: Model, made: Mapping[str, Any]) -> None:
    total = sum(entry["bytes"] for entry in made.values())
    say(f"space: {len(made)} files, {total / 1e6:,.0f} MB, in {folder}")
    if model.published:
        secret = "; that is private: give the Space a secret HF_TOKEN that may read it" if model.private else ""
        say(f"space: {model.file} is fetched from {model.repository} as the Space is built{secret}")
