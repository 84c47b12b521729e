"""VERB evaluate: the GGUF answers the prompts on the CPU, timed; so does its untouched base at the same type."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.console import progress, say, warn
from tunesmith.decides import evaluation_needs, read_prompts
from tunesmith.evaluation.rows import Asked, pick_asked, seen_in_training
from tunesmith.evaluation.speeds import session, summary
from tunesmith.files import fingerprint
from tunesmith.inference.child import Child
from tunesmith.inference.threads import warn_of_threads
from tunesmith.json_file import json_line, json_lines
from tunesmith.machine import processor, versions
from tunesmith.recipe import Recipe
from tunesmith.record import Record
from tunesmith.release.base_gguf import export_base
from tunesmith.runs import Run, commit_stage
from tunesmith.weights.cache import cache_folder, made_once
from tunesmith.weights.locate import LocatedBase

ANSWERS, SCORES, HELD_OUT = "answers.jsonl", "scores.json", "held-out.jsonl"


def evaluate(recipe: Recipe, run: Run, base: LocatedBase) -> tuple[Record, bool]:
    """Answer the prompts, and ten held-out questions, with the run's GGUF and with its base, into evaluation/.

    The base's answers are kept in the cache, by digest, prompts, settings and processor. Prompts that a training row
    asks are marked: their answers show memory. Raises ResourceError if the answering process dies.
    """
    settings, inputs = evaluation_needs(recipe, run, base.digest)

    def work(draft: Path) -> dict[str, Any]:
        warn_of_threads(recipe.evaluate.threads, "evaluate.threads")
        asked, prompts = pick_asked(run.data), read_prompts(recipe)
        answer_prompts(recipe, run.gguf_file(recipe.name, recipe.evaluate.gguf), draft, asked)
        kept = _base_answers(recipe, base, settings, asked)
        for name in (ANSWERS, SCORES, HELD_OUT):
            shutil.copy(kept / name, draft / f"base-{name}")
        if seen := seen_in_training(run.data, prompts, recipe.data.dedup):
            _mark_seen(draft, seen)
        return {
            "tuned": json.loads((draft / SCORES).read_text()),
            "base": json.loads((draft / f"base-{SCORES}").read_text()),
        }

    return commit_stage(run.evaluation, settings, inputs, work)


def answer_prompts(recipe: Recipe, gguf: Path, folder: Path, asked: Sequence[Asked] = ()) -> None:
    """Write answers.jsonl, held-out.jsonl and scores.json to `folder`: medians and spread; seconds, tokens/s, bytes.

    Those of the prompts alone are timed.
    """
    config = recipe.evaluate
    job = {
        "gguf": str(gguf),
        "prompts": read_prompts(recipe),
        "system": recipe.chat.system,
        "threads": config.threads,
        "max_tokens": config.max_tokens,
        "rows": [{"messages": row.messages, "expected": row.expected} for row in asked],
    }
    measured = session(config.threads)
    *lines, end = _answered(job, gguf.stem)
    answers = [line for line in lines if "prompt" in line]
    held_out = [
        {"where": row.where, "question": row.question, "expected": row.expected, **answer}
        for row, answer in zip(asked, (line for line in lines if "row" in line), strict=True)
        if "too_long" not in answer
    ]
    scores = summary(answers) | end | measured
    scores |= {
        "file_bytes": gguf.stat().st_size,
        "gguf": config.gguf,
        "answers": len(answers),
        "stopped": sum(answer["stopped"] for answer in answers),
    }
    _write_lines(folder / ANSWERS, answers)
    _write_lines(folder / HELD_OUT, held_out)
    (folder / SCORES).write_text(json.dumps(scores, indent=1) + "\n")
    say(
        f"{gguf.stem}: first token {scores['first_token_s']:.2f} s, {scores['tokens_per_s']:.0f} tokens/s, "
        f"{scores['peak_memory_bytes'] / 1e6:.0f} MB; {scores['stopped']} of {len(answers)} answers ended by themselves"
    )
    if asked:
        left_out = len(asked) - len(held_out)
        more = f"; {left_out} longer than the context left out" if left_out else ""
        say(f"{gguf.stem}: {len(held_out)} held-out questions answered in {scores['held_out_s']:.1f} s{more}")


def _answered(job: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Lines of the worker process: an answer each, then its peak memory."""
    with (
        progress(f"answers of {name}", len(job["prompts"]) + len(job["rows"]), unit="questions") as advance,
        contextlib.closing(Child("tunesmith.evaluation.worker", job, name)) as worker,
    ):
        for line in worker:
            advance(1 if "text" in line else 0, "")
            yield line


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(map(json_line, lines)), encoding="utf-8")


def _mark_seen(folder: Path, seen: dict[str, str]) -> None:
    """Mark the answers to prompts that training has `seen`, and score them with these and without."""
    for prefix in ("", "base-"):
        answers = [answer for _, answer in json_lines(folder / f"{prefix}{ANSWERS}")[0]]
        marked = [answer | ({"seen": seen[answer["prompt"]]} if answer["prompt"] in seen else {}) for answer in answers]
        unseen = [answer for answer in marked if "seen" not in answer]
        scores = json.loads((folder / f"{prefix}{SCORES}").read_text())
        scores["seen_in_training"] = len(marked) - len(unseen)
        scores["unseen"] = {"answers": len(unseen), "stopped": sum(answer["stopped"] for answer in unseen)}
        scores["unseen"] |= summary(unseen) if unseen else {}
        _write_lines(folder / f"{prefix}{ANSWERS}", marked)
        (folder / f"{prefix}{SCORES}").write_text(json.dumps(scores, indent=1) + "\n")
    prompt, where = next(iter(seen.items()))
    asked = f"1 prompt is asked in training too: {prompt!r} ({where})"
    if len(seen) > 1:
        asked = f"{len(seen)} prompts are asked in training too, as {prompt!r} is ({where})"
    warn(f"{asked}; such answers show memory, not what was learned")


def _base_answers(recipe: Recipe, base: LocatedBase, settings: dict[str, Any], asked: Sequence[Asked]) -> Path:
    """Folder with the answers of the untouched base, made once for each base, settings and processor."""
    machine = [processor(), versions()["xllamacpp"]]
    folder = cache_folder() / "base-evaluation"
    questions = [[row.messages, row.expected] for row in asked]
    folder /= fingerprint([base.digest, settings, recipe.data.date, read_prompts(recipe), machine, questions])

    def answer(draft: Path) -> None:
        answer_prompts(recipe, export_base(base, recipe.evaluate.gguf, recipe.chat, recipe.data.date), draft, asked)

    return made_once(folder, answer)
