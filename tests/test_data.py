"""Reading: files of every kind, with what is wrong in them; and cleaning."""

import bz2
import csv
import errno
import gzip
import io
import itertools
import json
import lzma
import random
import re
import zipfile
import zlib

import pyarrow
import pyarrow.parquet
import pytest

from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation, Dropped, Turn
from tunesmith.data.read import conversations
from tunesmith.errors import DataError, ResourceError
from tunesmith.recipe import Source

ROWS = [{"prompt": f"Question {n}, é 😀", "completion": f"Answer\n{n}"} for n in range(5)]
EXPECTED = [(Turn("user", row["prompt"]), Turn("assistant", row["completion"])) for row in ROWS]


def read(path, **source):
    return list(conversations(Source(path=str(path), **source)))


def write(path, rows=ROWS):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("suffix", "wheres"),
    [
        (".json", [1, 2, 3, 4, 5]),
        (".jsonl", [1, 2, 3, 4, 5]),
        (".parquet", [1, 2, 3, 4, 5]),
        (".csv", [3, 5, 7, 9, 11]),
    ],
)
def test_every_kind_of_file_holds_the_same(tmp_path, suffix, wheres):
    found = read(write(tmp_path / f"x{suffix}"))
    assert [row.turns for row in found] == EXPECTED
    assert [row.where for row in found] == [f"x{suffix}:{n}" for n in wheres]  # CSV: the line where the row ends


def test_a_glob_reads_its_files_in_order_and_limit_cuts(tmp_path):
    for name, rows in (("b.jsonl", ROWS[2:]), ("a.jsonl", ROWS[:2])):
        write(tmp_path / name, rows)
    assert [row.turns for row in read(tmp_path / "*.jsonl")] == EXPECTED
    assert [row.where for row in read(tmp_path / "*.jsonl", limit=3)] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [row.turns for row in read(path)] == EXPECTED


def test_a_json_file_with_one_object_a_line(tmp_path):
    path = write(tmp_path / "x.jsonl").rename(tmp_path / "x.json")
    assert [row.turns for row in read(path)] == EXPECTED


def test_a_broken_line_is_named_and_the_rest_is_used(tmp_path):
    lines = [json.dumps(row).encode() for row in ROWS]
    bad = [lines[0][:-9], b"", b"[1]", b"\xff" + lines[1], b'{"prompt": "only"}', b"[" * 100_000]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join([lines[0], *bad, *lines[1:]]))
    found = read(path)
    assert [row.turns for row in found if isinstance(row, Conversation)] == EXPECTED
    assert [row for row in found if isinstance(row, Dropped)] == [
        Dropped("x.jsonl:2", "not valid JSON", bad[0].decode()),
        Dropped("x.jsonl:4", "not a JSON object", "1"),
        Dropped("x.jsonl:5", "not valid UTF-8", "\ufffd" + lines[1].decode()[:79]),
        Dropped("x.jsonl:6", "nothing in column completion", '{"prompt": "only"}'),
        Dropped("x.jsonl:7", "not valid JSON", "[" * 80),
    ]


def test_a_cut_json_array_is_an_error(tmp_path):
    path = write(tmp_path / "x.json")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DataError, match=r"line 19, column 13.*41 of 372 bytes, from line 18 on, cannot be read"):
        read(path)
    assert [row.turns for row in read(path, limit=4)] == EXPECTED[:4]


def test_rows_of_a_csv_that_are_broken(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"prompt,completion\na,b\nonly\na,b,c\n\xff,b\nlong," + b"x" * 200_000 + b"\n")
    found = read(path)
    assert [row.reason if isinstance(row, Dropped) else len(row.turns[1].text) for row in found] == [
        1, "not as many cells as the header", "not as many cells as the header", 1, 200_000,
    ]  # fmt: skip
    assert clean(found[3])[0] == Dropped("x.csv:5", "text that is not valid Unicode", "\\udcff")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a,b\n1,one\n2,"two is 2\n3,three\n4,four\n', 3),
        ('a,b\n1,one\n2,"two is 2\n3,"three"\n', 3),
        ('a,b\n1,"said ""so""\nand, so"\n2,"three\nlines\nlong",\r\n"3,"x"\n', 7),
        ('a,b\n1,"x" y\n', 2),
        ('a,b\n"1\n2",x\n\n"3\n4","5\n', 6),
        ('a,"b\n1,2\n', 1),
    ],
)
def test_an_open_quote_in_a_csv_is_an_error_with_its_line(tmp_path, text, line):
    """It would make one answer of all the rows below it."""
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    with pytest.raises(
        DataError, match=rf"quote that opens a cell in line {line} is not closed.*\n.*fix: close it"
    ) as said:
        read(path, columns={"prompt": "a", "completion": "b"})
    unread, first = re.search(r"and ([\d,]+) bytes, from line (\d+) on, cannot be read", str(said.value)).groups()
    start = sum(len(each) for each in re.findall(r"[^\r\n]*(?:\r\n|\r|\n)", text)[: int(first) - 1])
    assert int(unread) == len(text) - start and int(first) <= line


@pytest.mark.parametrize("suffix", [".JSON", ".Jsonl", ".PARQUET", ".CSV"])
def test_a_suffix_in_capitals(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix.lower()}").rename(tmp_path / f"y{suffix}")
    assert [row.turns for row in read(path)] == EXPECTED
    with pytest.raises(DataError, match="there is no file"):
        read(f"none{suffix}")


@pytest.mark.parametrize(
    ("make", "path", "message"),
    [
        (None, "missing.jsonl", "there is no file .*missing.jsonl"),
        (None, "*.jsonl", "there is no file"),
        (lambda p: p.mkdir(), "folder", "folder is a folder that holds no files\n.*.jsonl"),
        (lambda p: p.write_text(""), "empty.jsonl", "holds no rows"),
        (lambda p: p.write_text(" \n"), "blank.json", "holds no rows"),
        (lambda p: p.write_text("[]"), "none.json", "holds no rows"),
        (lambda p: p.write_text("a,b\n"), "head.csv", "holds no rows"),
        (
            lambda p: p.write_text("x"),
            "notes.doc",
            "notes.doc is of no known kind\n.*.json, .jsonl, .ndjson, .csv, .tsv, .parquet",
        ),
        (lambda p: p.write_text("x"), "bad.parquet", "is not a whole Parquet file"),
        (lambda p: p.write_text('{"a": 1}'), "columns.jsonl", "has the columns a"),
    ],
)
def test_a_source_that_cannot_be_used(tmp_path, make, path, message):
    if make:
        make(tmp_path / path)
    with pytest.raises(DataError, match=message):
        read(tmp_path / path)


def zipped(data):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.jsonl", data)
        return file.getvalue()


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
@pytest.mark.parametrize(
    ("make", "what", "fix"),
    [
        *((lambda data, code=code: data.decode().encode(code), code[:6].upper(), "save it as UTF-8")
          for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")),
        *((lambda data, code=code: "\ufeff".encode(code) + data.decode().encode(code), code[:6].upper(), "save it as")
          for code in ("utf-16-be", "utf-32-be")),
        (gzip.compress, r"is compressed \(gzip\)", "unpack it"),
        (bz2.compress, r"is compressed \(bzip2\)", "unpack it"),
        (lzma.compress, r"is compressed \(xz\)", "unpack it"),
        (zipped, r"is compressed \(zip\)", "unpack it"),
        (zlib.compress, "is binary", "write the rows as JSON"),
        (lambda data: random.Random(0).randbytes(300), "is binary", "write the rows as JSON"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_utf8_text_is_named(tmp_path, suffix, make, what, fix):
    """A thousand rows were `1 not valid UTF-8`."""
    path = write(tmp_path / f"x{suffix}", ROWS * 200)
    path.write_bytes(make(path.read_bytes()))
    with pytest.raises(DataError, match=rf"x{suffix} is not UTF-8 text but {what}\n  fix: {fix}"):
        read(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_parquet_by_another_name(tmp_path, suffix):
    path = write(tmp_path / "x.parquet").rename(tmp_path / f"x{suffix}")
    with pytest.raises(DataError, match=r"is not UTF-8 text but Parquet\n  fix: give it the suffix .parquet"):
        read(path)


@pytest.mark.parametrize("tail", [lambda data: data.decode().encode("utf-16"), gzip.compress])
def test_what_is_no_text_after_rows_is_named_with_its_line(tmp_path, tail):
    """As PowerShell's >> or cat made it."""
    path = write(tmp_path / "x.jsonl")
    more = json.dumps(ROWS * 200, ensure_ascii=False).encode()
    path.write_bytes(path.read_bytes() + b"\n" + tail(more))
    with pytest.raises(DataError, match=r"x.jsonl from line 6 on is not UTF-8 text but (UTF-16|is compressed)"):
        read(path)


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"\0" * 4096, b'{"prompt": "\0\0", "completion": "a"}', b"\x80\x81"])
def test_a_few_bad_bytes_are_no_other_encoding(tmp_path, bad):
    lines = write(tmp_path / "x.jsonl").read_bytes().split(b"\n")
    (tmp_path / "x.jsonl").write_bytes(b"\n".join([lines[0], bad, *lines[1:]]))
    found = read(tmp_path / "x.jsonl")
    assert [row.turns for row in found if isinstance(row, Conversation)] == EXPECTED
    assert [row.where for row in found if isinstance(row, Dropped)] == ["x.jsonl:2"]


def test_other_8_bit_text_is_not_called_binary(tmp_path):
    for code, text in (("cp1251", "Вопрос и ответ"), ("shift_jis", "質問と答え"), ("gb18030", "问题和答案")):
        (tmp_path / "x.csv").write_bytes(b"prompt,completion\n" + f"{text},{text}\n".encode(code) * 100)
        assert [clean(row)[0].reason for row in read(tmp_path / "x.csv")] == ["text that is not valid Unicode"] * 100


def test_two_columns_of_one_name(tmp_path):
    """The last one was taken."""
    path = tmp_path / "x.csv"
    path.write_text("prompt,prompt,completion\nq,z,a\n")
    with pytest.raises(DataError, match=r"x.csv has the column prompt twice\n  fix: rename one or remove it"):
        read(path)
    path.write_text("prompt,completion,,\nq,a,,\n")
    assert [row.turns for row in read(path)] == [(Turn("user", "q"), Turn("assistant", "a"))]
    table = pyarrow.Table.from_arrays([pyarrow.array([text]) for text in "qza"], ["prompt", "prompt", "completion"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet has the column prompt twice"):
        read(tmp_path / "x.parquet")
    path.write_text('messages\n"[{""role"": ""user"", ""role"": ""assistant"", ""content"": ""a""}]"\n')
    assert [row.reason for row in read(path)] == ["a key twice: role"]


def damaged(path, part, cut=False):
    """The file with bytes turned over, or cut out, in some part of it."""
    data = bytearray(path.read_bytes())
    place = int(part * len(data))
    data[place : place + 20] = b"" if cut else bytes(byte ^ 0xFF for byte in data[place : place + 20])
    path.write_bytes(data)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_damaged_parquet_file_is_an_error_or_its_rows_are_named(tmp_path, compression):
    rows = [row | {"nested": [{"a": f"{number} é"}]} for number, row in enumerate(ROWS * 40)]
    path, said = tmp_path / "x.parquet", set()
    for part, cut in itertools.product(range(100), (True, False)):
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), path, compression=compression, use_dictionary=False, row_group_size=50
        )
        damaged(path, part / 100, cut)
        try:
            said |= {row.reason if isinstance(row, Dropped) else "" for row in read(path)}
        except DataError as error:
            assert str(path) in error.what
            said.add("from row" if "from row 1 on" in error.what else "not a whole file")
    assert {"from row", "not a whole file"} <= said


TIMES = pyarrow.array([2**62, 1, 2], pyarrow.timestamp("ms"))  # the first is no year of Python's


@pytest.mark.parametrize(
    ("column", "reasons"),
    [
        (pyarrow.array(["a", b"\xff", "c"], pyarrow.binary()), [None, "not valid UTF-8", None]),
        (TIMES, [None, None, None]),
        (TIMES.cast(pyarrow.int64()).cast(pyarrow.duration("s")), [None, None, None]),
        (pyarrow.array([1, 2, 3], pyarrow.date32()), [None, None, None]),
        (
            pyarrow.StructArray.from_arrays([TIMES], ["time"]),
            ["a cell that cannot be read", None, None],
        ),
    ],
)
def test_a_cell_that_cannot_be_read_is_a_bad_row_of_a_table(tmp_path, monkeypatch, column, reasons):
    if pyarrow.types.is_binary(column.type):
        column = pyarrow.Array.from_buffers(pyarrow.string(), len(column), column.buffers())
    table = pyarrow.table({"prompt": ["p"] * 3, "completion": ["c"] * 3, "other": column})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    monkeypatch.setattr("tunesmith.data.read.hub_tables", lambda source: iter([table]))
    for path, where in ((tmp_path / "x.parquet", "x.parquet:"), ("o/rows", "o/rows row ")):
        found = read(path)
        assert [row.reason if isinstance(row, Dropped) else None for row in found] == reasons
        assert [row.where for row in found] == [f"{where}{number}" for number in (1, 2, 3)]


def test_a_column_of_dates_is_there_and_no_text(tmp_path):
    table = pyarrow.table({"prompt": ["p"] * 2, "completion": pyarrow.array([1, 2], pyarrow.date32())})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert [row.reason for row in read(tmp_path / "x.parquet")] == ["turns are not a list of messages"] * 2


def test_an_interval_of_months_is_looked_past(monkeypatch):
    interval = pyarrow.array([(1, 2, 3)], pyarrow.month_day_nano_interval())  # no Parquet file holds one
    table = pyarrow.table({"prompt": ["p"], "completion": ["c"], "other": interval})
    monkeypatch.setattr("tunesmith.data.read.hub_tables", lambda source: iter([table]))
    assert not isinstance(read("o/rows")[0], Dropped)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError("Corrupt data"), DataError), (OSError(errno.EIO, "disk"), OSError),
        (pyarrow.ArrowInvalid(), DataError), (pyarrow.ArrowNotImplementedError("codec"), DataError),
        (pyarrow.ArrowMemoryError("malloc of size 9 failed"), ResourceError), (MemoryError(), ResourceError),
        (pyarrow.ArrowException("Failed to launch worker thread"), ResourceError),
    ],
)  # fmt: skip
def test_damage_in_the_cache_is_named_and_a_disk_that_fails_is_no_damage(monkeypatch, raised, expected):
    def tables(source):
        yield pyarrow.table({"prompt": ["p"], "completion": ["c"]})
        raise raised

    monkeypatch.setattr("tunesmith.data.read.hub_tables", tables)
    with pytest.raises(expected) as caught:
        read("o/rows")
    if expected is DataError and not isinstance(raised, NotImplementedError):
        assert "the data set o/rows is damaged: from row 2 on" in str(caught.value)
    elif expected is not OSError:
        assert "the data set o/rows cannot be read" in str(caught.value)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_half_a_character_in_a_row_drops_it_by_name(tmp_path, suffix):
    found = [clean(row)[0] for row in read(write(tmp_path / f"x{suffix}", [ROWS[0], ROWS[1] | {"prompt": "a\ud800"}]))]
    assert [row.reason if isinstance(row, Dropped) else "" for row in found] == ["", "text that is not valid Unicode"]


def cleaned(*turns):
    found, changes = clean(Conversation(tuple(Turn(*turn) for turn in turns), "x:1"))
    return (found.reason if isinstance(found, Dropped) else [(turn.role, turn.text) for turn in found.turns]), changes


U, A, S = ("user", "q"), ("assistant", "a"), ("system", "s")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no assistant turn"),
        ([S, U], "no assistant turn"),
        ([S], "no assistant turn"),
        ([A], "does not start with the user"),
        ([S, A], "does not start with the user"),
        ([U, ("assistant", " \n")], "an empty turn"),
        ([("user", ""), A], "an empty turn"),
        ([U, ("assistant", "a\x00b")], "control characters"),
        ([("user", "a\x1bb"), A], "control characters"),
        ([U, ("assistant", "caf\ufffd")], "text with replacement characters (U+FFFD)"),
        ([U, ("assistant", "\ud83d")], "text that is not valid Unicode"),
        ([U, ("assistant", "\ufdd0")], "text that is not valid Unicode"),
    ],
)
def test_what_is_wrong_has_a_reason(turns, reason):
    assert cleaned(*turns) == (reason, [])


@pytest.mark.parametrize(
    ("turns", "kept", "change"),
    [
        ([S, U, A, U, A], [S, U, A, U, A], None),
        ([U, A, U], [U, A], "last question without an answer cut off"),
        ([("system", " "), U, A], [U, A], "empty system turn removed"),
        ([U, ("assistant", "\n a \n")], [U, A], "white space around an answer removed"),
        ([("user", " q "), A], [("user", " q "), A], None),
        ([U, ("assistant", "a\r\n\tb\u0085 e\u0301")], [U, ("assistant", "a\r\n\tb\u0085 e\u0301")], None),
    ],
)
def test_what_is_tidied_is_said(turns, kept, change):
    assert cleaned(*turns) == (kept, [change] if change else [])
