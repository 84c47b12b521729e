"""Rows with planted faults through reading, formats, cleaning and exact duplicates: what becomes of each kind.

    python benchmarks/dirty.py [rows] [seed]

Each kind of dirty_kinds.py says what must become of its rows: kept as they are, repaired to these turns and counted,
dropped by this reason, or an error that names this. Four kinds more are of the chat template, with a tokenizer made
here. Ends with 1 if any row went wrong.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from dirty_kinds import FILES, ROWS, File, Verdict, Words, a, dropped, kept, repaired, s, u, words

from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation, Dropped, Turn
from tunesmith.data.dedup import signature
from tunesmith.data.read import conversations
from tunesmith.errors import TunesmithError
from tunesmith.recipe import Source

TESTS = Path(__file__).resolve().parents[1] / "tests"
OUTCOMES = ("kept", "repaired", "dropped", "error", "wrong")
MAX_LENGTH = 200
Found = tuple[Conversation | Dropped, list[str]]


def planted(kind: str, rows: Sequence[Words]) -> File:
    """The rows of a kind as a file."""
    if kind in FILES:
        return FILES[kind](list(rows))
    made = [ROWS[kind](one) for one in rows]
    return File("x.jsonl", "\n".join(json.dumps(row) for row, _ in made).encode(), [verdict for _, verdict in made])


def read(path: Path) -> Iterator[Found | TunesmithError]:
    """What becomes of every row of a file; an error is the last."""
    seen = set[str]()
    try:
        for row in conversations(Source(path=str(path))):
            cleaned, changes = clean(row) if isinstance(row, Conversation) else (row, [])
            if isinstance(cleaned, Conversation):
                whole = signature(cleaned.turns, "exact").whole
                if whole in seen:
                    cleaned = Dropped(row.where, "says the same as an earlier row")
                seen.add(whole)
            yield cleaned, changes
    except TunesmithError as error:
        yield error


def outcome(verdict: Verdict, found: Found | TunesmithError | None) -> str:
    """What became of a row: its verdict's kind, or wrong."""
    if isinstance(found, TunesmithError):
        return "error" if verdict.kind == "error" and verdict.says in str(found).lower() else "wrong"
    if found is None:
        return "wrong"
    row, changes = found
    if isinstance(row, Dropped):
        return "dropped" if verdict.kind == "dropped" and verdict.says in row.reason.lower() else "wrong"
    is_same = _plain(row.turns) == _plain(verdict.turns) and _json(row.tools) == _json(verdict.tools)
    is_right = is_same and verdict.kind == ("repaired" if changes else "kept")
    return verdict.kind if is_right else "wrong"


def _plain(turns: Sequence[Turn]) -> list[tuple[object, ...]]:
    return [(t.role, t.text, t.trained or t.role != "assistant", t.reasoning, _json(t.calls)) for t in turns]


def _json(text: str) -> object:
    return json.loads(text) if text else None


def judged(kind: str, rows: Sequence[Words], folder: Path) -> tuple[Counter[str], str]:
    """Rows of a kind by outcome, and the first that went wrong."""
    name, content, verdicts = planted(kind, rows)
    path = folder / name
    path.write_bytes(content)
    found = list(read(path))
    ended = found.pop() if found and isinstance(found[-1], TunesmithError) else None
    counts, first_wrong = Counter[str](), ""
    for number in range(max(len(found), len(verdicts))):
        verdict = verdicts[number] if number < len(verdicts) else dropped("no row more was written")
        item = found[number] if number < len(found) else ended
        counts[result := outcome(verdict, item)] += 1
        if result == "wrong" and not first_wrong:
            first_wrong = f"row {number + 1}: expected {verdict}, found {item}"
    path.unlink()
    return counts, first_wrong


def of_the_template(rows: Sequence[Words], folder: Path) -> Iterator[tuple[str, Counter[str], str]]:
    """Kinds that the chat template decides, with a tokenizer of 512 tokens."""
    sys.path.insert(0, str(TESTS))
    from tiny import CHATML, save_tokenizer

    from tunesmith.tokens.mask import Encoded, encode_all

    plain = save_tokenizer(folder / "plain")
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    no_system = save_tokenizer(folder / "no-system", template=refuses + CHATML.partition("{% endif %}")[2])
    kinds = {
        "a special token in an answer": (plain, lambda w: ((u(w.q), a(f"{w.a}<|im_end|>")), dropped("special token"))),
        "a template without system prompts": (
            no_system, lambda w: ((s("Be kind."), u(w.q), a(w.a)), dropped("no system prompt"))),
        "one answer longer than max_length": (plain, lambda w: ((u(w.q), a(w.a * 20)), dropped("longer than"))),
        "a later answer longer than max_length": (
            plain, lambda w: ((u(w.q), a(w.a), u(w.q2), a(w.a2 * 20)), repaired(u(w.q), a(w.a)))),
        "an answer first, in tokens": (
            plain, lambda w: ((a(w.a, trained=False), u(w.q2), a(w.a2)), kept(a(w.a, False), u(w.q2), a(w.a2)))),
    }  # fmt: skip
    for kind, (tokenizer, plant) in kinds.items():
        made = [plant(one) for one in rows]
        items = encode_all(
            tokenizer, [Conversation(turns, "x:1") for turns, _ in made], system=None, date="2026-01-01",
            max_length=MAX_LENGTH,
        )  # fmt: skip
        counts, first_wrong = Counter[str](), ""
        for (_, verdict), item in zip(made, items, strict=True):
            found: Found = (Dropped("x:1", getattr(item, "reason", "")), [])
            if isinstance(item, Encoded):
                found = Conversation(item.turns, "x:1"), list(item.changes)
            counts[result := outcome(verdict, found)] += 1
            first_wrong = first_wrong or (f"expected {verdict}, found {found}" if result == "wrong" else "")
        yield kind, counts, first_wrong


def main(most: int = 2000, seed: int = 0) -> int:
    """Print the table; 1 if a row went wrong."""
    rng = random.Random(seed)
    kinds = [*ROWS, *FILES]
    each = -(-most // (len(kinds) + 5))
    each += each % 2  # some kinds are pairs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = [(kind, *judged(kind, [words(rng) for _ in range(each)], folder)) for kind in kinds]
        found += of_the_template([words(rng) for _ in range(each)], folder)
    print("| kind | " + " | ".join(OUTCOMES) + " |\n|---" + "|---:" * len(OUTCOMES) + "|")
    for kind, counts, _ in found:
        print(f"| {kind} | " + " | ".join(str(counts[outcome] or "") for outcome in OUTCOMES) + " |")
    total = sum((counts for _, counts, _ in found), Counter[str]())
    print(f"| all {len(found)} kinds | " + " | ".join(str(total[outcome]) for outcome in OUTCOMES) + " |")
    for kind, _, first_wrong in found:
        if first_wrong:
            print(f"wrong: {kind}: {first_wrong}")
    return int(total["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
