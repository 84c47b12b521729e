"""Mutated input files through reading, formats and cleaning: no crash, no silent drop.

    python benchmarks/fuzz_data.py [files] [seed]

Each file is one of some forms with bytes flipped, a piece cut out, doubled or moved, lines swapped, junk put in or the
end cut off. What must hold: only an error of tunesmith's that names the file comes out of it, within PATIENCE_S; and
where none does, every row is used or counted. Each row's question starts with a marker of its own; rows of text that
are whole up to it, and whose marker is in no conversation, must be no more than the rows that were dropped; a table
that can be read gives as many rows as it had. Ends with 1 if that failed anywhere.
"""

import gzip
import json
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation, Dropped
from tunesmith.data.read import conversations
from tunesmith.errors import TunesmithError
from tunesmith.recipe import Source

MARKER = re.compile(rb"row-\d{4}-row")
START = re.compile(
    rb'(?:\{\s*"(?:prompt|instruction|messages|conversations)":\s*(?:\[\s*\{\s*"(?:role|from)":\s*"(?:user|human)",'
    rb'\s*"(?:content|value)":\s*)?"|\r\n"(?:\[\{""\w+"": ""\w+"", ""\w+"": "")?)(row-\d{4}-row)'
)
"""How a row starts as JSON, or as a line of CSV."""
TABLES = (".parquet", ".arrow")
PATIENCE_S = 20.0  # a file takes some milliseconds
ROWS = 24
JUNK = (
    b"\0", b"\n", b"\r\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\xff", b"\xef\xbb\xbf", b"null", b"1e999",
    b"\\ud83d", b"\x1b[0m", b"[" * 2000, b"9" * 5000, b"\xed\xa0\x80", b'{"prompt": 1}', b"\x1a", b"\xe2\x80\xa8",
)  # fmt: skip


def rows_of(rng: random.Random) -> list[dict[str, Any]]:
    """Rows of one form, each with its marker in the first question."""
    form = rng.randrange(4)
    made: list[dict[str, Any]] = []
    for number in range(ROWS):
        q, a = f"row-{number:04}-row, what is it?", rng.choice(["Six.", "Ça va \U0001f600", 'One\ntwo, "three"', "{}"])
        turns = [("human", q), ("gpt", a)] + [("human", "More?"), ("gpt", "No.")] * rng.randrange(2)
        made.append(
            [
                {"conversations": [{"from": who, "value": text} for who, text in turns]},
                {
                    "messages": [
                        {"role": {"human": "user"}.get(who, "assistant"), "content": text} for who, text in turns
                    ]
                },
                {"instruction": q, "input": "", "output": a},
                {"prompt": q, "completion": a},
            ][form]
        )
    return made


def _flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]


def _csv(rows: list[dict[str, Any]]) -> bytes:
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row.values()] for row in _flat(rows)]
    return "\r\n".join(map(",".join, [list(rows[0]), *quoted])).encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    found = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), found, compression="none")
    return found.getvalue().to_pybytes()


def _arrow(rows: list[dict[str, Any]]) -> bytes:
    table, found = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(found, table.schema) as writer:
        writer.write_table(table)
    return found.getvalue().to_pybytes()


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows) + b"\n"


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "lines.jsonl": _lines,
    "letters.jsonl": lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(),
    "array.json": lambda rows: json.dumps(rows).encode(),
    "pretty.json": lambda rows: json.dumps(rows, indent=2).encode(),
    "objects.json": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows).encode(),
    "items.jsonl": lambda rows: b"[" + b",\n".join(json.dumps(row).encode() for row in rows) + b"]",
    "table.csv": _csv,
    "table.parquet": _parquet,
    "table.arrow": _arrow,
    "lines.jsonl.gz": lambda rows: gzip.compress(_lines(rows), mtime=0),
}
"""Name -> the bytes of a file of that form."""


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one to three things wrong."""
    for _ in range(rng.randint(1, 3)):
        content = _once(content, rng)
    return content


def _once(content: bytes, rng: random.Random) -> bytes:
    at, to = rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)
    size = rng.choice((1, 1, 2, 7, 50, 400))
    before, piece, rest = content[:at], content[at : at + size], content[at + size :]
    lines = content.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    flipped = bytes(byte ^ (1 << rng.randrange(8)) for byte in piece[:1])
    seldom = rng.choice((b"\n", b'"', b",", b"\\", b"}"))
    return rng.choice(
        (
            before + flipped + content[at + 1 :],
            before + rest,
            before + piece + piece + rest,
            content[:to] + piece + content[to:],
            b"\n".join(lines),
            before + rng.choice(JUNK) + content[at:],
            before + rng.randbytes(len(piece)) + rest,
            before if rng.random() < 0.3 else content,
            content.replace(seldom, rng.choice(JUNK), rng.randint(1, 2)),
        )
    )


def result_of(path: Path, content: bytes) -> tuple[str, str]:
    """What became of a file: read, refused, or what failed; and a word on it."""
    path.write_bytes(content)
    used, counted, began = list[Conversation](), list[Dropped](), time.monotonic()
    try:
        for row in conversations(Source(path=str(path))):
            cleaned = clean(row)[0] if isinstance(row, Conversation) else row
            if isinstance(cleaned, Dropped):
                counted.append(cleaned)
            else:
                used.append(row)  # type: ignore[arg-type]
    except TunesmithError as error:
        return ("refused", "") if path.name in str(error) else ("the error does not name the file", str(error))
    except Exception:
        return "crash", traceback.format_exc()
    finally:
        path.unlink()
    if (took := time.monotonic() - began) > PATIENCE_S:
        return "too slow", f"{took:.0f} s"
    if path.suffix in TABLES:
        lost = ROWS - len(used) - len(counted)
    else:
        started = {found[1] for found in START.finditer(gzip.decompress(content) if path.suffix == ".gz" else content)}
        said = "\n".join(turn.text for row in used for turn in row.turns).encode(errors="replace")
        lost = len(started - set(MARKER.findall(said))) - len(counted)
    if lost > 0:
        return "silent drop", f"{lost} rows; {len(used)} used, {len(counted)} counted: {counted[:3]}"
    return "read", ""


def main(files: int = 10_000, seed: int = 0) -> int:
    """Print what became of the files; 1 if anything failed."""
    rng, began = random.Random(seed), time.monotonic()
    counts: dict[str, Counter[str]] = {name: Counter() for name in FORMS}
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            name = rng.choice(list(FORMS))
            content = mutated(FORMS[name](rows_of(rng)), rng)
            what, word = result_of(Path(folder, name), content)
            counts[name][what] += 1
            if what not in ("read", "refused"):
                failed.append(f"file {number}, {name}: {what}: {word}\n{content[:6000]!r}")
    for name, found in counts.items():
        print(f"{name}: " + ", ".join(f"{count:,} {what}" for what, count in sorted(found.items())))
    print(f"{files:,} files in {time.monotonic() - began:.0f} s, {len(failed)} failed")
    print("\n".join(failed[:20]))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
