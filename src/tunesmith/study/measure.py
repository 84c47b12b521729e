"""One measuring run for all candidates of a comparison: `compare --measure`.

The engines of all are loaded together and answer in turn, prompt by prompt, so that whatever else the machine does
falls on all of them alike; each round has new processes, because where a process's memory happens to lie is worth some
per cent. What is left is in the spread.
"""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.console import progress
from tunesmith.decides import as_begun, kept_recipe, read_prompts
from tunesmith.errors import RecipeError, ResourceError, ResumeError
from tunesmith.evaluation.speeds import session, summary
from tunesmith.gguf.read import convert
from tunesmith.inference.child import Child
from tunesmith.machine import free_memory_bytes
from tunesmith.recipe import Recipe
from tunesmith.release.base_gguf import export_base
from tunesmith.runs import Run
from tunesmith.study.named import BASE, first_run, named_once
from tunesmith.weights.locate import locate_base

ROUNDS = 3
PROMPTS, TOKENS = 10, 32  # of each round: 30 answers a candidate, at 90 tokens/s 15 s
ENGINE_BYTES = 300_000_000  # of a process beside its weights: 190 MB for 135 million parameters with 4,096 positions


def measure_speeds(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Speeds of every candidate (a run folder, or "base"), by its name: medians, spread, peak memory, session.

    Prompts and threads are those of the first run. Raises ResumeError for a run without its GGUF file, ResourceError
    where the engines do not fit into memory together.
    """
    names = named_once(names)
    first = _recipe(first_run(names))
    files = {name: _file(first_run(names) if name == BASE else name, name == BASE) for name in names}
    _check_memory([file for file, _ in files.values()])
    prompts = read_prompts(first)[:PROMPTS]
    jobs = {
        name: {
            "gguf": str(file), "prompts": prompts, "system": recipe.chat.system, "threads": first.evaluate.threads,
            "max_tokens": TOKENS, "in_turn": True,
        }
        for name, (file, recipe) in files.items()
    }  # fmt: skip
    where = session(first.evaluate.threads)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    peaks = dict.fromkeys(names, 0)
    with progress("measuring all in turn", ROUNDS * len(prompts), unit="prompts") as advance:
        for number in range(ROUNDS):
            for name, lines in _one_round(jobs, number, advance).items():
                answers[name] += lines[:-1]
                peaks[name] = max(peaks[name], lines[-1]["peak_memory_bytes"])
    return {
        name: summary(answers[name]) | where | {"peak_memory_bytes": peaks[name], "rounds": ROUNDS} for name in names
    }


def _one_round(jobs: Mapping[str, dict[str, Any]], number: int, advance: Any) -> dict[str, list[dict[str, Any]]]:
    """Every candidate's answers to every prompt, then its memory; who goes first changes with each prompt."""
    names, lines = list(jobs), {name: list[dict[str, Any]]() for name in jobs}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, job in jobs.items():
            worker = Child("tunesmith.evaluation.worker", job, Path(job["gguf"]).stem)
            workers[name] = stack.enter_context(contextlib.closing(worker))
        for worker in workers.values():
            worker.read()  # loaded: while one loads, nothing is timed
        for turn in range(len(jobs[names[0]]["prompts"])):
            for name in _rotated(names, number + turn):
                workers[name].give_turn()
                lines[name].append(_line(workers[name]))
            advance(1, "")
        for name, worker in workers.items():
            lines[name].append(_line(worker))
    return lines


def _line(worker: Child) -> dict[str, Any]:
    line = worker.read()
    assert line is not None, "a worker tells as often as it was asked"
    return line


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]


def _recipe(path: str) -> Recipe:
    run = Run(Path(path))
    run.refuse_none()
    return as_begun(kept_recipe(run), run)


def _file(path: str, of_base: bool) -> tuple[Path, Recipe]:
    """The GGUF file that is measured for a run, or for its base, and the recipe that it answers by."""
    recipe, again = _recipe(path), f"`tunesmith run {shlex.quote(path)}`"
    if of_base:
        base = locate_base(recipe.base, convert)
        return export_base(base, recipe.evaluate.gguf, recipe.chat, recipe.data.date), recipe
    if not recipe.export.gguf:
        fix = f"leave out --measure, or name types in export.gguf in {path}/recipe.yaml and type {again}"
        raise RecipeError(f"{path} has no GGUF file to measure: export.gguf is empty", fix=fix)
    file = Run(Path(path)).gguf_file(recipe.name, recipe.evaluate.gguf)
    if not file.is_file():
        raise ResumeError(f"there is no {file}, whose speed would be measured", fix=f"type {again}")
    return file, recipe


def _check_memory(files: Sequence[Path]) -> None:
    needed = sum(file.stat().st_size + ENGINE_BYTES for file in files)
    if (free := free_memory_bytes()) < needed:
        raise ResourceError(
            f"measuring {len(files)} models in turn needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free",
            fix="compare fewer at a time, or leave out --measure",
        )
