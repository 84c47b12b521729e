"""Settings without what is at its default: what a fingerprint counts, and what a short recipe shows."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from tunesmith.recipe import Recipe


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from sections_in(inner)


def without_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by section, as JSON holds them, without the fields that are at their default: what a fingerprint counts.

    So a field that is added later, at its default, is no difference to a record that knows nothing of it.
    """
    return {name: _bare(value, Recipe.model_fields.get(name)) for name, value in settings.items()}


def _bare(value: Any, field: Any) -> Any:
    section = next(sections_in(field.annotation), None) if field else None
    if section is None:
        return value
    if isinstance(value, list | tuple):
        return [_bare(item, field) for item in value]
    if not isinstance(value, Mapping):
        return value
    inner = {name: _bare(held, section.model_fields.get(name)) for name, held in value.items()}
    return {name: held for name, held in inner.items() if held != _default(section.model_fields.get(name))}


def _default(field: Any) -> Any:
    """The default of a field as JSON holds it, bare; a section that is all defaults is empty. No default: undefined."""
    value = field.default if field else ...
    if isinstance(value, BaseModel):
        return _bare(value.model_dump(mode="json"), field)
    return list(value) if isinstance(value, tuple) else value
