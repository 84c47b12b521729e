"""Where a base comes from: whatever the recipe names becomes a checked Hugging Face folder with a digest."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import BaseError
from tunesmith.files import fingerprint, names_like
from tunesmith.weights import builtin, hub
from tunesmith.weights.cache import cache_folder, digests, made_once
from tunesmith.weights.small_files import (
    CONFIG,
    GENERATION_CONFIG,
    OBJECTS,
    TEMPLATE,
    TOKENIZER_CONFIG,
    architectures,
    chat_template,
    read_json,
)
from tunesmith.weights.tensorfile import INDEX, WEIGHTS, weight_files

HUB_ID = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
"""Always with an owner: the few models of the Hub that once had none are no chat models."""
GGUF_FORM = 2  # in the name of an unpacked GGUF; raise it when gguf/read.py writes something else
SMALL_FILES = (CONFIG, GENERATION_CONFIG, "tokenizer.json", TOKENIZER_CONFIG, TEMPLATE)
Unpack = Callable[[Path, Path], None]
Check = Callable[[Path], None]
UNNAMED = "quantization_config names no method"
INSTRUCT = "use an instruct or chat model, such as builtin:smollm2-135m-instruct"


@dataclass(frozen=True)
class LocatedBase:
    """A base on this machine. `digest` is over weights, config, tokenizer and template; `revision` a Hub commit."""

    name: str
    folder: Path
    digest: str
    revision: str | None
    licence: str | None


def locate_base(base: str, unpack: Unpack, check: Check | None = None) -> LocatedBase:
    """Find a base named as Hub id[@revision], folder, GGUF file or builtin:NAME; fetch and unpack it if needed.

    `unpack` makes a Hugging Face folder of a GGUF file: gguf/read.py, which this layer does not know. `check` raises
    what else there is against a folder; it is asked before weights are fetched.

    Raises BaseError, with the fix, if it cannot be found or is no causal language model with a chat template.
    """
    path = Path(os.path.expanduser(base))
    if base.startswith(builtin.SCHEME):
        return _located(base, _unpacked(builtin.fetch_builtin(base, cache_folder() / "builtin"), unpack))
    if os.path.isdir(path):  # False also for a name that is too long
        return _located(path.resolve().name, path.resolve(), check=check)
    if os.path.isfile(path):
        return _located(path.stem, _unpacked(path.resolve(), unpack))
    refuse_no_base(base)
    match = HUB_ID.fullmatch(base)
    assert match is not None
    repo, revision = match.groups()
    small = hub.fetch_snapshot(repo, revision, weights=False)
    _check_small_files(small, repo, check)  # before gigabytes are fetched in vain
    folder = hub.fetch_snapshot(repo, small.name, weights=True)  # the same commit, also if one came in between
    return _located(repo, folder, revision=folder.name)


def refuse_no_base(base: str, named: bool = False) -> None:
    """Raise BaseError for a name that is not built in, not here, and can be no id on the Hub, which is not asked.

    `named`: by the user, for `init`, and by no recipe yet.
    """
    if base.startswith(builtin.SCHEME):
        builtin.refuse_unknown(base)
    elif is_local(base) and not os.path.exists(os.path.expanduser(base)):
        like = names_like(os.path.expanduser(base))
        meant = f"; did you mean {' or '.join(like)}?" if like else ""
        place = "" if os.path.isabs(base) else "here" if named else f"beside the recipe or in {os.getcwd()}"
        beside = f": no folder or file of this name is {place}" if place else ""
        no_id = "" if "/" in base or base.endswith(".gguf") else ", and an id on the Hub would be owner/name"
        forms = "a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, a model folder, a GGUF file"
        raise BaseError(
            f"there is no base {base}{beside}{no_id}{meant}",
            fix=f"{'' if named else 'put it back, or '}give {forms} or {builtin.SCHEME}{builtin.NAME}",
        )


def is_local(base: str) -> bool:
    """Whether a base is named that the Hub is not asked for: a folder, a file, one built in, or what is no id."""
    path = os.path.expanduser(base)
    return os.path.exists(path) or base.endswith(".gguf") or not HUB_ID.fullmatch(base)


def small_files(base: str, unpack: Unpack) -> Path:
    """The folder with a base's configuration, tokenizer and template; of a base on the Hub no weights are fetched.

    Raises BaseError as `locate_base`.
    """
    if is_local(base):
        return locate_base(base, unpack).folder
    match = HUB_ID.fullmatch(base)
    assert match is not None
    folder = hub.fetch_snapshot(*match.groups(), weights=False)
    _check_small_files(folder, match[1], None)
    return folder


def at_hand(base: str, folder: Path, unpack: Unpack) -> LocatedBase | None:
    """The whole base, whose small files are in `folder`; None where its weights are not on this machine."""
    if is_local(base):
        return locate_base(base, unpack)
    if not weight_files(folder):
        return None
    return locate_base(f"{base.partition('@')[0]}@{folder.name}", unpack)  # cached, so that the Hub is not asked


def _unpacked(gguf_file: Path, unpack: Unpack) -> Path:
    folder = cache_folder() / "gguf" / f"{digests([gguf_file])[0][:16]}-{GGUF_FORM}"
    return made_once(folder, lambda draft: unpack(gguf_file, draft))


def _located(name: str, folder: Path, *, revision: str | None = None, check: Check | None = None) -> LocatedBase:
    _check_small_files(folder, name, check)
    weights = weight_files(folder)
    if not weights:
        pickled = ", only pickle files, which can run code and are not read" if any(folder.glob("*.bin")) else ""
        fix = "where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        if revision and not pickled:
            fix = "if fetching it was cut off, type the same again with the network on; otherwise use another base"
        raise BaseError(f"{name} has no safetensors weights{pickled}", fix=fix, where=str(folder))
    if not any((folder / file).exists() for file in (WEIGHTS, INDEX)):
        parts = ", ".join(file.name for file in weights[:3])
        what = f"{name} has neither {WEIGHTS} nor {INDEX}, which says what is in {parts}"
        fix = f"fetch the model again, with its {INDEX}; weights in one file are named {WEIGHTS}"
        raise BaseError(what, fix=fix, where=str(folder))
    files = weights + [folder / small for small in SMALL_FILES if (folder / small).exists()]
    digest = fingerprint({file.name: found for file, found in zip(files, digests(files), strict=True)})
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    licence = re.match(r"---\n(?:(?!---).*\n)*?license: *([\w.-]+)", text)
    return LocatedBase(name, folder, digest, revision, licence[1] if licence else None)


def _check_small_files(folder: Path, name: str, check: Check | None) -> None:
    """Raise BaseError unless the folder is, by its small files, a causal language model that can chat."""
    if not (folder / CONFIG).exists():
        fix = "give the folder of a whole model; an adapter must be merged into its base first"
        raise BaseError(f"{name} has no config.json, so it is no model folder", fix=fix, where=str(folder))
    config, *_ = [read_json(folder / file) for file in OBJECTS]  # each now: a later stage reads it, hours later
    kind = ", ".join(architectures(config))
    tokenizer = (folder / "tokenizer.json").exists()
    for wrong, what, fix in (
        (not kind.endswith("ForCausalLM"), f"is {kind}, and what is taken are classes named ...ForCausalLM", INSTRUCT),
        (not tokenizer, "has no tokenizer.json", "save its tokenizer with transformers"),
        (not chat_template(folder), "has no chat template, so it is no chat model", INSTRUCT),
    ):
        if wrong:
            raise BaseError(f"{name} {what}", fix=fix, where=str(folder))
    if check:
        check(folder)
    if method := _quantised(config.get("quantization_config")):  # last: nobody is sent to look for another form in vain
        fix = "name the model it was made from, in F32, F16 or BF16"
        if method == UNNAMED:
            fix += f"; or delete quantization_config from {CONFIG} where its weights are such numbers"
        raise BaseError(f"{name} is stored quantised ({method})", fix=fix, where=str(folder))


def _quantised(stored: Any) -> str:
    """The name of the way a base is stored quantised; empty if it is not."""
    if stored is None:
        return ""
    settings = stored if isinstance(stored, dict) else {"quant_method": stored}
    loads = [name for name, value in settings.items() if name.startswith("load_in_") and value]
    return str(settings.get("quant_method") or ", ".join(loads) or UNNAMED)
