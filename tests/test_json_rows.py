"""JSON files of every shape: each byte is in a row, between rows, in a line named as dropped, or in an error."""

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import json_rows as reader
from tunesmith.data.json_rows import BAD_JSON, BAD_TEXT, NO_OBJECT, json_rows
from tunesmith.errors import DataError

ROWS = [{"instruction": f"q {n}, é 😀 {{[", "output": f'a "{n}"\n'} for n in range(5)]
UNREAD = re.compile(r"([\d,]+) of ([\d,]+) bytes, from line (\d+) on, cannot be read")


def rows_of(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row for _, row in json_rows(path)]


def error_of(path, content):
    with pytest.raises(DataError) as error:
        rows_of(path, content)
    return str(error.value)


PRETTY = [json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS]
LINES = [json.dumps(row) for row in ROWS]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(PRETTY),
        "".join(PRETTY),
        "\n\n".join(LINES[:2] + PRETTY[2:]),
        "".join(LINES[:2]) + "\n" + " ".join(LINES[2:]),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        json.dumps(ROWS[:2]) + json.dumps(ROWS[2:], indent=1),
        json.dumps(ROWS[:2], indent=1) + "\n" + json.dumps(ROWS[2:]) + "\n",
        json.dumps(ROWS[:2]) + "\n" + json.dumps(ROWS[2:]),
        LINES[0] + "\n" + json.dumps(ROWS[1:4], indent=3) + "\n" + PRETTY[4],
        "[\n" + ",\n".join(LINES[:3]) + "\n]\n[]\n" + "\n".join(LINES[3:]),
        "\ufeff" + json.dumps(ROWS, indent=1).replace("\n", "\r\n"),
        "\ufeff" + "\n".join(PRETTY),
    ],
)
@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_every_shape_of_file_gives_every_row(tmp_path, monkeypatch, content, piece):
    monkeypatch.setattr(reader, "PIECE_BYTES", piece)
    assert rows_of(tmp_path / "x.json", content) == ROWS
    assert rows_of(tmp_path / "x.jsonl", content) == ROWS


def test_one_object_is_one_row(tmp_path):
    assert rows_of(tmp_path / "x.json", PRETTY[0]) == ROWS[:1]
    assert list(json_rows(tmp_path / "x.json")) == [(1, ROWS[0])]


@pytest.mark.parametrize("indent", [1, None])
@pytest.mark.parametrize("piece", [50, 1 << 20])
def test_a_fault_in_an_array_is_an_error_that_names_what_is_unread(tmp_path, monkeypatch, indent, piece):
    """Version 0.1 read ten rows of a thousand and counted `1 not valid JSON`."""
    monkeypatch.setattr(reader, "PIECE_BYTES", piece)
    rows = [{"prompt": f"q {n}", "completion": f"a {n}"} for n in range(1000)]
    content = json.dumps(rows, indent=indent).replace('"a 10"', 'a "10"')
    said = error_of(tmp_path / "x.json", content)
    unread, size, line = UNREAD.search(said).groups()
    fault = content.index('a "10"')
    place = f"line {content.count(chr(10), 0, fault) + 1}, column {fault - content.rfind(chr(10), 0, fault)}"
    assert place in said and "Expecting value" in said and "fix: correct it there" in said
    assert int(size.replace(",", "")) == len(content)
    start = content.index("{", content.index('"a 9"'))
    assert int(unread.replace(",", "")) == len(content) - start
    assert int(line) == content.count("\n", 0, start) + 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"a": 1},\n {"a": 2},\n', "line 3, column 1: the array that opens at line 1, column 1 is not closed"),
        ('[{"a": 1}] x', "line 1, column 12: Expecting value. 1 of 12 bytes, from line 1"),
        ('{\n "a": 1\n}\n}\n', "line 4, column 1: Expecting value. 2 of 14 bytes"),
        ('{\n "a": 1\n', "line 3, column 1: Expecting ',' delimiter. 10 of 10 bytes"),
        ("[\n" + "[" * 100_000, "line 2, column 1: brackets too deep. 100,000 of 100,002 bytes"),
        ('[\n{"a": ' + "1" * 5000 + "}\n]", "line 2, column 1: Exceeds the limit"),
        ('{"a": 1}\n[{"a": 2},\n{"a" 3}]', "line 3, column 6: Expecting ':' delimiter. 8 of 28 bytes, from line 3"),
        (b'[{"a": 1},\n{"a": \xff}]', "line 2, column 7: Expecting value. 9 of 20 bytes"),
    ],
)
def test_where_no_row_can_be_found_again(tmp_path, content, said):
    assert said in error_of(tmp_path / "x.json", content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[R1, R2, R3]]", "no list of rows at line 1, column 2: an array in an array, with rows in it. "),
        ("R0\n[R1, [[R2, R3]]]\n", "no list of rows at line 2, column 68: an array in an array, with rows in it. "),
        ("R0\n[{bad},R1,R2,R3,R4]\n", "not valid JSON at line 2, column 3: Expecting property name"),
        ("R0\n[{'a': \"\xff\"},R1,R2]\n", "not valid JSON at line 2, column 3: Expecting property name"),
        ("R0\n[R1,{bad},R2]\nR3\n", "not valid JSON at line 2, column 68: Expecting property name"),
        ("R0\n{bad}R1R2\n", "not valid JSON at line 2, column 2: Expecting property name"),
        ("R0\n{bad}, R1, R2\n", "not valid JSON at line 2, column 2: Expecting property name"),
        ("R0\nR1{bad}R2\n", "not valid JSON at line 2, column 66: Expecting property name"),
        ("R0\nR1, R2, R3\n", "not valid JSON at line 2, column 65: Expecting value"),
        ("R0\nR1 R2 }\n", "not valid JSON at line 2, column 131: Expecting value"),
        ("R0\r{bad}\rR1\rR2\r", "not valid JSON at line 1, column 67: Expecting property name"),
        ("TEXT", "no list of rows at line 1, column 1: a text with rows in it: they were written as JSON twice. "),
    ],
)
@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_what_holds_many_rows_is_never_counted_as_one(tmp_path, monkeypatch, content, said, piece):
    """`[[row, row, ...]]` was `1 not a JSON object`, and an array after a row `1 not valid JSON`."""
    monkeypatch.setattr(reader, "PIECE_BYTES", piece)
    rows = [json.dumps({"prompt": f"question {n}", "completion": "an answer of ten words"}) for n in range(5)]
    assert {len(row) for row in rows} == {64}, "which the columns above are made of"
    content = content.replace("TEXT", json.dumps(json.dumps(ROWS)))
    for number, row in enumerate(rows):
        content = content.replace(f"R{number}", row)
    found = error_of(tmp_path / "x.jsonl", content.encode("latin-1"))
    assert said in found and UNREAD.search(found)


@pytest.mark.parametrize(
    "bad",
    [
        b'{"messages": [{"a": 1} {"b": 2}, {"c": 3}]}',
        b'{"messages": [{"a": 1}, {"b": 2}',
        b'[["a", "b"], ["c", "d"]]',
        b'"a } { b [ {"',
        b"[1, 2]",
        b'{"a": "x} {y", }',
    ],
)
def test_a_damaged_row_with_objects_in_it_is_lost_alone(tmp_path, bad):
    found = rows_of(tmp_path / "x.jsonl", b"\n".join([LINES[0].encode(), bad, LINES[1].encode()]))
    assert [row for row in found if isinstance(row, dict)] == ROWS[:2]
    assert {row for row in found if isinstance(row, str)} <= {BAD_JSON, NO_OBJECT} and len(found) > 2


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ('{"prompt": "a", "completion": "b"\0{"prompt": "c", "completion": "d"}\0{"prompt": "e"}', 3),
        ('mpt": "a"}, {"prompt": "b"}, {"prompt": "c"}]', 3),
        ('{"prompt": "a", "comp{"prompt": "b", "completion": "c"}', 2),
        ('{"prompt": "\\"}, {\\"prompt\\": 1", "completion": "c"', 1),
        ('{"prompt": [{"role": "a"}, {"role": "b"}, "completion": "c"', 1),
    ],
)
@pytest.mark.parametrize("first", [0, 1])
def test_rows_that_a_lost_line_end_joined_are_counted_one_by_one(tmp_path, line, count, first):
    """Seventeen rows were one `not valid JSON`."""
    found = rows_of(tmp_path / "x.jsonl", "\n".join([*LINES[:first], line]).encode())
    assert found == [*ROWS[:first], *[BAD_JSON] * count]


@pytest.mark.parametrize("make", [
    "\n".join, lambda lines: "[" + ",".join(lines) + "]", lambda lines: "[\n" + ",\n".join(lines) + "\n]", "".join,
])  # fmt: skip
@pytest.mark.parametrize(("bad", "key"), [
    ('{"prompt": "q", "prompt": "z", "completion": "a"}', "prompt"),
    ('{"messages": [{"role": "user", "role": "x", "content": "a"}]}', "role"),
    ('{"a\\n\\ud800é": 1, "b": 2, "a\\n\\ud800é": 1}', r"a\n\ud800é"),
])  # fmt: skip
def test_a_key_twice_is_a_bad_row(tmp_path, make, bad, key):
    """The last value was taken."""
    found = rows_of(tmp_path / "x.json", make([LINES[0], bad, LINES[1]]))
    assert found == [ROWS[0], f"a key twice: {key}", ROWS[1]]


def test_a_bad_byte_in_an_array_is_a_fault_of_its_row(tmp_path):
    found = rows_of(tmp_path / "x.json", b'[{"a": "\xff"}, {"a": 2}]')
    assert found == [{"a": "\udcff"}, {"a": 2}]  # which cleaning drops


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"conversations": [{"from": "hum', BAD_JSON),
        (b'{"conversations": [', BAD_JSON),
        (b'{"a": 1,', BAD_JSON),
        (b'{"a": 1} x', BAD_JSON),
        (b"{", BAD_JSON),
        (b"}", BAD_JSON),
        (b"[", None),
        (b"[" * 100_000, BAD_JSON),
        (b'[{"a" 1}]', BAD_JSON),
        (b'{"a": "\xff"}', BAD_TEXT),
        (b'["\xff"', BAD_TEXT),
        (b'"text"', NO_OBJECT),
        (b"[1]", NO_OBJECT),
        (b'{"a": ' + b"1" * 5000 + b"}", BAD_JSON),
    ],
)
@pytest.mark.parametrize("first", [0, 2])
def test_a_bad_line_is_named_and_reading_goes_on(tmp_path, bad, reason, first):
    lines = [line.encode() for line in LINES]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join([*lines[:first], bad, *lines[first:]]))
    if reason is None or (first == 0 and bad[:1] == b"[" and bad != b"[1]") or (first == 0 and bad == b"{"):
        with pytest.raises(DataError, match=r"cannot be read|is not closed"):  # it opens what is no list of lines
            list(json_rows(path))
    else:
        found = list(json_rows(path))
        assert found.pop(first) == (first + 1, reason)
        assert found == [(n + 1 + (n >= first), row) for n, row in enumerate(ROWS)]


JUNK = (b"{", b"}", b"[", b"]", b'"', b"junk", b'{"a": [', b'{"x": "unclosed', b"\xff", b",", b"5 {", b"[[", b":")
SHAPES = st.sampled_from(
    [
        lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows),
        lambda rows: "\n".join(json.dumps(row, indent=1, ensure_ascii=False) for row in rows).encode(),
        lambda rows: json.dumps(rows).encode() + b"\n",
        lambda rows: json.dumps(rows, indent=1).encode(),
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(SHAPES, st.integers(1, 4), st.sampled_from([b"", b"\n", b" \n\n"])), min_size=1, max_size=5),
    st.sampled_from(["", "ü", 'quote " bracket [{', "line\nline", "😀" * 30]),
    st.none() | st.tuples(st.sampled_from(JUNK), st.integers(0, 2000)) | st.integers(0, 2000),
    st.sampled_from([5, 64, 1 << 20]),
)
def test_every_row_is_read_or_lies_in_what_is_named(tmp_path_factory, parts, text, damage, piece):
    """A mix of shapes, whole, cut off somewhere, or with junk somewhere: no row is lost in silence, none is made up."""
    number, content, spans = 0, b"", {}
    for shape, count, after in parts:
        rows = [{"n": number + k, "text": text} for k in range(count)]
        number += count
        content += shape(rows) + after
    for n in range(number):
        start = content.index(b'"n": %d' % n)
        spans[n] = (start, content.index(b"}", content.index(b'"text": "', start)))
    if isinstance(damage, int):
        content = content[:damage]
    elif damage:
        place = damage[1] % (len(content) + 1)
        content = content[:place] + damage[0] + content[place:]
        spans = {
            n: (a + len(damage[0]) * (a >= place), b + len(damage[0]) * (b >= place)) for n, (a, b) in spans.items()
        }
    path = tmp_path_factory.mktemp("ledger") / "x.json"
    path.write_bytes(content)
    found, named, old = [], [], reader.PIECE_BYTES
    reader.PIECE_BYTES = piece
    try:
        for line, row in json_rows(path):
            if isinstance(row, dict):
                found.append(row)
                continue
            start = sum(len(each) for each in content.split(b"\n")[: line - 1]) + line - 1
            if row != NO_OBJECT or b"{" not in content[start:].split(b"\n")[0]:  # else it may stand for rows
                named.append((start, content.find(b"\n", start) % (len(content) + 1)))
    except DataError as error:
        unread, size, line = (int(part.replace(",", "")) for part in UNREAD.search(str(error)).groups())
        assert size == len(content) and line == content.count(b"\n", 0, size - unread) + 1
        named.append((size - unread, size))
    finally:
        reader.PIECE_BYTES = old
    numbers = [row["n"] for row in found if "n" in row]
    if damage is None:
        assert numbers == list(range(number)) and not named
    assert numbers == sorted(set(numbers))
    lost = [
        n
        for n in set(range(number)) - set(numbers)
        if spans[n][0] < len(content) and not any(a <= spans[n][1] and spans[n][0] < b for a, b in named)
    ]
    assert len(lost) <= len(found) - len(numbers) <= 1, "but a row whose keys were damaged is read"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=9), min_size=1, max_size=6), st.lists(st.tuples(st.integers(0, 999), st.sampled_from(
    [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"x", b"7", b" ", b"\xff", b"\0"])), max_size=4))  # fmt: skip
def test_every_byte_of_a_file_of_lines_is_accounted_for(tmp_path_factory, texts, changes):
    """Bytes of the lines of rows, of bad lines, of blank lines, and unread ones are those of the file."""
    content = bytearray(b"".join(json.dumps({"n": n, "text": text}).encode() + b"\n" for n, text in enumerate(texts)))
    for place, byte in changes:
        if content[place % len(content)] != ord("\n"):
            content[place % len(content)] = byte[0]
    path, unread, seen = tmp_path_factory.mktemp("ledger") / "x.jsonl", 0, set[int]()
    path.write_bytes(content)
    try:
        for line, _ in json_rows(path):
            seen.add(line)
    except DataError as error:
        found = UNREAD.search(str(error))
        assert found or "is not UTF-8 text" in str(error)
        unread = int(found[1].replace(",", "")) if found else len(content)  # refused before anything is read
    ends = list(itertools.accumulate(len(line) + 1 for line in bytes(content).split(b"\n")[:-1]))
    before = {number for number, end in enumerate(ends, 1) if end <= len(content) - unread}
    assert before <= seen, "a line before what is unread is in no row and not named"
