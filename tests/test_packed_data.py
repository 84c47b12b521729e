"""Files that are compressed, Arrow and TSV files, and what is too large to be a row."""

import gzip
import itertools
import json
import pickle

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import csv_rows, json_rows, tables
from tunesmith.data.conversation import Conversation, Dropped, Turn
from tunesmith.data.read import conversations, rows_of
from tunesmith.data.unread import Unread
from tunesmith.decides import source_digest
from tunesmith.errors import DataError
from tunesmith.files import digest_file, fingerprint
from tunesmith.recipe import Source

ROWS = [{"prompt": f"Question {n}, é 😀", "completion": f"Answer\t{n}"} for n in range(5)]
EXPECTED = [(Turn("user", row["prompt"]), Turn("assistant", row["completion"])) for row in ROWS]
PACKED = {".gz": gzip.compress, ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)}


def read(path, **source):
    return list(conversations(Source(path=str(path), **source)))


def turns(path, **source):
    return [row.turns for row in read(path, **source)]


def as_arrow(rows, write):
    with pyarrow.BufferOutputStream() as file:
        write(pyarrow.Table.from_pylist(rows), file)
        return file.getvalue().to_pybytes()


def ipc(make, rows):
    def write(table, file):
        with make(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)

    return as_arrow(rows, write)


MAKE = {
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    ".ndjson": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    ".csv": lambda rows: "".join(f'"{a}","{b}"\n' for a, b in [tuple(ROWS[0]), *(r.values() for r in rows)]).encode(),
    ".tsv": lambda rows: "".join(f'{a}\t"{b}"\n' for a, b in [tuple(ROWS[0]), *(r.values() for r in rows)]).encode(),
    ".parquet": lambda rows: as_arrow(rows, pyarrow.parquet.write_table),
    ".arrow": lambda rows: ipc(pyarrow.ipc.new_stream, rows),
    ".ARROW": lambda rows: ipc(pyarrow.ipc.new_file, rows),
    ".feather": lambda rows: as_arrow(rows, pyarrow.feather.write_feather),
}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst", ".GZ"])
@pytest.mark.parametrize("kind", MAKE)
def test_every_kind_is_read_alike_packed_or_not(tmp_path, kind, packed):
    path = tmp_path / f"x{kind}{packed}"
    data = MAKE[kind](ROWS)
    path.write_bytes(PACKED.get(packed.lower(), bytes)(data))
    assert turns(path) == EXPECTED
    name, first = path.name, 2 if kind in (".csv", ".tsv") else 1
    assert [row.where for row in read(path, limit=2)] == [f"{name}:{first}", f"{name}:{first + 1}"]
    assert source_digest(Source(path=str(path))) == fingerprint([digest_file(path)]), "as in every version before"


@pytest.mark.parametrize("packed", PACKED)
def test_a_file_of_several_packed_parts(tmp_path, packed):
    path = tmp_path / f"x.jsonl{packed}"
    path.write_bytes(PACKED[packed](MAKE[".jsonl"](ROWS[:2])) + PACKED[packed](MAKE[".jsonl"](ROWS[2:])))
    assert turns(path) == EXPECTED


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(
    ("kind", "damage"), [*itertools.product((".jsonl", ".csv"), ("cut", "end", "junk", "plain")), (".arrow", "end")]
)
def test_a_packed_file_that_is_cut_or_damaged_says_after_which_line(tmp_path, kind, packed, damage):
    rows, path = [{"prompt": f"{n}", "completion": f"{n * n}" * 50} for n in range(1500)], tmp_path / f"x{kind}{packed}"
    plain = MAKE[kind](rows)
    data = PACKED[packed](plain)
    data = {"cut": data[: len(data) // 2], "end": data[:-3], "junk": data + b"junk", "plain": plain}[damage]
    path.write_bytes(data)
    seen = []
    with pytest.raises(DataError) as error:
        for row in conversations(Source(path=str(path))):  # what was unpacked before the damage is read
            seen.append(row)
    said = str(error.value)
    assert f"{path} is damaged or cut: nothing " in said
    if kind == ".arrow" or damage == "plain":
        assert "nothing in it can be read" in said and f"take {packed} off its name" in said
    else:
        assert f"nothing after line {int(seen[-1].where.rpartition(':')[2]):,} can be read" in said
        assert [row.turns[0].text for row in seen] == [row["prompt"] for row in rows[: len(seen)]]
        assert len(seen) > (1000 if damage in ("end", "junk") else 200)


def test_names_that_do_not_say_what_is_packed(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match=r"x.gz does not say what is compressed in it\n  fix: .*x.jsonl.gz"):
        read(tmp_path / "x.gz")
    (tmp_path / "x.jsonl").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match=r"is compressed \(gzip\)\n  fix: unpack it, or name it x.jsonl.gz"):
        read(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl.xz").write_bytes(b"")
    with pytest.raises(DataError, match=r"x.jsonl.xz is compressed\n  fix: unpack it"):
        read(tmp_path / "x.jsonl.xz")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(MAKE[".jsonl"](ROWS).decode().encode("utf-16")))
    with pytest.raises(DataError, match="is not UTF-8 text but UTF-16"):
        read(tmp_path / "x.jsonl.gz")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="holds no rows"):
        read(tmp_path / "x.jsonl.gz")


@pytest.mark.parametrize("packed", PACKED)
def test_a_damaged_line_of_a_packed_file_is_lost_alone(tmp_path, packed):
    """What was read on to see whether the line goes on is read again; nothing can be sought in a packed file."""
    lines = [json.dumps(row).encode() for row in ROWS]
    path = tmp_path / f"x.jsonl{packed}"
    path.write_bytes(PACKED[packed](b"\n".join([lines[0], b"{", b'{"a": 1,', *lines[1:]])))
    found = read(path)
    assert [row.turns for row in found if isinstance(row, Conversation)] == EXPECTED
    assert [row for row in found if isinstance(row, Dropped)] == [
        Dropped(f"{path.name}:{n}", "not valid JSON", words) for n, words in ((2, "{"), (3, '{"a": 1,'))
    ]


@pytest.mark.parametrize("kind", [".arrow", ".ARROW", ".feather"])
def test_a_damaged_arrow_file_is_an_error_or_its_rows_are_named(tmp_path, kind):
    rows = [row | {"nested": [{"a": f"{number} é"}]} for number, row in enumerate(ROWS * 20)]
    whole, path, ends = MAKE[kind](rows), tmp_path / f"x{kind}", set()
    for part, cut in itertools.product(range(30), (True, False)):
        data, place = bytearray(whole), part * len(whole) // 30
        data[place : place + 20] = b"" if cut else bytes(byte ^ 0xFF for byte in data[place : place + 20])
        path.write_bytes(data)
        try:
            found = read(path)
        except DataError as error:
            assert str(path) in str(error)
            ends.add("error")
        else:
            ends |= {"" if isinstance(row, Conversation) else row.reason for row in found}
    assert {"", "error"} <= ends


@pytest.fixture
def small(monkeypatch):
    """A row has at most 1,000 bytes, an array that is held 100, and a piece has 64."""
    monkeypatch.setattr(json_rows, "ROW_BYTES", 1000)
    monkeypatch.setattr(csv_rows, "ROW_BYTES", 1000)
    monkeypatch.setattr(json_rows, "ARRAY_BYTES", 100)
    monkeypatch.setattr(json_rows, "PIECE_BYTES", 64)


LINES = [json.dumps(row) for row in ROWS]
LONG = {"prompt": "long", "completion": "word " * 500}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("long", [
    json.dumps(LONG), '{"prompt": "' + "word " * 500, '{"messages": [' + '{"role": "user", "content": "q"}, ' * 90,
])  # fmt: skip
def test_a_line_longer_than_any_row_is_one_bad_row(tmp_path, small, packed, long):
    path = tmp_path / f"x.jsonl{packed}"
    path.write_bytes(PACKED.get(packed, bytes)("\n".join([*LINES[:2], long, *LINES[2:]]).encode()))
    found = read(path)
    assert found.pop(2) == Dropped(f"{path.name}:3", "a row of more than 64 MiB", long[:80])
    assert [row.turns for row in found] == EXPECTED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(LONG), "is no list of rows at line 1, column 1: a row of more than 64 MiB. "),
        ("word " * 500, "is not valid JSON at line 1, column 1: Expecting value. 2,500 of 2,500 bytes, from line 1"),
        (LINES[0] + "\n" + "word " * 500, "is not valid JSON at line 2, column 1: Expecting value. 2,500 of"),
        (LINES[0] + "\n{bad}, " + ", ".join(LINES * 9), "is not valid JSON at line 2, column 2"),
        (json.dumps([*ROWS, LONG, *ROWS]), "a row of more than 64 MiB. "),
        (f'{{"version": 1, "data": {json.dumps(ROWS * 9)}}}', "line 1, column 1: a row of more than 64 MiB. "),
    ],
)
def test_a_file_that_is_one_long_line_is_an_error(tmp_path, small, content, said):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read(path)
    assert said in str(error.value) and "cannot be read" in str(error.value)


def test_long_lines_of_many_rows_are_read(tmp_path, small):
    for content in (json.dumps(ROWS * 9), LINES[0] + "\n" + json.dumps(ROWS * 9)[1:-1].replace("}, {", "} {")):
        (tmp_path / "x.jsonl").write_text(content)
        assert len(turns(tmp_path / "x.jsonl")) == len(ROWS) * 9 + (content[0] == "{")


@pytest.mark.parametrize("rest", ["word " * 500, 'q,"' + "a,b\n" * 500])
def test_an_endless_row_of_a_table_is_an_error(tmp_path, small, rest):
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion\nq,a\n" + rest)
    with pytest.raises(DataError, match="holds a row of more than 64 MiB that starts in line 3, and nothing"):
        read(path)
    path.write_text("prompt,completion\n" + "q,a\n" * 1000)
    assert len(read(path)) == 1000


def test_rows_in_a_list_of_an_object(tmp_path, capsys):
    """As d10 of the shared cases: it was an error that told the user to write the list alone to a file."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"version": "1", "data": [*ROWS[:2], 7, *ROWS[2:]], "n": [{"a": 1}]}, indent=2))
    found = read(path)
    assert found.pop(2) == Dropped("x.json:3", "not a JSON object", "7")
    assert [row.turns for row in found] == EXPECTED
    assert 'x.json: the rows are those in its list "data"; not used is version, n' in capsys.readouterr().err
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(DataError, match=r'the columns train, test(?s:.*)in the list "train" or "test"'):
        read(path)  # nobody knows which is meant


def test_rows_in_lists_of_several_objects(tmp_path):
    """The second and later ones were one dropped row each, whatever they held."""
    path = tmp_path / "x.json"
    path.write_text("\n".join(json.dumps({"data": rows}) for rows in (ROWS[:2], ROWS[2:3])) + json.dumps(ROWS[3:]))
    found = read(path)
    assert [row.turns for row in found] == EXPECTED
    assert [row.where for row in found] == [f"x.json:{n}" for n in range(1, 6)]


@pytest.mark.parametrize(("name", "between"), [("x.csv", ";"), ("x.csv", "\t"), ("x.tsv", ",")])
def test_a_table_tells_what_separates_its_cells(tmp_path, capsys, name, between):
    (tmp_path / name).write_text(f'prompt{between}completion\nq{between}"a{between}\nb"\n')
    assert read(tmp_path / name)[0].turns[1].text == f"a{between}\nb"
    assert f"{name}: its cells are separated by " in capsys.readouterr().err


def test_blank_lines_above_a_table(tmp_path):
    """They were taken for a header without columns, so that no row had as many cells."""
    (tmp_path / "x.csv").write_text("\n\r\nprompt,completion\n\nq,a\nq\n")
    assert [row.where for row in read(tmp_path / "x.csv")] == ["x.csv:5", "x.csv:6"]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_long_rows_of_a_table_come_a_few_at_once(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(tables, "BATCH_BYTES", 1000)
    path, sizes = tmp_path / f"x{suffix}", []
    values = tables._values
    monkeypatch.setattr(tables, "_values", lambda table: sizes.append(len(table)) or values(table))
    long = pyarrow.table({"prompt": [f"{n}" * 100 for n in range(60)], "completion": ["a"] * 60})
    if suffix == ".parquet":
        pyarrow.parquet.write_table(long, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, long.schema) as writer:
            writer.write_table(long)
    assert len(read(path)) == sum(sizes) == 60
    assert max(sizes) <= 10


def test_rows_come_apart_from_what_they_mean(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"any": "thing"}\n{"half\n7\n')
    found = list(rows_of(Source(path=str(path))))
    assert found == [
        ("x.jsonl:1", {"any": "thing"}),
        ("x.jsonl:2", "not valid JSON"),
        ("x.jsonl:3", "not a JSON object"),
    ]
    bad = pickle.loads(pickle.dumps(found[1][1]))
    assert isinstance(bad, Unread) and (str(bad), bad.words) == ("not valid JSON", '{"half')
    assert len(list(rows_of(Source(path=str(path), limit=2)))) == 2


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
CELLS = st.lists(st.tuples(st.integers(0, 10**9), TEXTS), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(CELLS, st.none() | st.tuples(st.integers(0, 999), st.sampled_from(['"', ",", "\n", '"x', "\xff", "a,b,c\n"])))
def test_every_line_of_a_table_is_in_a_row_in_a_bad_row_or_in_what_is_named(tmp_path_factory, cells, damage):
    """The ledger of CSV: lines of rows, lines of bad rows and lines from the named one on are all lines of the file."""
    path = tmp_path_factory.mktemp("ledger") / "x.csv"
    text = "n,text\n" + "".join(f'{n},"{text.replace(chr(34), chr(34) * 2)}"\n' for n, text in cells)
    if damage:
        place = 7 + damage[0] % (len(text) - 6)
        text = text[:place] + damage[1] + text[place:]
    path.write_text(text)
    ends, named = [1], None
    try:
        for line, row in csv_rows.csv_rows(path):
            lines = text.split("\n")[ends[-1] : line]
            assert isinstance(row, dict) or row == csv_rows.BAD_CSV
            if isinstance(row, dict) and not damage:
                assert (int(row["n"]), row["text"]) == cells[len(ends) - 1]
            assert any(part for part in lines), "a row is made of lines"
            ends.append(line)
    except DataError as error:
        named = int(error.where.rpartition("line ")[2])
        assert ends[-1] < named <= text.count("\n") + 1
    left = text.split("\n")[ends[-1] : named - 1 if named else None]
    assert named or not any(left), "what is neither a row nor named"
