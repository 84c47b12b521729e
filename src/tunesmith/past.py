"""What earlier versions wrote, in the form of this one: the past stays readable.

A recipe field that was taken out is still read; a word that means something else now keeps its meaning in the runs
that began with it; a record of an earlier version says its proofs as today's do.
"""

from collections.abc import Mapping
from typing import Any

ANY = object()
RETIRED: dict[str, tuple[Any, str, str]] = {
    "trust_remote_code": (
        False,
        "code that comes with a base is never run: it is not fetched, and no digest covers it",
        "use a base whose architecture transformers has itself, and take this line out",
    ),
    "export.prefixes": (
        ANY,
        "whole rows are compared, at export.positions places",
        "",
    ),
}
"""Field of the recipe that is no more -> the value that asks for nothing, why it is no more, and what to do instead."""
WORDS_OF_0_1 = {"exact": "words"}
"""data.dedup: version 0.1 called it exact when the words are the same."""
BEFORE: dict[str, dict[str, Any]] = {"data": {"decontaminate": False}, "train": {"packing_lookahead": 0}}
"""Section and field of the recipe that came later -> what was done before. Its default is something else."""
DEFAULT_CHANGED = {"data": ("dedup", "decontaminate"), "train": ("packing_lookahead",)}
"""Section -> fields that a run keeps as it began, where the recipe leaves them to the default."""


FIELDS_OF_0_1 = {"name", "base", "data", "lora", "train", "checkpoint", "export", "evaluate", "chat", "seed"}


def is_recipe_of_0_1(text: str) -> bool:
    """Whether version 0.1 wrote this recipe.yaml: every field is in it, also the one that is no more; no comment is."""
    lines = text.splitlines()
    named = {line.partition(":")[0] for line in lines if line[:1].isalpha()}
    return named >= FIELDS_OF_0_1 | {"trust_remote_code"} and not any(line.lstrip().startswith("#") for line in lines)


def begun_by(record_versions: Mapping[str, str]) -> str:
    """The minor version, such as "0.1", of the tunesmith that made a record."""
    return ".".join(record_versions.get("tunesmith", "0.1").split(".")[:2])


def record_as_now(raw: dict[str, Any]) -> dict[str, Any]:
    """A record.json of any version, with what it lacks. Raises KeyError or AttributeError for what is no record."""
    settings = dict(raw["settings"])
    if isinstance(exported := settings.get("export"), dict):
        settings["export"] = {name: value for name, value in exported.items() if name != "prefixes"}
    if isinstance(data := settings.get("data"), dict) and "sources" in data:  # else of rows that are made
        settings["data"] = BEFORE["data"] | data
    settings |= _trained_as_now(settings)
    if begun_by(raw["versions"]) != "0.1":
        return raw | {"settings": settings}
    if isinstance(data := settings.get("data"), dict):
        settings["data"] |= {"dedup": WORDS_OF_0_1.get(data["dedup"], data["dedup"])}
    return raw | {"settings": settings, "proofs": raw.get("proofs", _proofs_of_0_1(raw["stage"], raw["counts"]))}


def state_as_now(raw: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state.json of any version, with what its settings lack; what is none of ours stays as it is."""
    decides = raw.get("decides")
    if not isinstance(decides, dict) or not isinstance(settings := decides.get("settings"), dict):
        return raw
    return raw | {"decides": decides | {"settings": settings | _trained_as_now(settings)}}


def _trained_as_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The section `train` of settings that have one."""
    return {"train": BEFORE["train"] | train} if isinstance(train := settings.get("train"), dict) else {}


def _proofs_of_0_1(stage: str, counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Version 0.1 kept its proofs among the counts; one that was skipped was null or missing there."""
    if stage == "model" and "proof" in counts:
        found = counts["proof"] or {}
        return [_proof("merged = adapter, logits", found.get("max_logit_difference"), 1e-3, found.get("positions", 0))]
    if stage == "gguf" and "F16" in counts.get("files", {}):
        against = counts["files"]["F16"].get("against_model", {})
        return [_proof("F16 GGUF = merged, mean KL", against.get("mean_kl"), 1e-4, 0)]
    return []


def _proof(name: str, value: float | None, limit: float, positions: int) -> dict[str, Any]:
    reason = None if value is not None else "version 0.1 found too little memory for it"
    return {"name": name, "value": value, "limit": limit, "positions": positions, "skipped_because": reason}
