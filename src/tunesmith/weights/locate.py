"""Where a base comes from: whatever the recipe names becomes a checked Hugging Face folder with a digest."""

import contextlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import BaseError
from tunesmith.files import commit_folder, digest_file, fingerprint, write_file
from tunesmith.weights import builtin, hub
from tunesmith.weights.tensorfile import weight_files

HUB_ID = re.compile(r"([\w-][\w.-]*(?:/[\w.-]+)?)(?:@([\w./-]+))?")
GGUF_FORM = 2  # in the name of an unpacked GGUF; raise it when gguf/read.py writes something else
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
Unpack = Callable[[Path, Path], None]
INSTRUCT = "use an instruct or chat model, such as builtin:smollm2-135m-instruct"


@dataclass(frozen=True)
class LocatedBase:
    """A base on this machine. `digest` is over weights, config, tokenizer and template; `revision` a Hub commit."""

    name: str
    folder: Path
    digest: str
    revision: str | None
    licence: str | None


def cache_folder() -> Path:
    """Where fetched and unpacked bases are kept: $TUNESMITH_CACHE, else ~/.cache/tunesmith."""
    return Path(os.environ.get("TUNESMITH_CACHE") or "~/.cache/tunesmith").expanduser()


def locate_base(base: str, unpack: Unpack) -> LocatedBase:
    """Find a base named as Hub id[@revision], folder, GGUF file or builtin:NAME; fetch and unpack it if needed.

    `unpack` makes a Hugging Face folder of a GGUF file: gguf/read.py, which this layer does not know.

    Raises BaseError, with the fix, if it cannot be found or is no causal language model with a chat template.
    """
    path = Path(base).expanduser()
    if base.startswith(builtin.SCHEME):
        return _located(base, _unpacked(builtin.fetch_builtin(base, cache_folder() / "builtin"), unpack))
    if path.is_dir():
        return _located(path.resolve().name, path.resolve())
    if path.is_file():
        return _located(path.stem, _unpacked(path.resolve(), unpack))
    match = HUB_ID.fullmatch(base)
    if not match or base.endswith(".gguf"):
        forms = "a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, a model folder, a GGUF file"
        raise BaseError(f"there is no base {base}", fix=f"give {forms} or {builtin.SCHEME}{builtin.NAME}")
    repo, revision = match.groups()
    _check_small_files(hub.fetch_snapshot(repo, revision, weights=False), repo)  # before gigabytes are fetched in vain
    folder = hub.fetch_snapshot(repo, revision, weights=True)
    return _located(repo, folder, revision=folder.name)


def _unpacked(gguf_file: Path, unpack: Unpack) -> Path:
    folder = cache_folder() / "gguf" / f"{_digests([gguf_file])[0][:16]}-{GGUF_FORM}"
    if not folder.exists():
        commit_folder(folder, lambda draft: unpack(gguf_file, draft))
    return folder


def _located(name: str, folder: Path, *, revision: str | None = None) -> LocatedBase:
    _check_small_files(folder, name)
    weights = weight_files(folder)
    if not weights:
        pickled = ", only pickle files, which can run code and are not read" if any(folder.glob("*.bin")) else ""
        fix = "where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        raise BaseError(f"{name} has no safetensors weights{pickled}", fix=fix, where=str(folder))
    files = weights + [folder / small for small in SMALL_FILES if (folder / small).exists()]
    digest = fingerprint({file.name: found for file, found in zip(files, _digests(files), strict=True)})
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    licence = re.match(r"---\n(?:(?!---).*\n)*?license: *([\w.-]+)", text)
    return LocatedBase(name, folder, digest, revision, licence[1] if licence else None)


def _check_small_files(folder: Path, name: str) -> None:
    """Raise BaseError unless the folder is, by its small files, a causal language model that can chat."""
    if not (folder / "config.json").exists():
        fix = "give the folder of a whole model; an adapter must be merged into its base first"
        raise BaseError(f"{name} has no config.json, so it is no model folder", fix=fix, where=str(folder))
    config = _json(folder / "config.json")
    kind = ", ".join(config.get("architectures") or ["of no stated architecture"])
    method = (config.get("quantization_config") or {}).get("quant_method")
    template = (folder / "chat_template.jinja").exists() or _json(folder / "tokenizer_config.json").get("chat_template")
    for wrong, what, fix in (
        (not kind.endswith("ForCausalLM"), f"is {kind}, not a causal language model (...ForCausalLM)", INSTRUCT),
        (method, f"is stored quantised ({method})", "name the model it was made from, in F32, F16 or BF16"),
        (not (folder / "tokenizer.json").exists(), "has no tokenizer.json", "save its tokenizer with transformers"),
        (not template, "has no chat template, so it is no chat model", INSTRUCT),
    ):
        if wrong:
            raise BaseError(f"{name} {what}", fix=fix, where=str(folder))


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError) as error:
        raise BaseError(f"{path.name} is no JSON object: {error}", fix="fetch it again", where=str(path)) from error


def _digests(files: list[Path]) -> list[str]:
    """sha256 of each file, remembered in the cache by path, size and time of change: a second call reads no weights."""
    store = cache_folder() / "digests.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # no memory yet, or a damaged one: it is made anew
        known = json.loads(store.read_text())
    found: dict[str, list[Any]] = {}
    for file in map(Path.resolve, files):
        key = [file.stat().st_size, file.stat().st_mtime_ns]
        entry = known.get(str(file), [])
        found[str(file)] = entry if entry[:2] == key else [*key, digest_file(file)]
    if any(known.get(path) != entry for path, entry in found.items()):
        kept = {path: entry for path, entry in known.items() if Path(path).exists()}
        with contextlib.suppress(FileNotFoundError):  # another process wrote at the same moment
            write_file(store, json.dumps(kept | found, indent=0))
    return [str(entry[2]) for entry in found.values()]
