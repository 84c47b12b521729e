"""Which files hold conversations: by the kind that a name tells, and of a folder by its own notes and its layout.

A folder may be one that `datasets.save_to_disk` wrote, one laid out as on the Hub (README.md with configs, or names
such as data/train-00000-of-00001.parquet), or any other, of which every file of a known kind is read.
"""

import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tunesmith.errors import DataError
from tunesmith.files import RECORD, is_clutter
from tunesmith.json_file import OTHER_JSON

CHAT = ".txt"
KINDS = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".arrow", ".feather", CHAT)
PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Suffix -> the name that pyarrow has for the compression."""
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
NOTES = {SAVED, SAVED_SPLITS, "dataset_info.json", "dataset_infos.json"}
"""Files that `datasets` writes about the rows, without rows in them."""
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""A word in the name of a file or folder -> its split, as `datasets` has it (its guide "Structure your repository")."""
WORD = re.compile("[a-z]+")
OF_A_RUN = {RECORD, "manifest.json"}
FEW = 5  # names that are said of many


class Kind(NamedTuple):
    """What a file's name says of it."""

    suffix: str
    """One of KINDS; "" where it is none."""
    packed: str
    """The name of its compression; "" where it has none."""


class Found(NamedTuple):
    """The files of a folder."""

    files: list[Path]
    left: dict[str, list[str]]
    """Why files are not read -> their names."""


def kind_of(path: Path) -> Kind:
    """The kind of a file by its suffixes, in any case: x.jsonl.gz is JSON lines, compressed."""
    packed = PACKED.get(path.suffix.lower(), "")
    suffix = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    return Kind(suffix if suffix in KINDS else "", packed)


def folder_files(folder: Path, split: str, config: str | None) -> Found:
    """The files of a folder that hold the rows of a split, in order.

    Raises DataError if there are none, or no such split or config.
    """
    if (folder / SAVED_SPLITS).is_file():
        splits = _noted(folder / SAVED_SPLITS, "splits")
        if split not in splits:
            raise _no_split(folder, split, splits)
        folder = folder / split
    if saved := [file for file in _noted(folder / SAVED, "_data_files") if isinstance(file, dict)]:
        files = [folder / Path(str(file.get("filename"))).name for file in saved]
        if gone := [file.name for file in files if not file.is_file()]:
            raise DataError(f"{folder} lacks {_few(gone)}, which its {SAVED} names", fix="save the data set again")
        return Found(files, {})
    if configs := _configs(folder):
        return _by_config(folder, configs, split, config)
    if config:
        if not (folder / config).is_dir():
            below = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
            raise _no_config(folder, config, below)
        folder = folder / config
    return _by_names(folder, split)


def said(left: dict[str, list[str]]) -> str:
    """The files that are not read, in words: why, and some of their names."""
    return "; ".join(f"{why}: {_few(names)}" for why, names in left.items())


def _by_names(folder: Path, split: str) -> Found:
    """Every file of a known kind below the folder; where their names tell splits, those of this one."""
    splits, left = defaultdict[str, list[Path]](list), defaultdict[str, list[str]](list)
    for name in _names_below(folder, left["of a run"]):
        if kind_of(name).suffix not in ("", CHAT) and name.name not in NOTES:  # a .txt is mostly a note
            splits[_split_of(name)].append(folder / name)
        else:
            left["of no known kind"].append(str(name))
    wanted = split if split in splits else ""
    if wanted not in splits:
        if splits:
            raise _no_split(folder, split, list(splits))
        holds = "only " * any(left.values()) + (_few([*left["of no known kind"], *left["of a run"]]) or "no files")
        raise DataError(
            f"{folder} is a folder that holds {holds}", fix=f"name one with files of {', '.join(KINDS[:-1])}"
        )
    for other, paths in splits.items():
        if other != wanted:
            left[f"of the split {other}" if other else "of no split"] += [str(p.relative_to(folder)) for p in paths]
    return Found(splits[wanted], {why: names for why, names in left.items() if names})


def _names_below(folder: Path, runs: list[str]) -> list[Path]:
    """The files below a folder, sorted, no hidden ones; `runs` gets the folders that are ours, which are no data."""
    names = []
    for place, below, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        if any(file in OF_A_RUN for file in files):
            runs.append(f"{here}/")
            below.clear()
            continue
        below[:] = [name for name in below if not _is_hidden(name)]
        names += [here / name for name in files if not _is_hidden(name)]
    return sorted(names)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or is_clutter(name)


def _split_of(name: Path) -> str:
    """The split that a file's name, or a folder's that it is in, tells; "" for none."""
    stem = name.name.split(".")[0]
    if shard := SHARD.fullmatch(stem):
        return SPLITS.get(shard[1], shard[1])
    words = (word for part in (stem, *reversed(name.parts[:-1])) for word in WORD.findall(part.lower()))
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def _configs(folder: Path) -> list[dict[str, Any]]:
    """The configs that the head of README.md names, as the Hub takes them."""
    try:
        _, head, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        noted = yaml.safe_load(head)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    configs = noted.get("configs") if isinstance(noted, dict) else None
    return [one for one in configs or [] if isinstance(one, dict) and "config_name" in one and "data_files" in one]


def _by_config(folder: Path, configs: list[dict[str, Any]], split: str, config: str | None) -> Found:
    """The files that a config gives a split: a pattern, a list of them, or one for each split."""
    names = [str(one["config_name"]) for one in configs]
    first = next((str(one["config_name"]) for one in configs if one.get("default")), None)
    wanted = config or first or ("default" if "default" in names else names[0] if len(names) == 1 else None)
    if wanted not in names:
        raise _no_config(folder, config, names)
    one = configs[names.index(wanted)]
    given = one["data_files"] if isinstance(one["data_files"], list) else [one["data_files"]]
    by_split = defaultdict[str, list[str]](list)
    for each in given:
        parts = each if isinstance(each, dict) else {"path": each}
        paths = parts.get("path", [])
        by_split[str(parts.get("split", "train"))] += paths if isinstance(paths, list) else [paths]
    if split not in by_split:
        raise _no_split(folder, split, list(by_split))
    below = folder / str(one.get("data_dir", ""))
    files = sorted({path for name in by_split[split] for path in below.glob(str(name).lstrip("/")) if path.is_file()})
    if not files:
        fix = "fetch the data set again, with its files"
        raise DataError(
            f"{folder} has no file {' or '.join(map(str, by_split[split]))}, as its README.md says", fix=fix
        )
    return Found(files, {})


def _noted(path: Path, key: str) -> list[Any]:
    """The list that `datasets` wrote under a key; none where the file is not one of its own."""
    try:
        found = json.loads(path.read_bytes())[key]
    except (FileNotFoundError, *OTHER_JSON):
        return []
    return found if isinstance(found, list) else []


def _no_split(folder: Path, split: str, splits: list[str]) -> DataError:
    there = ", ".join(sorted(name for name in splits if name))
    fix = f"name one that it has in data.sources[].split: {there}"
    if "[" in split:
        fix += "; a part of one, as in train[:100], is for data sets on the Hub: here it is `limit`"
    return DataError(f"{folder} has no split {split}", fix=fix)


def _no_config(folder: Path, config: str | None, configs: list[str]) -> DataError:
    what = f"{folder} has no config {config}" if config else f"{folder} has several configs"
    return DataError(what, fix=f"name one in data.sources[].config: {', '.join(configs) or '(it has none)'}")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more
