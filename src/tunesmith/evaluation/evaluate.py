"""VERB evaluate: the GGUF answers the prompts on the CPU, timed; so does its untouched base at the same type."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.console import progress, say
from tunesmith.decides import evaluation_needs, read_prompts
from tunesmith.evaluation.speeds import session, summary
from tunesmith.files import fingerprint
from tunesmith.inference.child import Child
from tunesmith.inference.threads import warn_of_threads
from tunesmith.machine import processor, versions
from tunesmith.recipe import Recipe
from tunesmith.record import Record
from tunesmith.release.base_gguf import export_base
from tunesmith.runs import Run, commit_stage
from tunesmith.weights.cache import cache_folder, made_once
from tunesmith.weights.locate import LocatedBase

ANSWERS, SCORES = "answers.jsonl", "scores.json"


def evaluate(recipe: Recipe, run: Run, base: LocatedBase) -> tuple[Record, bool]:
    """Answer the prompts with the run's GGUF and with its base; answers and scores go to evaluation/.

    The base's answers are kept in the cache, by digest, prompts, settings and processor. Raises ResourceError if the
    answering process dies.
    """
    settings, inputs = evaluation_needs(recipe, run, base.digest)

    def work(draft: Path) -> dict[str, Any]:
        warn_of_threads(recipe.evaluate.threads, "evaluate.threads")
        answer_prompts(recipe, run.gguf_file(recipe.name, recipe.evaluate.gguf), draft)
        kept = _base_answers(recipe, base, settings)
        shutil.copy(kept / ANSWERS, draft / f"base-{ANSWERS}")
        shutil.copy(kept / SCORES, draft / f"base-{SCORES}")
        return {
            "tuned": json.loads((draft / SCORES).read_text()),
            "base": json.loads((draft / f"base-{SCORES}").read_text()),
        }

    return commit_stage(run.evaluation, settings, inputs, work)


def answer_prompts(recipe: Recipe, gguf: Path, folder: Path) -> None:
    """Write answers.jsonl and scores.json to `folder`: medians and spread; seconds, tokens/s, bytes."""
    config = recipe.evaluate
    job = {
        "gguf": str(gguf),
        "prompts": read_prompts(recipe),
        "system": recipe.chat.system,
        "threads": config.threads,
        "max_tokens": config.max_tokens,
    }
    measured = session(config.threads)
    *answers, end = _answered(job, gguf.stem)
    scores = summary(answers) | end | measured
    scores |= {
        "file_bytes": gguf.stat().st_size,
        "gguf": config.gguf,
        "answers": len(answers),
        "stopped": sum(answer["stopped"] for answer in answers),
    }
    (folder / ANSWERS).write_text(
        "".join(f"{json.dumps(answer, ensure_ascii=False)}\n" for answer in answers), encoding="utf-8"
    )
    (folder / SCORES).write_text(json.dumps(scores, indent=1) + "\n")
    say(
        f"{gguf.stem}: first token {scores['first_token_s']:.2f} s, {scores['tokens_per_s']:.0f} tokens/s, "
        f"{scores['peak_memory_bytes'] / 1e6:.0f} MB; {scores['stopped']} of {len(answers)} answers ended by themselves"
    )


def _answered(job: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Lines of the worker process: an answer each, then its peak memory."""
    with (
        progress(f"answers of {name}", len(job["prompts"]), unit="prompts") as advance,
        contextlib.closing(Child("tunesmith.evaluation.worker", job, name)) as worker,
    ):
        for line in worker:
            advance(1 if "text" in line else 0, "")
            yield line


def _base_answers(recipe: Recipe, base: LocatedBase, settings: dict[str, Any]) -> Path:
    """Folder with the answers of the untouched base, made once for each base, settings and processor."""
    machine = [processor(), versions()["xllamacpp"]]
    folder = cache_folder() / "base-evaluation"
    folder /= fingerprint([base.digest, settings, recipe.data.date, read_prompts(recipe), machine])

    def answer(draft: Path) -> None:
        answer_prompts(recipe, export_base(base, recipe.evaluate.gguf, recipe.chat, recipe.data.date), draft)

    return made_once(folder, answer)
