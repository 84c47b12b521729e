"""docs/recipe.md: every field of the recipe with type, default, bounds and its sentence, from the schema alone."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.recipe import Recipe

BOUNDS = {
    "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below",
    "minItems": "items, at least", "minLength": "letters, at least", "pattern": "of the form",
}  # fmt: skip
HEAD = """# The recipe, field by field

Made from the recipe's schema by `tunesmith check --fields`; `tunesmith check RECIPE --full` prints every value of one.
"""


def fields_text() -> str:
    """The page, in Markdown."""
    schema = Recipe.model_json_schema()
    return HEAD + "".join(_section("", schema, schema["$defs"]))


def _section(name: str, section: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    """The table of a section, then those of the sections in it."""
    title, says = (f"`{name}`", _line(section.get("description", ""))) if name else ("At the top", "")
    yield f"\n## {title}\n\n{says}{chr(10) * 2 if says else ''}| field | type | default | says |\n|---|---|---|---|\n"
    inner = []
    for field, about in section["properties"].items():
        default = f"`{json.dumps(about['default'])}`" if "default" in about and not _refers(about) else ""
        if field in section.get("required", ()):
            default = "required"
        cells = (_type(about, known), default, _line(about.get("description", "")))
        yield f"| `{field}` | {' | '.join(map(_cell, cells))} |\n"
        item = ".0" if "items" in about else ""
        inner += [(f"{name}.{field}{item}".lstrip("."), known[ref]) for ref in _refs(about)]
    for place, each in inner:
        if "properties" in each:
            yield from _section(place, each, known)


def _refs(about: Mapping[str, Any]) -> list[str]:
    """The sections that a field is, may be, or lists."""
    found = [about["$ref"].rpartition("/")[2]] if "$ref" in about else []
    items = [about["items"]] if "items" in about else []
    for part in [*about.get("anyOf", ()), *about.get("oneOf", ()), *about.get("allOf", ()), *items]:
        found += _refs(part)
    return found


def _refers(about: Mapping[str, Any]) -> bool:
    return bool(_refs(about)) and isinstance(about.get("default"), dict)


def _type(about: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The type in words, with its bounds."""
    choices = about.get("anyOf") or about.get("oneOf")
    if choices:
        return " or ".join(_type(choice, known) for choice in choices)
    if "$ref" in about:
        return "section"
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "const" in about:
        return f"`{about['const']}`"
    kind = {"null": "`null`", "integer": "whole number", "string": "text"}.get(
        about.get("type", ""), about.get("type", "any")
    )
    if about.get("type") == "array":
        kind = f"list of {_type(about.get('items', {}), known)}"
    bounds = [f"{words} {about[key]}" for key, words in BOUNDS.items() if key in about]
    return f"{kind} ({', '.join(bounds)})" if bounds else str(kind)


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
