"""Where a base comes from: whatever the recipe names becomes a checked Hugging Face folder with a digest."""

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import BaseError
from tunesmith.runs import commit_folder, digest_file, fingerprint, write_file
from tunesmith.weights import builtin, from_gguf, hub
from tunesmith.weights.tensorfile import weight_files

HUB_ID = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")
GGUF_FORM = 1  # in the name of an unpacked GGUF; raise it when from_gguf writes something else
INSTRUCT = "use an instruct or chat model, such as builtin:smollm2-135m-instruct"


@dataclass(frozen=True)
class LocatedBase:
    """A base model on this machine. `digest` is over the content of weights, config, tokenizer and template."""

    name: str
    folder: Path
    digest: str
    revision: str | None
    """The commit, for a base from the Hub."""
    licence: str | None


def cache_folder() -> Path:
    """Where fetched and unpacked bases are kept: $TUNESMITH_CACHE, else ~/.cache/tunesmith."""
    return Path(os.environ.get("TUNESMITH_CACHE") or "~/.cache/tunesmith").expanduser()


def locate_base(base: str) -> LocatedBase:
    """Find a base named as Hub id[@revision], folder, GGUF file or builtin:NAME; fetch and unpack it if needed.

    Raises BaseError, with the fix, if it cannot be found or is no causal language model with a chat template.
    """
    path = Path(base).expanduser()
    if base.startswith(builtin.PREFIX):
        return _located(base, _unpacked(builtin.fetch(base, cache_folder() / "builtin")))
    if path.is_dir():
        return _located(path.resolve().name, path.resolve())
    if path.is_file():
        return _located(path.stem, _unpacked(path.resolve()))
    match = HUB_ID.fullmatch(base)
    if base.endswith(".gguf") or base.startswith((".", "/", "~")) or not match:
        raise BaseError(
            f"there is no base {base}",
            fix="give a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, a model folder, a GGUF file or "
            + builtin.PREFIX + builtin.NAMES[0],
        )  # fmt: skip
    repo, revision = match.groups()
    check_config(hub.fetch(repo, revision, weights=False), repo)  # before gigabytes are fetched in vain
    folder = hub.fetch(repo, revision, weights=True)
    return _located(repo, folder, revision=folder.name)


def _unpacked(gguf_file: Path) -> Path:
    folder = cache_folder() / "gguf" / f"{digests([gguf_file])[0][:16]}-{GGUF_FORM}"
    if not folder.exists():
        commit_folder(folder, lambda draft: from_gguf.convert(gguf_file, draft))
    return folder


def _located(name: str, folder: Path, *, revision: str | None = None) -> LocatedBase:
    check_config(folder, name)
    weights = weight_files(folder)
    if not weights:
        pickled = any(folder.glob("*.bin"))
        raise BaseError(
            f"{name} has no safetensors weights"
            + (", only pickle files, which can run code and are not read" if pickled else ""),
            fix="where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
            where=str(folder),
        )
    others = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = [*weights, *(folder / other for other in others if (folder / other).exists())]
    digest = fingerprint({file.name: found for file, found in zip(files, digests(files), strict=True)})
    return LocatedBase(name, folder, digest, revision, _licence(folder))


def check_config(folder: Path, name: str) -> None:
    """Raise BaseError unless the folder is, by its small files, a causal language model that can chat."""

    def wrong(what: str, fix: str) -> BaseError:
        return BaseError(f"{name} {what}", fix=fix, where=str(folder))

    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise wrong("is an adapter, not a model", "name its base model; or merge it first")
        raise wrong("has no config.json, so it is no model folder", "give the folder that holds config.json")
    config = _json(folder / "config.json")
    kind = ", ".join(config.get("architectures") or ["a model of no stated architecture"])
    if not kind.endswith("ForCausalLM"):
        raise wrong(f"is {kind}, not a causal language model (...ForCausalLM)", INSTRUCT)
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise wrong(f"is stored quantised ({method})", "name the model it was made from, in F32, F16 or BF16")
    if not (folder / "tokenizer.json").exists():
        raise wrong(
            "has no tokenizer.json", "save its tokenizer again: AutoTokenizer.from_pretrained(X).save_pretrained(X)"
        )
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    if not (folder / "chat_template.jinja").exists() and not settings.get("chat_template"):
        raise wrong("has no chat template, so it is no chat model", INSTRUCT)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BaseError(f"{path.name} is no JSON object: {error}", fix="fetch it again", where=str(path)) from error


def _licence(folder: Path) -> str | None:
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    found = re.search(r"\A---\n(?:.*\n)*?license: *([\w.-]+)", text)
    return found.group(1) if found and found.group(1) != "unknown" else None


def digests(files: list[Path]) -> list[str]:
    """sha256 of each file, remembered in the cache by path, size and time of change: a second call reads no weights."""
    store = cache_folder() / "digests.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged memory is made anew
        known = json.loads(store.read_text())
    found = {}
    for file in map(Path.resolve, files):
        status = file.stat()
        key = [status.st_size, status.st_mtime_ns]
        entry = known.get(str(file), [])
        found[str(file)] = entry if entry[:2] == key else [*key, digest_file(file)]
    if any(known.get(path) != entry for path, entry in found.items()):
        kept = {path: entry for path, entry in known.items() if Path(path).exists()}
        with contextlib.suppress(FileNotFoundError):  # another process wrote at the same moment
            write_file(store, json.dumps(kept | found, indent=0))
    return [str(entry[2]) for entry in found.values()]
