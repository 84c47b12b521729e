# ruff: noqa: RUF001, D103 (letters of all kinds are among the faults; a kind's function is named by what it is)
"""Kinds of faults, each planted in rows of our own with what must become of them. Used by dirty.py.

A kind of one row gives the row and its verdict; a kind of a file gives the file's name, its bytes and a verdict for
each row in it. Expected values are those of the issue, whatever the code does today.
"""

import gzip
import json
import random
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import pyarrow

from tunesmith.data.conversation import Turn

THINGS = (
    "a lamp",
    "the river",
    "an old map",
    "this recipe",
    "the night train",
    "a red kite",
    "our garden",
    "the stone bridge",
)
DEEDS = ("mend", "describe", "find", "sell", "measure", "paint", "carry", "draw")
REASONS = (
    "it rained all week",
    "the shop is closed",
    "nobody had the key",
    "the wind was strong",
    "it was made by hand",
)


class Verdict(NamedTuple):
    """What must become of a row."""

    kind: str
    """kept, repaired, dropped, or error."""
    turns: tuple[Turn, ...] = ()
    says: str = ""
    """Part of the reason or of the error, in any case."""
    tools: str = ""


class Words(NamedTuple):
    """Texts of one row; no two rows share one."""

    q: str
    a: str
    q2: str
    a2: str


class File(NamedTuple):
    """A file with rows."""

    name: str
    content: bytes
    verdicts: list[Verdict]


NUMBERS = count(100)


def words(rng: random.Random) -> Words:
    """New texts."""
    number, more = next(NUMBERS), next(NUMBERS)
    return Words(
        f"How do I {rng.choice(DEEDS)} {rng.choice(THINGS)}, number {number}?",
        f"Take {rng.choice(THINGS)} first, then {number} steps, since {rng.choice(REASONS)}.",
        f"And {rng.choice(DEEDS)} {rng.choice(THINGS)}, number {more}?",
        f"That takes {more} minutes, as {rng.choice(REASONS)}.",
    )


def u(text: str) -> Turn:
    return Turn("user", text)


def a(text: str, trained: bool = True, reasoning: str = "", calls: Any = None) -> Turn:
    return Turn("assistant", text, trained, reasoning, json.dumps(calls) if calls else "")


def s(text: str) -> Turn:
    return Turn("system", text)


def kept(*turns: Turn, tools: str = "") -> Verdict:
    return Verdict("kept", turns, tools=tools)


def repaired(*turns: Turn) -> Verdict:
    return Verdict("repaired", turns)


def dropped(says: str) -> Verdict:
    return Verdict("dropped", says=says)


def error(says: str) -> Verdict:
    return Verdict("error", says=says)


def chat(*texts: str, roles: str = "ua", **last: Any) -> dict[str, Any]:
    """A row of messages: u user, a assistant, s system, in turn; `last` goes into the last one."""
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    turns: list[dict[str, Any]] = [
        {"role": names[roles[place % len(roles)]], "content": text} for place, text in enumerate(texts)
    ]
    turns[-1].update(last)
    return {"messages": turns}


def gpt(*texts: str, roles: tuple[str, ...] = ("human", "gpt")) -> dict[str, Any]:
    """A row of ShareGPT."""
    return {"conversations": [{"from": roles[n % len(roles)], "value": text} for n, text in enumerate(texts)]}


CALL = {"name": "clock", "arguments": {"zone": "UTC"}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
Row = Callable[[Words], tuple[dict[str, Any], Verdict]]


def with_calls(w: Words) -> tuple[dict[str, Any], Verdict]:
    row = {
        "messages": [
            {"role": "user", "content": w.q},
            {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
            {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
            {"role": "assistant", "content": w.a},
        ],
        "tools": [TOOL],
    }
    return row, kept(u(w.q), a("", calls=[CALL]), Turn("tool", "12:00"), a(w.a), tools=json.dumps([TOOL]))


def with_function_call(w: Words) -> tuple[dict[str, Any], Verdict]:
    row = gpt(w.q, json.dumps(CALL), "12:00", w.a, roles=("human", "function_call", "observation", "gpt"))
    row["tools"] = json.dumps([TOOL])
    return row, kept(u(w.q), a("", calls=[CALL]), Turn("tool", "12:00"), a(w.a), tools=json.dumps([TOOL]))


def earlier(w: Words) -> tuple[dict[str, Any], Verdict]:
    row = {"instruction": w.q2, "input": "", "output": w.a2, "history": [[w.q, w.a]]}
    return row, kept(u(w.q), a(w.a), u(w.q2), a(w.a2))


def in_prompt(w: Words) -> tuple[dict[str, Any], Verdict]:
    row = {"prompt": chat(w.q, w.a, w.q2)["messages"], "completion": [{"role": "assistant", "content": w.a2}]}
    return row, kept(u(w.q), a(w.a, trained=False), u(w.q2), a(w.a2))


def null_keys(w: Words) -> tuple[dict[str, Any], Verdict]:
    row = chat(w.q, w.a)
    for turn in row["messages"]:
        turn |= {"from": None, "value": None, "weight": None, "tool_calls": None}
    return row, kept(u(w.q), a(w.a))


ROWS: dict[str, Row] = {
    # what a row says beside its words
    "weight 0": lambda w: (
        {"messages": [*chat(w.q, w.a, weight=0)["messages"], *chat(w.q2, w.a2, weight=1)["messages"]]},
        kept(u(w.q), a(w.a, trained=False), u(w.q2), a(w.a2)),
    ),
    "train false": lambda w: (
        {"messages": [*chat(w.q, w.a, train=False)["messages"], *chat(w.q2, w.a2)["messages"]]},
        kept(u(w.q), a(w.a, trained=False), u(w.q2), a(w.a2)),
    ),
    "loss false on all answers": lambda w: (chat(w.q, w.a, loss=False), dropped("trained on")),
    "reasoning_content": lambda w: (
        chat(w.q, w.a, reasoning_content="Let me think."), kept(u(w.q), a(w.a, reasoning="Let me think."))),
    "thinking": lambda w: (chat(w.q, w.a, thinking="Hm, yes."), kept(u(w.q), a(w.a, reasoning="Hm, yes."))),
    "tools and tool_calls": with_calls,
    "function_call of ShareGPT": with_function_call,
    "history of Alpaca": earlier,
    "system_prompt column": lambda w: (
        {"prompt": w.q, "completion": w.a, "system_prompt": "Be short."}, kept(s("Be short."), u(w.q), a(w.a))),
    "answers in the prompt": in_prompt,
    "messages as JSON text": lambda w: (
        {"messages": json.dumps(chat(w.q, w.a)["messages"])}, kept(u(w.q), a(w.a))),
    "question and answer": lambda w: ({"question": w.q, "answer": w.a}, kept(u(w.q), a(w.a))),
    "columns that are not used": lambda w: (
        {"id": 7, "prompt": w.q, "completion": w.a, "lang": "en", "score": 0.5}, kept(u(w.q), a(w.a))),
    "label false of KTO": lambda w: ({"prompt": w.q, "completion": w.a, "label": False}, dropped("marked as bad")),
    "images": lambda w: (chat(f"<image>{w.q}", w.a) | {"images": ["a.png"]}, dropped("pictures")),
    "chosen and rejected": lambda w: (
        {"prompt": w.q, "completion": w.a, "chosen": w.a, "rejected": w.a2}, dropped("preference")),
    "an image among the parts": lambda w: (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": w.q}, {"type": "image_url"}]},
                      {"role": "assistant", "content": w.a}]},
        dropped("pictures")),
    # keys and roles
    "keys padded with null": null_keys,
    "text in parts": lambda w: (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": w.q}]},
                      {"role": "assistant", "content": [{"type": "text", "text": w.a}]}]},
        kept(u(w.q), a(w.a))),
    "roles in capitals": lambda w: (gpt(w.q, w.a, roles=("HUMAN", "GPT")), kept(u(w.q), a(w.a))),
    "developer": lambda w: (
        {"messages": [{"role": "developer", "content": "Be kind."}, *chat(w.q, w.a)["messages"]]},
        kept(s("Be kind."), u(w.q), a(w.a))),
    "a role that nobody knows": lambda w: (gpt(w.q, w.a, roles=("human", "Ann")), dropped("unknown role")),
    "an answer that is null": lambda w: (gpt(w.q, None), dropped("other than text")),  # type: ignore[arg-type]
    "an answer that is a number": lambda w: ({"prompt": w.q, "completion": 42}, dropped("turn")),
    "no input, no instruction": lambda w: ({"instruction": "", "input": w.q, "output": w.a}, kept(u(w.q), a(w.a))),
    # the order of the speakers
    "two questions in a row": lambda w: (chat(w.q, w.q2, w.a, roles="uua"), repaired(u(f"{w.q}\n\n{w.q2}"), a(w.a))),
    "two answers in a row": lambda w: (chat(w.q, w.a, w.a2, roles="uaa"), repaired(u(w.q), a(f"{w.a}\n\n{w.a2}"))),
    "begins with an answer": lambda w: (
        gpt(w.a, w.q2, w.a2, roles=("gpt", "human")), repaired(a(w.a, trained=False), u(w.q2), a(w.a2))),
    "an answer alone": lambda w: (gpt(w.a, roles=("gpt",)), dropped("start with the user")),
    "a last question": lambda w: (chat(w.q, w.a, w.q2), repaired(u(w.q), a(w.a))),
    "a question alone": lambda w: (chat(w.q), dropped("no assistant turn")),
    "system in the middle": lambda w: (
        chat(w.q, w.a, "Now be brief.", w.q2, w.a2, roles="uasua"),
        repaired(u(w.q), a(w.a), u(f"Now be brief.\n\n{w.q2}"), a(w.a2))),
    "two system prompts": lambda w: (
        chat("Be kind.", "Be brief.", w.q, w.a, roles="ssua"), repaired(s("Be kind.\n\nBe brief."), u(w.q), a(w.a))),
    "an empty system prompt": lambda w: (chat(" ", w.q, w.a, roles="sua"), repaired(u(w.q), a(w.a))),
    # empty turns and broken text
    "an empty answer": lambda w: (chat(w.q, ""), dropped("empty turn")),
    "an empty answer later": lambda w: (chat(w.q, w.a, w.q2, " \n"), repaired(u(w.q), a(w.a))),
    "an invisible answer": lambda w: (chat(w.q, "\u200b\u00ad\u3164\ufe0f\u2060"), dropped("empty turn")),
    "a question of hard spaces": lambda w: (chat("\u00a0\u2003", w.a), dropped("empty turn")),
    "white space around an answer": lambda w: (chat(w.q, f"\n {w.a}\n\n"), repaired(u(w.q), a(w.a))),
    "U+FFFD": lambda w: (chat(w.q, f"{w.a} caf\ufffd"), dropped("replacement")),
    "U+FFFD later": lambda w: (chat(w.q, w.a, w.q2, f"\ufffd{w.a2}"), repaired(u(w.q), a(w.a))),
    "UTF-8 read as Windows-1252": lambda w: (
        chat(w.q, f"{w.a} It’s a café – “yes”.".encode().decode("cp1252", "replace").replace("\ufffd", "\x9d")),
        repaired(u(w.q), a(f"{w.a} It’s a café – “yes”."))),
    "UTF-8 read as Latin-1": lambda w: (
        chat(f"{w.q} Где это?".encode().decode("latin-1"), w.a), repaired(u(f"{w.q} Где это?"), a(w.a))),
    "quotes of Windows as C1 controls": lambda w: (
        chat(w.q, f"{w.a} \x93Yes\x94, she said."), repaired(u(w.q), a(f"{w.a} “Yes”, she said."))),
    "broken letters on purpose": lambda w: (
        chat(f"{w.q} Why do I see cafÃ©?", f"{w.a} It is UTF-8 that was read as Latin-1: cafÃ©."),
        kept(u(f"{w.q} Why do I see cafÃ©?"), a(f"{w.a} It is UTF-8 that was read as Latin-1: cafÃ©."))),
    "good text of many scripts": lambda w: (
        chat(f"{w.q} été ÃO “ja” Größe", f"{w.a} Привет 你好 नमस्ते 👩‍🚀 ﬁ e\u0301 ½ &amp;"),
        kept(u(f"{w.q} été ÃO “ja” Größe"), a(f"{w.a} Привет 你好 नमस्ते 👩‍🚀 ﬁ e\u0301 ½ &amp;"))),
    "half a character": lambda w: (chat(w.q, f"{w.a} \ud83d"), dropped("valid unicode")),
    "terminal colours": lambda w: (chat(w.q, f"\x1b[1;32m{w.a}\x1b[0m"), repaired(u(w.q), a(w.a))),
    "a byte order mark in a text": lambda w: (chat(f"\ufeff{w.q}", w.a), repaired(u(w.q), a(w.a))),
    "NUL in a word": lambda w: (chat(w.q, f"{w.a} a\0b"), dropped("control")),
    "LaTeX without its backslash": lambda w: (
        chat(w.q, f"{w.a} $\frac{{1}}{{2}}$, \beta"), repaired(u(w.q), a(f"{w.a} $\\frac{{1}}{{2}}$, \\beta"))),
    "a form feed between pages": lambda w: (chat(w.q, f"{w.a}\fNext"), repaired(u(w.q), a(f"{w.a}\nNext"))),
    "JSON that is cut": lambda w: (chat(w.q, f'{{"answer": "{w.a}", "more": ["x", "y'), dropped("cut within json")),
    "code that is cut": lambda w: (
        chat(w.q, f"{w.a}\n```py\nx = 1", w.q2, w.a2),
        repaired(u(w.q), a(f"{w.a}\n```py\nx = 1", trained=False), u(w.q2), a(w.a2))),
    "a refusal": lambda w: (
        chat(w.q, f"As an AI language model, I cannot do that, {w.a}"),
        kept(u(w.q), a(f"As an AI language model, I cannot do that, {w.a}"))),
}  # fmt: skip
"""Kind -> a row of it; all rows of a kind go into one JSONL file."""


def _pair(w: Words) -> dict[str, Any]:
    return {"prompt": w.q, "completion": w.a}


def _good(w: Words) -> Verdict:
    return kept(u(w.q), a(w.a))


def _lines(rows: list[Words]) -> list[bytes]:
    return [json.dumps(_pair(w)).encode() for w in rows]


def bad_line(rows: list[Words]) -> File:
    lines = [line if n % 2 else line[:-9] for n, line in enumerate(_lines(rows))]
    return File("x.jsonl", b"\n".join(lines), [
        _good(w) if n % 2 else dropped("not valid json") for n, w in enumerate(rows)])  # fmt: skip


def bad_bytes(rows: list[Words]) -> File:
    lines = [line if n % 2 else line.replace(b"steps", b"\xe9tapes") for n, line in enumerate(_lines(rows))]
    return File("x.jsonl", b"\n".join(lines), [
        _good(w) if n % 2 else dropped("not valid utf-8") for n, w in enumerate(rows)])  # fmt: skip


def no_object(rows: list[Words]) -> File:
    lines = [line if n % 2 else b"%d" % n for n, line in enumerate(_lines(rows))]
    return File("x.jsonl", b"\n".join(lines), [
        _good(w) if n % 2 else dropped("not a json object") for n, w in enumerate(rows)])  # fmt: skip


def key_twice(rows: list[Words]) -> File:
    lines = [line if n % 2 else line[:-1] + b', "prompt": "x"}' for n, line in enumerate(_lines(rows))]
    return File("x.jsonl", b"\n".join(lines), [
        _good(w) if n % 2 else dropped("a key twice") for n, w in enumerate(rows)])  # fmt: skip


def broken_item(rows: list[Words]) -> File:
    bad = len(rows) // 2
    items = [line if n != bad else line.replace(b'":', b'"', 1) for n, line in enumerate(_lines(rows))]
    verdicts = [_good(w) if n < bad else error(f"line {bad + 2}, column") for n, w in enumerate(rows)]
    return File("x.json", b"[\n" + b",\n".join(items) + b"\n]", verdicts)


def two_arrays(rows: list[Words]) -> File:
    items, half = _lines(rows), len(rows) // 2
    content = b"[%s]\n[%s]" % (b", ".join(items[:half]), b",\n".join(items[half:]))
    return File("x.json", content, [_good(w) for w in rows])


def pretty_objects(rows: list[Words]) -> File:
    content = "\n".join(json.dumps(_pair(w), indent=2) for w in rows).encode()
    return File("x.jsonl", content, [_good(w) for w in rows])


def array_as_lines(rows: list[Words]) -> File:
    content = json.dumps([_pair(w) for w in rows], indent=1).encode()
    return File("x.JSONL", b"\xef\xbb\xbf" + content, [_good(w) for w in rows])


def open_quote(rows: list[Words]) -> File:
    bad = len(rows) // 2
    lines = [f'"{w.q}","{w.a}' + ('"' if n != bad else "") for n, w in enumerate(rows)]
    verdicts = [_good(w) if n < bad else error(f"line {bad + 2}") for n, w in enumerate(rows)]
    return File("x.csv", "\r\n".join(["prompt,completion", *lines, ""]).encode(), verdicts)


def few_cells(rows: list[Words]) -> File:
    lines = [f'"{w.q}","{w.a}"' if n % 2 else f'"{w.q}"' for n, w in enumerate(rows)]
    return File("x.csv", "\n".join(["prompt,completion", *lines]).encode(), [
        _good(w) if n % 2 else dropped("cells") for n, w in enumerate(rows)])  # fmt: skip


def utf_16(rows: list[Words]) -> File:
    return File("x.jsonl", b"\n".join(_lines(rows)).decode().encode("utf-16"), [error("utf-16")] * len(rows))


def gzipped(rows: list[Words]) -> File:
    return File("x.jsonl.gz", gzip.compress(b"\n".join(_lines(rows))), [_good(w) for w in rows])


def zstd(rows: list[Words]) -> File:
    found = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(found, "zstd") as file:
        file.write(b"\n".join(_lines(rows)))
    return File("x.jsonl.zst", found.getvalue().to_pybytes(), [_good(w) for w in rows])


def arrow_file(rows: list[Words]) -> File:
    table, found = pyarrow.Table.from_pylist([_pair(w) for w in rows]), pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(found, table.schema) as writer:
        writer.write_table(table)
    return File("x.arrow", found.getvalue().to_pybytes(), [_good(w) for w in rows])


def mixed_forms(rows: list[Words]) -> File:
    forms = (_pair, lambda w: chat(w.q, w.a), lambda w: gpt(w.q, w.a), lambda w: {"instruction": w.q, "output": w.a})
    lines = [json.dumps(forms[n % 4](w)).encode() for n, w in enumerate(rows)]
    return File("x.jsonl", b"\n".join(lines), [_good(w) for w in rows])


def missing_column(rows: list[Words]) -> File:
    lines = [json.dumps({"ask": w.q, "reply": w.a}).encode() for w in rows]
    return File("x.jsonl", b"\n".join(lines), [error("ask, reply")] * len(rows))


def binary_junk(rows: list[Words]) -> File:
    return File("x.json", random.Random(5).randbytes(4000), [error("x.json")] * len(rows))


def signs(rows: list[Words]) -> File:
    """Every other row is the one before it with another sign."""
    pairs = [(f"{w.q} What is 3 {sign} 2?", f"{3 * x}") for w in rows[::2] for sign, x in (("* -", -2), ("* ", 2))]
    pairs = pairs[: len(rows)]
    content = "\n".join(json.dumps({"prompt": q, "completion": x}) for q, x in pairs).encode()
    return File("x.jsonl", content, [kept(u(q), a(x)) for q, x in pairs])


def spaces(rows: list[Words]) -> File:
    """Every other row is the one before it with other white space and Unicode form."""
    pairs = [pair for w in rows[::2] for pair in ((f"{w.q} é", w.a), (f"{w.q}  e\u0301", w.a.replace(" ", "\n")))]
    pairs = pairs[: len(rows)]
    content = "\n".join(json.dumps({"prompt": q, "completion": x}) for q, x in pairs).encode()
    same = dropped("says the same")
    return File("x.jsonl", content, [same if n % 2 else kept(u(q), a(x)) for n, (q, x) in enumerate(pairs)])


FILES: dict[str, Callable[[list[Words]], File]] = {
    "a line that is cut": bad_line, "a line in Latin-1": bad_bytes, "a line that is a number": no_object,
    "a key twice": key_twice, "a broken item in an array": broken_item, "two arrays in a file": two_arrays,
    "objects over many lines": pretty_objects, "an array named .JSONL, with a byte order mark": array_as_lines,
    "an open quote in CSV": open_quote, "too few cells in CSV": few_cells, "UTF-16": utf_16, "gzip": gzipped,
    "zstd": zstd, "Arrow": arrow_file, "four forms in a file": mixed_forms, "no known column": missing_column,
    "binary junk": binary_junk, "differs in a sign": signs, "differs in spaces": spaces,
}  # fmt: skip
"""Kind -> a file of rows of it."""
