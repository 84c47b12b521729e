"""A file that is no UTF-8 text is refused by name: read as lines, a thousand rows would be one bad line."""

import re
from pathlib import Path

from tunesmith.data.opened import opened
from tunesmith.data_files import PACKED
from tunesmith.errors import DataError

HEAD_BYTES = 1 << 16
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte order marks; the longer ones first, as a short one starts a long one."""
WIDE = {  # two letters of ASCII, and all JSON starts with one, the first perhaps without what a line's end took of it
    "UTF-32": re.compile(rb"\0{0,3}[\x01-\x7f]\0{3}[\x01-\x7f]|[\x01-\x7f]\0{3}[\x01-\x7f]\0{3}"),
    "UTF-16": re.compile(rb"\0?[\x01-\x7f]\0[\x01-\x7f](?:\0|$)|\0[\x01-\x7f]\0[\x01-\x7f]"),
}
CONTROL = bytes({*range(0x09), *range(0x0E, 0x20), 0x7F})
CONTROL_SHARE, CONTROL_LEAST = 0.05, 8  # of random bytes 11 % are such, of text in any 8-bit code hardly one
JSON_OPENS = re.compile(rb'(?:\xef\xbb\xbf)?\s*[\[{"]')


def refuse_no_text(path: Path) -> None:
    """Raise DataError if a file is in another encoding, compressed or binary, as far as its start shows."""
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    marked = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    if marked:
        raise _other_encoding(path, marked, "")
    refuse_no_text_here(path, head, "")
    if head.startswith(b"PAR1"):
        raise DataError(f"{path} is not UTF-8 text but Parquet", fix="give it the suffix .parquet")
    control = len(head) - len(head.translate(None, CONTROL))
    if control >= max(CONTROL_LEAST, CONTROL_SHARE * len(head)) and not JSON_OPENS.match(head):
        raise DataError(
            f"{path} is not UTF-8 text but is binary",
            fix="write the rows as JSON, JSONL or CSV in UTF-8, or as Parquet",
        )


def refuse_no_text_here(path: Path, start: bytes, place: str) -> None:
    """Raise DataError if what starts with these bytes is compressed or in a wide encoding; few bad bytes are neither.

    `place` is "" for a file, or says from where on.
    """
    for magic, name in MAGIC.items():
        if start.startswith(magic):
            suffix = next((suffix for suffix, packed in PACKED.items() if packed == name and not place), "")
            fix = "unpack it" + (f", or name it {path.name}{suffix}" if suffix else "")
            raise DataError(f"{path}{place} is not UTF-8 text but is compressed ({name})", fix=fix)
    for name, wide in WIDE.items():
        mark = next((mark for mark, marked in MARKS.items() if marked == name and start.startswith(mark)), b"")
        if wide.match(start, len(mark)):
            raise _other_encoding(path, name, place)


def _other_encoding(path: Path, name: str, place: str) -> DataError:
    return DataError(f"{path}{place} is not UTF-8 text but {name}", fix="save it as UTF-8")
