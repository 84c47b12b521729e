"""An open GGUF file that is to become a base: its metadata and tensors, each looked at when it is asked for."""

from pathlib import Path
from typing import Any, TypeVar

import gguf

from tunesmith.errors import BaseError
from tunesmith.gguf.metadata import read_singles

Value = TypeVar("Value", bound=int | float | str | list)  # type: ignore[type-arg]


class Source:
    """An open GGUF file: metadata by key, tensors by name."""

    def __init__(self, path: Path) -> None:
        self.path, again = path, "fetch it again"
        read_singles(path, again)  # first: the package's reader believes every count, and takes memory for it
        try:
            reader = gguf.GGUFReader(path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # numpy's, struct's and its own, by what is damaged
            what = f"{path.name} is no whole GGUF file: {error}"
            raise BaseError(what, fix=again, where=str(path)) from error
        due = reader.data_offset
        for tensor in reader.tensors:  # as llama.cpp asks for it: else two could have the same numbers
            if tensor.data_offset != due:
                what = (
                    f"{path.name} is no whole GGUF file: {tensor.name} begins at byte {tensor.data_offset}, not {due}"
                )
                raise BaseError(what, fix=again, where=str(path))
            due += -(-int(tensor.n_bytes) // reader.alignment) * reader.alignment

    def get(self, key: str, kind: type[Value], *default: Any) -> Value:
        """The value of a key, which is of this kind; the default where there is no such key."""
        if key not in self.fields and default:
            return default[0]
        value = self.fields.get(key)
        if value is None:
            raise self.refused(f"its metadata lacks {key}")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.refused(f"its {key} is {str(value)[:40]!r}, no {kind.__name__}")
        return value

    def id_of(self, name: str, *default: Any) -> int:
        """The id of a special token, which is one of the tokens."""
        key = f"tokenizer.ggml.{name}_token_id"
        found = self.get(key, int, *default)
        if key in self.fields and not 0 <= found < len(self.get("tokenizer.ggml.tokens", list)):
            raise self.refused(f"its {key} is {found}, which is none of its tokens")
        return found

    def refused(self, what: str) -> BaseError:
        """What to raise for a file that cannot be read as a base."""
        fix = "name the Hugging Face model this file was made from, by its Hub id or as a folder"
        return BaseError(f"{self.path.name} cannot be a base: {what}", fix=fix, where=str(self.path))
