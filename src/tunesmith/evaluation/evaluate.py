"""VERB evaluate: the GGUF answers the prompts on the CPU, timed; so does its untouched base at the same type."""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith import errors
from tunesmith.console import progress, say
from tunesmith.decides import evaluation_needs, read_prompts
from tunesmith.errors import ResourceError
from tunesmith.files import commit_folder, fingerprint
from tunesmith.machine import processor, versions
from tunesmith.recipe import Recipe
from tunesmith.release.export import export_base
from tunesmith.runs import Record, Run, commit_stage, read_record
from tunesmith.weights.locate import LocatedBase, cache_folder

ANSWERS, SCORES = "answers.jsonl", "scores.json"
SPEEDS = ("first_token_s", "prompt_per_s", "tokens_per_s")


def evaluate(recipe: Recipe, run: Run, base: LocatedBase) -> tuple[Record, bool]:
    """Answer the prompts with the run's GGUF and with its base; answers and scores go to evaluation/.

    The base's answers are kept in the cache, by digest, prompts, settings and processor. Losses are those of the
    training. Raises ResourceError if the answering process dies.
    """
    settings, inputs = evaluation_needs(recipe, run, base.digest)
    trained = read_record(run.adapter)
    counts = trained.counts if trained else {}

    def work(draft: Path) -> dict[str, Any]:
        answer_prompts(recipe, run.gguf_file(recipe.name, recipe.evaluate.gguf), draft)
        kept = _base_answers(recipe, base, settings)
        shutil.copy(kept / ANSWERS, draft / f"base-{ANSWERS}")
        shutil.copy(kept / SCORES, draft / f"base-{SCORES}")
        return {
            "tuned": _add_losses(draft / SCORES, counts, ""),
            "base": _add_losses(draft / f"base-{SCORES}", counts, "base_"),
        }

    return commit_stage(run.evaluation, settings, inputs, work)


def answer_prompts(recipe: Recipe, gguf: Path, folder: Path) -> None:
    """Write answers.jsonl and scores.json (medians over the prompts; seconds, tokens/s, bytes) to `folder`."""
    config = recipe.evaluate
    job = {
        "gguf": str(gguf),
        "prompts": read_prompts(recipe),
        "system": recipe.chat.system,
        "threads": config.threads,
        "max_tokens": config.max_tokens,
    }
    *answers, end = _answered(job, gguf.stem)
    scores: dict[str, Any] = {name: round(statistics.median(a[name] for a in answers), 3) for name in SPEEDS}
    scores |= end | {
        "file_bytes": gguf.stat().st_size,
        "gguf": config.gguf,
        "threads": config.threads,
        "processor": processor(),
        "answers": len(answers),
        "stopped": sum(answer["stopped"] for answer in answers),
    }
    (folder / ANSWERS).write_text("".join(f"{json.dumps(answer, ensure_ascii=False)}\n" for answer in answers))
    (folder / SCORES).write_text(json.dumps(scores, indent=1) + "\n")
    say(
        f"{gguf.stem}: first token {scores['first_token_s']:.2f} s, {scores['tokens_per_s']:.0f} tokens/s, "
        f"{scores['peak_memory_bytes'] / 1e6:.0f} MB; {scores['stopped']} of {len(answers)} answers ended by themselves"
    )


def _answered(job: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Lines of the worker process: an answer each, then its peak memory."""
    command = [sys.executable, "-m", "tunesmith.evaluation.worker"]
    with (
        progress(f"answers of {name}", len(job["prompts"]), unit="prompts") as advance,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8") as worker,
    ):
        assert worker.stdin and worker.stdout
        with worker.stdin:
            json.dump(job, worker.stdin)
        try:
            for text in worker.stdout:
                line = json.loads(text)
                if "error" in line:
                    kind, what, fix, where = line["error"]
                    raise getattr(errors, kind)(what, fix=fix, where=where)
                advance(1 if "text" in line else 0, "")
                yield line
        finally:
            worker.kill()  # nothing where it has ended; else it would go on without us
    if worker.returncode:
        what = f"the process that answers with {name} ended with code {worker.returncode}"
        raise ResourceError(what, fix="free some memory, or set evaluate.gguf to a smaller type")


def _base_answers(recipe: Recipe, base: LocatedBase, settings: dict[str, Any]) -> Path:
    """Folder with the answers of the untouched base, made once for each base, settings and processor."""
    machine = [processor(), versions()["xllamacpp"]]
    folder = cache_folder() / "base-evaluation"
    folder /= fingerprint([base.digest, settings, recipe.data.date, read_prompts(recipe), machine])
    if not folder.exists():
        gguf = export_base(base, recipe.evaluate.gguf, recipe.chat, recipe.data.date)
        commit_folder(folder, lambda draft: answer_prompts(recipe, gguf, draft))
    return folder


def _add_losses(path: Path, counts: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Add the training's measurements on the held-out rows to a file of scores; returns the scores."""
    scores: dict[str, Any] = json.loads(path.read_text())
    scores |= {name: counts.get(prefix + name) for name in ("held_out_loss", "bits_per_byte")}
    scores["bits_per_byte_definition"] = counts.get("bits_per_byte_definition", 1)  # version 0.1 named none
    path.write_text(json.dumps(scores, indent=1) + "\n")
    return scores
