"""VERB doctor: what works on this machine, each thing tried, and what a recipe needs of it and lacks."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith import machine
from tunesmith.boundary import CACHE
from tunesmith.doctoring.finding import HEADINGS, Finding, as_json_text, lines_of
from tunesmith.doctoring.host import host
from tunesmith.doctoring.tries import INSTALL, Try, each_tried, tried
from tunesmith.errors import ResourceError
from tunesmith.recipe import Recipe
from tunesmith.runs import Run

TRIES = "tunesmith.doctoring"
LLAMA = "llama.cpp"
Print = Callable[[str], None]
REINSTALL = "install tunesmith again, or see what its packages need with `pip check`"
WRITES = ("write", "fineGrained", "fine-grained", "admin")
TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Asked:
    """What doctor is asked to look at beside the machine."""

    recipe: Recipe
    run: Run


def doctor(asked: Asked | None, as_json: bool, show: Print, width: int = 80) -> int:
    """Print every finding as it is made, and a verdict; the exit code: 7 where the recipe cannot run here, else 0."""
    findings, group = list[Finding](), ""
    for finding in findings_for(asked):
        findings.append(finding)
        if as_json:
            continue
        if finding.group != group:
            show(f"{chr(10) * bool(group)}{_heading(finding, asked)}")
            group = finding.group
        show("\n".join(lines_of(finding, width)))
    lacking = what_lacks(findings, asked.recipe) if asked else []
    if as_json:
        show(as_json_text(findings, not lacking if asked else None))
    else:
        show(f"\n{_verdict(findings, lacking, asked)}")
    return ResourceError.exit_code if lacking else 0


def _heading(finding: Finding, asked: Asked | None) -> str:
    name = f" {asked.recipe.name}" if asked and finding.group == "recipe" else ""
    return f"{HEADINGS[finding.group]}{name and f':{name}'}"


def findings_for(asked: Asked | None) -> Iterator[Finding]:
    """All findings, in the order in which they are shown: first what is known at once."""
    # the network's answers are waited for while the processor is measured
    hub = _beside(partial(tried, f"{TRIES}.hub_tries", {}, Try("hub", "Hub", _nothing, INSTALL)))
    needs = _beside(partial(_needs, asked)) if asked else None
    yield from host()
    yield from each_tried(f"{TRIES}.engine_tries", {}, Try("machine", LLAMA, _nothing, REINSTALL))
    yield from each_tried(f"{TRIES}.folder_tries", {"places": _places(asked)}, Try("disk", "disks", _nothing))
    wanted, numbers = needs.result() if needs else [], list[Finding]()
    for finding in each_tried(f"{TRIES}.torch_tries", _job(asked, wanted), Try("numbers", "torch", _nothing, INSTALL)):
        numbers.append(finding)
        if finding.group != "recipe":
            yield finding
    yield from hub.result()
    yield from wanted
    if asked:
        yield from _training(asked.recipe, numbers)
        yield from _publishing(asked.recipe, hub.result())


def _beside(work: Callable[[], list[Finding]]) -> Future[list[Finding]]:
    """Do it in a thread that no Ctrl+C waits for: the processes that it has started end with this one."""
    future = Future[list[Finding]]()

    def do() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return future


def _nothing() -> Finding:
    raise NotImplementedError  # a try that names what could not begin, and is not done


def _places(asked: Asked | None) -> dict[str, str]:
    """The folders that are written to."""
    cache = os.path.expanduser(os.environ.get("TUNESMITH_CACHE") or CACHE)
    return {"run folder": str(asked.run.path if asked else Path("runs")), "cache": cache}


def _needs(asked: Asked) -> list[Finding]:
    job = {"recipe": asked.recipe.model_dump(mode="json"), "run": str(asked.run.path)}
    return tried(f"{TRIES}.needs", job, Try("recipe", "base and data", _nothing, INSTALL))


def _job(asked: Asked | None, wanted: Sequence[Finding]) -> dict[str, Any]:
    """What is to be tried with torch; the base where it is on this machine."""
    base = next((each.facts["folder"] for each in wanted if each.name == "base" and "folder" in each.facts), None)
    recipe = asked.recipe.model_dump(mode="json") if asked else None
    return {"gpu": machine.gpu(), "recipe": recipe, "base": base}


def _training(recipe: Recipe, numbers: Sequence[Finding]) -> Iterator[Finding]:
    """Whether the device that trains computes in the numbers that are asked for."""
    memory = next((each for each in numbers if each.name == "memory"), None)
    dead = next((each for each in numbers if each.name == "torch" and each.bad), None)
    if dead and len(numbers) == 1:  # nothing else could be tried
        yield Finding("recipe", "training", "lacks", f"torch {dead.says}", dead.fix)
        return
    on = "GPU 0" if any(each.name.endswith("on GPU 0") for each in numbers) else "CPU"
    precision = recipe.train.precision
    if precision == "auto":
        precision = memory.facts.get("precision", precision) if memory else precision
    found = next((each for each in numbers if each.name == f"{precision} on {on}"), None)
    asked = f"train.precision is {recipe.train.precision}"
    if found is None:
        says = f"{asked}: decided when training begins on the {on}"
        yield Finding("recipe", "precision", "note", says)
    else:
        yield replace(found, group="recipe", name="precision", says=f"{asked}; {found.name}: {found.says}")
    if memory:
        yield memory


def _publishing(recipe: Recipe, hub: Sequence[Finding]) -> Iterator[Finding]:
    """Whether the token may publish where the recipe says publish.to."""
    if not recipe.publish.to:
        return
    token = next((each for each in hub if each.name == "token"), None)
    owner, facts = recipe.publish.to.partition("/")[0], token.facts if token else {}
    fix = f"set the environment variable HF_TOKEN to one that may write, from {TOKENS}; or say publish.to: null"
    problem = ""
    if not facts.get("set"):
        problem = "no token of the Hub is set"
    elif not facts.get("valid"):
        problem = f"the token is {token.says}" if token else ""
    elif facts["role"] not in WRITES:
        problem = f"the token of {facts['user']} may only {facts['role']}"
    elif owner not in facts["accounts"]:
        problem = f"the token is of {facts['user']}, who is neither {owner} nor in an organisation of that name"
    if problem:
        yield Finding("recipe", "publishing", "lacks", f"publish.to is {recipe.publish.to}, and {problem}", fix)
    else:
        yield Finding("recipe", "publishing", "ok", f"to {recipe.publish.to}, with the token of {facts['user']}")


def what_lacks(findings: Sequence[Finding], recipe: Recipe) -> list[str]:
    """The names of what keeps a recipe from running here.

    Numbers and the Hub count by what the recipe needs of them, which has findings of its own.
    """
    unneeded = () if recipe.export.gguf else (LLAMA,)
    needed = [each for each in findings if each.group in ("machine", "disk", "recipe") and each.name not in unneeded]
    return [finding.name for finding in needed if finding.bad]


def _verdict(findings: Sequence[Finding], lacking: Sequence[str], asked: Asked | None) -> str:
    if asked:
        cannot = f"cannot run here; it lacks: {', '.join(dict.fromkeys(lacking))}"
        return f"recipe {asked.recipe.name} {cannot if lacking else 'can run here'}"
    bad = [finding.name for finding in findings if finding.bad]
    return f"of what was tried, these lack or crashed: {', '.join(bad)}" if bad else "all that was tried works"
