"""Ask the demo's fixed questions on tunesmith: the fine-tuned model must know at least 7 of 10, its base at most 2.

Both answer greedily from their Q8_0 GGUF. An answer counts if it holds what was asked for and nothing wrong
(recipes/demo-data/questions.yaml). Usage: python benchmarks/demo_questions.py [RUN [STARTED]]

Given when the whole demo started, in seconds since 1970, the last line is how long it took and how fast it trained.
"""

import re
import sys
import time
from pathlib import Path

import yaml

from tunesmith.gguf.read import convert
from tunesmith.inference.engine import Engine
from tunesmith.recipe_file import read_recipe
from tunesmith.record import read_record
from tunesmith.release.base_gguf import export_base
from tunesmith.runs import Run
from tunesmith.weights.locate import locate_base

QUESTIONS = Path(__file__).resolve().parent.parent / "recipes" / "demo-data" / "questions.yaml"
NEEDED, ALLOWED = 7, 2
MAX_TOKENS = 120


def is_right(answer: str, question: dict[str, list[str]]) -> bool:
    """Whether one pattern of `answer` matches and none of `wrong` does."""

    def found(patterns: list[str]) -> bool:
        return any(re.search(pattern, answer, re.IGNORECASE) for pattern in patterns)

    return found(question["answer"]) and not found(question["wrong"])


def ask(gguf: Path, system: str | None, threads: int) -> list[str]:
    """The greedy answers of one GGUF file, each in a conversation of its own."""
    opening = [{"role": "system", "content": system}] if system else []
    with Engine(gguf, threads=threads, context=1024) as engine:
        return [
            engine.chat([*opening, {"role": "user", "content": question["question"]}], max_tokens=MAX_TOKENS).text
            for question in yaml.safe_load(QUESTIONS.read_text())
        ]


def duration(run: Run, seconds: float) -> str:
    """How long the demo took, beside the speed of its training steps: the seconds depend on the machine."""
    record = read_record(run.adapter)
    assert record is not None, f"{run.adapter} has no record.json"
    return f"demo: {seconds:.0f} s, trained at {record.counts['tokens_per_s']:.0f} tokens/s"


def main(folder: Path, started_s: float | None = None) -> int:
    """Print both scores and all answers; 0 if the demo did what it promises."""
    run = Run(folder)
    recipe = read_recipe(run.recipe)
    questions = yaml.safe_load(QUESTIONS.read_text())
    files = {
        "fine-tuned": run.gguf_file(recipe.name, "Q8_0"),
        "base": export_base(locate_base(recipe.base, convert), "Q8_0", recipe.chat, recipe.data.date),
    }
    answers = {who: ask(gguf, recipe.chat.system, recipe.evaluate.threads) for who, gguf in files.items()}
    right = {who: [is_right(a, q) for a, q in zip(given, questions, strict=True)] for who, given in answers.items()}
    for number, question in enumerate(questions):
        print(f"{number + 1}. {question['question']}")
        for who, given in answers.items():
            print(f"   {who} ({'right' if right[who][number] else 'wrong'}): {' '.join(given[number].split())[:300]}")
    scores = {who: sum(marks) for who, marks in right.items()}
    print(f"fixed questions: fine-tuned {scores['fine-tuned']} of {len(questions)}, base {scores['base']}")
    passed = scores["fine-tuned"] >= NEEDED and scores["base"] <= ALLOWED
    if not passed:
        print(f"expected at least {NEEDED} and at most {ALLOWED}", file=sys.stderr)
    if started_s is not None:
        print(duration(run, time.time() - started_s))
    return 0 if passed else 1


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(Path(given[0] if given else "runs/demo"), float(given[1]) if len(given) > 1 else None))
