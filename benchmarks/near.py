"""Near duplicates: ours against datasketch and rensa, by what they find, what they merge wrongly, and speed.

    python benchmarks/near.py [FOLDER]

FOLDER (default: ../shared/data beside the checkout) has dedup/articles_1000.* with the truth, dedup/*.jsonl with
labelled pairs, and instruct/*, the conversations of which are the real set. Into that are planted, by a fixed draw,
1,000 twins (each word but numbers, negations and operators is another one with 1 % probability, one at least), which
should be found, and 1,000 rows of GSM8K with one number of the question changed, which should be kept. Needs datasketch
and rensa (extra `bench`). Speed is by processor time. Prints Markdown tables.
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import datasketch
import numpy as np
import rensa

from tunesmith.data.clean import clean
from tunesmith.data.clusters import ALIKE, near_clusters
from tunesmith.data.conversation import Conversation, Turn
from tunesmith.data.decontaminate import Prompts
from tunesmith.data.near import BANDS, ROWS, hashed_words
from tunesmith.data.read import conversations
from tunesmith.data.signed import SignedWriter, first_of_each, sign
from tunesmith.recipe import Columns, Source

ROOT = Path(__file__).parent.parent
PERMUTATIONS, PLANTED, BATCH_ROWS = 128, 1000, 256
REAL = ("gsm8k*", "gpteacher*", "chatml*", "fastchat*", "rasbt*")
Clusters = Sequence[int]
"""For each row the first one that it is merged with, or itself."""


def ours(rows: Sequence[Conversation], file: Path) -> Clusters:
    """As prepare does it: signatures, sketches, buckets, true Jaccard, the guard."""
    with SignedWriter(file) as writer:
        for first in range(0, len(rows), BATCH_ROWS):
            writer.add(sign([(row, row.turns) for row in rows[first : first + BATCH_ROWS]], "near"))
        signed = writer.rows()
    return near_clusters(signed.texts, first_of_each(signed.said_T))[signed.left_N].tolist()


def shingles(row: Conversation) -> set[str]:
    """Three words in a row, as a user would write it."""
    words = re.findall(r"\w+", " ".join(turn.text for turn in row.turns).lower())
    return {" ".join(words[place : place + 3]) for place in range(max(1, len(words) - 2))}


def by_datasketch(rows: Sequence[Conversation], verified: bool) -> Clusters:
    """MinHash and MinHashLSH, as its README has them."""
    sets = [shingles(row) for row in rows]
    index, hashes = datasketch.MinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS), []
    for number, found in enumerate(sets):
        hashed = datasketch.MinHash(num_perm=PERMUTATIONS)
        hashed.update_batch([shingle.encode() for shingle in found])
        index.insert(number, hashed)
        hashes.append(hashed)
    return joined(((n, other) for n, hashed in enumerate(hashes) for other in index.query(hashed)), sets, verified)


def by_rensa(rows: Sequence[Conversation], verified: bool) -> Clusters:
    """RMinHash and RMinHashLSH, 16 bands of 8."""
    sets = [shingles(row) for row in rows]
    hashes = rensa.RMinHash.from_token_sets(map(list, sets), PERMUTATIONS, 42)
    index = rensa.RMinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS, num_bands=16)
    index.insert_many(hashes)
    return joined(((n, other) for n, hashed in enumerate(hashes) for other in index.query(hashed)), sets, verified)


def joined(pairs: Iterable[tuple[int, int]], sets: Sequence[set[str]], verified: bool) -> Clusters:
    """Clusters of pairs, of those alone that are alike where they are verified."""
    parents = list(range(len(sets)))

    def root(row: int) -> int:
        while parents[row] != row:
            row = parents[row]
        return row

    for one, other in pairs:
        if one < other and (not verified or jaccard(sets[one], sets[other]) >= ALIKE):
            first, second = sorted((root(one), root(other)))
            parents[second] = first
    return [root(row) for row in range(len(sets))]


def jaccard(one: set[str], other: set[str]) -> float:
    """Share of what two sets have in common."""
    return len(one & other) / len(one | other)


METHODS: dict[str, Callable[[Sequence[Conversation], Path], Clusters]] = {
    f"ours, {BANDS} bands of {ROWS}, verified and guarded": ours,
    "datasketch, candidates": lambda rows, _: by_datasketch(rows, verified=False),
    "datasketch, verified": lambda rows, _: by_datasketch(rows, verified=True),
    "rensa, candidates": lambda rows, _: by_rensa(rows, verified=False),
    "rensa, verified": lambda rows, _: by_rensa(rows, verified=True),
}


def real_rows(folder: Path) -> list[Conversation]:
    """The conversations of the shared sets, cleaned."""
    found = []
    for pattern in REAL:
        (path,) = folder.glob(pattern)
        columns = Columns(output="response") if "response" in path.name else Columns()
        read = (row for row in conversations(Source(path=str(path), columns=columns)) if isinstance(row, Conversation))
        found += [row for row, _ in map(clean, read) if isinstance(row, Conversation)]
    return found


def twin_of(row: Conversation, draw: random.Random, words: Sequence[str]) -> Conversation:
    """The row with a word in a hundred changed, none of which decides the meaning."""
    long = max(range(len(row.turns)), key=lambda place: len(row.turns[place].text))
    parts = re.split(r"(\s+)", row.turns[long].text)
    free = [place for place in range(0, len(parts), 2) if re.fullmatch("[A-Za-z]{4,}", parts[place])]
    free = [place for place in free if not hashed_words([parts[place]]).decisive_W.any()]
    for place in draw.sample(free, max(1, len(free) // 100)) if free else ():
        parts[place] = draw.choice(words)
    turn = Turn(row.turns[long].role, "".join(parts))
    return Conversation((*row.turns[:long], turn, *row.turns[long + 1 :]), row.where)


def other_number(row: Conversation, draw: random.Random) -> Conversation:
    """The row with one number of its question changed."""
    number = draw.choice(list(re.finditer(r"\d+", row.turns[0].text)))
    text = f"{number.string[: number.start()]}{int(number[0]) + draw.randint(1, 9)}{number.string[number.end() :]}"
    return Conversation((Turn("user", text), *row.turns[1:]), row.where)


def planted(rows: list[Conversation]) -> tuple[list[Conversation], list[tuple[int, int]], list[tuple[int, int]]]:
    """The rows with twins and with changed numbers behind them; the pairs of each."""
    draw = random.Random(0)
    drawn = sorted({word for row in rows[:500] for word in re.findall("[a-z]{4,}", row.turns[-1].text)})
    words = [word for word, decides in zip(drawn, hashed_words(drawn).decisive_W, strict=True) if not decides]
    long = [place for place, row in enumerate(rows) if sum(len(turn.text.split()) for turn in row.turns) >= 40]
    sums = [place for place, row in enumerate(rows) if "gsm8k" in row.where and re.search(r"\d", row.turns[0].text)]
    twins, others = draw.sample(long, PLANTED), draw.sample(sums, PLANTED)
    made = rows + [twin_of(rows[place], draw, words) for place in twins]
    made += [other_number(rows[place], draw) for place in others]
    start = len(rows)
    pairs = [(place, start + n) for n, place in enumerate(twins)]
    return made, pairs, [(place, start + PLANTED + n) for n, place in enumerate(others)]


def measure(rows: list[Conversation], same: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> None:
    """A table of all methods. Precision: of the rows that are merged into another, those with one that is alike."""
    sets = [shingles(row) for row in rows]
    truly = [pair for pair in same if jaccard(sets[pair[0]], sets[pair[1]]) >= ALIKE]
    print(
        f"\n{len(rows):,} rows, {np.mean([len(s) for s in sets]):.0f} shingles each; {len(truly)} pairs to be found\n"
    )
    print(
        "| way | found | merged | of these alike | other numbers merged | rows/s of a core |\n|---|---|---|---|---|---|"
    )
    for name, method in METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            found = method(rows, Path(folder, "shingles"))
            seconds = time.process_time() - started
        members: dict[int, list[int]] = {}
        for row, first in enumerate(found):
            members.setdefault(first, []).append(row)
        dropped = [row for group in members.values() for row in group[1:]]
        alike = sum(
            any(jaccard(sets[row], sets[twin]) >= ALIKE for twin in members[found[row]] if twin != row)
            for row in dropped
        )
        hit = sum(found[one] == found[two] for one, two in truly)
        wrong = sum(found[one] == found[two] for one, two in other)
        print(
            f"| {name} | {hit} of {len(truly)} | {len(dropped)} | {alike} | {wrong} of {len(other)} | "
            f"{len(rows) / seconds:,.0f} |",
            flush=True,
        )


def labelled(file: Path, folder: Path) -> None:
    """Pairs that people have judged, by source."""
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    counts: Counter[tuple[str, int]] = Counter()
    merged: Counter[tuple[str, int]] = Counter()
    for pair in pairs:
        key = (pair["source"], pair["label"])
        rows = [Conversation((Turn("user", pair[name]),), name) for name in "ab"]
        found = ours(rows, folder / "shingles")
        counts[key] += 1
        merged[key] += found[0] == found[1]
    print("\n| source | judged | pairs | merged |\n|---|---|---|---|")
    for (source, label), number in sorted(counts.items()):
        print(f"| {source} | {'the same' if label else 'different'} | {number} | {merged[source, label]} |")


def contamination(file: Path, rows: Sequence[Conversation]) -> None:
    """Prompts of known sets that are in others: found, and what is found in rows that hold none."""
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    prompts = Prompts([pair["b"] for pair in pairs], nearly=True)
    hits = prompts.hits([[Turn("user", pair["a"])] for pair in pairs])
    found = sum(hit is not None for hit in hits)
    others = sum(hit is not None for hit in prompts.hits([row.turns for row in rows]))
    print(
        f"\nevaluation prompts: {found} of {len(pairs)} pairs found; {others} hits in {len(rows):,} rows of other sets"
    )


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared" / "data")
    folder = parser.parse_args().folder
    lines = (folder / "dedup" / "articles_1000.train").read_text().splitlines()
    names = {line.partition(" ")[0]: place for place, line in enumerate(lines)}
    truth = (folder / "dedup" / "articles_1000.truth").read_text().split()
    pairs = [(names[one], names[two]) for one, two in zip(truth[::2], truth[1::2], strict=True)]
    measure([Conversation((Turn("user", line.partition(" ")[2]),), "article") for line in lines], pairs, [])
    rows = real_rows(folder / "instruct")
    measure(*planted(rows))
    with tempfile.TemporaryDirectory() as place:
        labelled(folder / "dedup" / "labelled_pairs_300.jsonl", Path(place))
    contamination(folder / "dedup" / "contamination_pairs_166.jsonl", rows)


if __name__ == "__main__":
    main()
