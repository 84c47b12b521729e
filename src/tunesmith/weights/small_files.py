"""The small files of a model folder, read so that whatever is wrong with them is a BaseError that names it."""

import json
from pathlib import Path
from typing import Any

from tunesmith.boundary import why_unread
from tunesmith.errors import BaseError

CONFIG, TOKENIZER_CONFIG, TEMPLATE = "config.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
CARD = "README.md"
LICENCE_FILES = ("LICEN[CS]E*", "COPYING*", "NOTICE*", "*USE_POLICY*")
"""What a base's licence may ask to be passed on with what is made from it."""
OBJECTS = (CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")
"""JSON objects beside tokenizer.json that transformers or a later stage reads."""
MORE_TEMPLATES = "additional_chat_templates"  # where transformers 5 saves named ones beside the default


def read_text(path: Path) -> str:
    """The text of a file. Raises BaseError if it cannot be read, or is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BaseError(
            f"{path.name} cannot be read: {why_unread(error)}", fix="fetch it again", where=str(path)
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises BaseError for anything else."""
    try:
        found = json.loads(read_text(path)) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        raise BaseError(f"{path.name} is no JSON object: {error}", fix="fetch it again", where=str(path)) from error
    if not isinstance(found, dict):
        what = f"{path.name} is no JSON object but a {type(found).__name__}"
        raise BaseError(what, fix="fetch it again", where=str(path))
    return found


def architectures(config: dict[str, Any]) -> list[str]:
    """What a config.json says the model is; a list without a word in it where it says nothing that can be read."""
    stated = config.get("architectures")
    named = [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []
    return named or ["of no stated architecture"]


def chat_template(folder: Path) -> str | None:
    """The chat template of a model folder, of several the one named default; None if it has none.

    Looked for where transformers looks: chat_template.jinja, tokenizer_config.json, additional_chat_templates/.
    Raises BaseError, with their names, if there are several and none is the default.
    """
    found = read_json(folder / TOKENIZER_CONFIG).get("chat_template")
    if (folder / TEMPLATE).exists():
        return read_text(folder / TEMPLATE)
    if isinstance(found, str):
        return found or None
    if isinstance(found, list):
        entries = [entry for entry in found if isinstance(entry, dict)]
        found = {str(entry.get("name")): entry.get("template") for entry in entries}
    named = found if isinstance(found, dict) else {}
    named |= {path.stem: read_text(path) for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    if not named:
        return None
    if not isinstance(named.get("default"), str):
        raise BaseError(
            f"the base has {len(named)} chat templates, {', '.join(named)}, and none is named default",
            fix=f"copy the model to a folder of your own, with the one you want as {TEMPLATE} in it, and name that",
            where=str(folder),
        )
    return str(named["default"])
