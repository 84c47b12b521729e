"""Check the demo data: enough training rows, enough multi-turn, no question twice, and a fair test.

Fair means that no held-out row and no test question is close to a training row. Closeness is the Jaccard
similarity of the sets of word 3-grams. Usage: python benchmarks/check_demo_data.py [FOLDER]
"""

import json
import re
import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "recipes" / "demo-data"
MIN_ROWS, MIN_MULTI_TURN, MAX_SIMILARITY = 300, 0.25, 0.5


def read_rows(path: Path) -> list[tuple[str, list[dict[str, str]]]]:
    """Return the conversations of a ShareGPT JSONL file, each with its place (file:line)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(f"{path.name}:{number}", json.loads(line)["conversations"]) for number, line in enumerate(lines, 1)]


def text_of(turns: list[dict[str, str]], speaker: str = "") -> str:
    """Return the text of all turns, or of one speaker's turns, as one string."""
    return " ".join(turn["value"] for turn in turns if speaker in ("", turn["from"]))


def trigrams(text: str) -> set[tuple[str, ...]]:
    """Return the word 3-grams of a text; a shorter text is one gram of its own."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def jaccard(left: set[tuple[str, ...]], right: set[tuple[str, ...]]) -> float:
    """Return the share of common members of two sets."""
    return len(left & right) / len(left | right)


def check(folder: Path) -> list[str]:
    """Print the counts and the largest similarities; return every problem found."""
    paths = [path for path in sorted(folder.glob("*.jsonl")) if path.name != "held_out.jsonl"]
    training = [row for path in paths for row in read_rows(path)]
    held_out = read_rows(folder / "held_out.jsonl")
    questions = yaml.safe_load((folder / "questions.yaml").read_text(encoding="utf-8"))
    multi_turn = sum(len(turns) > 2 for _, turns in training)
    print(f"{len(training)} training rows, {multi_turn} multi-turn")
    print(f"{len(held_out)} held-out rows, {len(questions)} questions")
    problems = []
    if len(training) < MIN_ROWS:
        problems.append(f"{len(training)} training rows, need {MIN_ROWS}")
    if multi_turn < MIN_MULTI_TURN * len(training):
        problems.append(f"{multi_turn} multi-turn rows of {len(training)}, need {MIN_MULTI_TURN:.0%}")
    seen: dict[str, str] = {}
    for place, turns in training:
        asked = " ".join(text_of(turns, "human").lower().split())
        if seen.setdefault(asked, place) != place:
            problems.append(f"{place} asks the same as {seen[asked]}: {asked}")
    whole = [(place, trigrams(text_of(turns))) for place, turns in training]
    turns_asked = [(place, trigrams(t["value"])) for place, turns in training for t in turns if t["from"] == "human"]
    rows = [(place, text_of(turns), whole) for place, turns in held_out]
    asks = [(f"question {n}", q["question"], whole + turns_asked) for n, q in enumerate(questions, 1)]
    for kind, group in (("held-out row", rows), ("question", asks)):
        top = (0.0, "none", "none")
        for place, text, others in group:
            grams = trigrams(text)
            score, other = max((jaccard(grams, theirs), name) for name, theirs in others)
            top = max(top, (score, place, other))
            if score >= MAX_SIMILARITY:
                problems.append(f"{place} is too close to {other} ({score:.2f}): {text}")
        print(f"largest similarity of a {kind}: {top[0]:.3f} ({top[1]} and {top[2]})")
    return problems


if __name__ == "__main__":
    found = check(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    print("\n".join(found) or "demo data: all checks passed")
    sys.exit(1 if found else 0)
