"""Small wrong changes to the source, each of which a test must notice: `make mutants`.

Each one of mutant_list.py is written into a copy of the repository, where the nearest tests are run and must fail. They
are run once without it before, and must pass: only then does a failure say something.

usage: python tests/mutants.py [--write] [WORD ...]   (only those with all the words; --write: into RESULTS.md)
"""

import datetime
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import pytest
from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
COPIED = (
    "src", "tests", "recipes", "notebooks", "benchmarks", "docs", "README.md", "CHANGELOG.md", "LICENSE",
    "pyproject.toml",
)  # fmt: skip
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
PROCESSES = 2
SPARE_S = 60.0  # a mutant may take this long, and ten times what the tests take without it
PRINTED = "printed"  # file beside a copy
FAILED, OTHER_SOURCE = 1, 9  # pytest's exit code for tests that failed; and for a copy that is not what was tested
FORK = multiprocessing.get_context("forkserver")
PACKAGES = (
    "torch", "transformers", "peft", "pytest", "hypothesis", "pyarrow.parquet", "xllamacpp", "gguf", "typer",
    "matplotlib.pyplot", "playwright.sync_api", "huggingface_hub", "jinja2", "rich.table", "pydantic",
)  # fmt: skip
CHILDREN = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of the tests: two processes on two cores do not wait by spinning."""


@dataclass(frozen=True)
class Outcome:
    """How a mutant's tests ended."""

    mutant: Mutant
    said: str
    """"caught", or what is wrong."""
    by: str = ""
    """The test that failed."""
    seconds: float = 0.0

    @property
    def caught(self) -> bool:
        """Whether a test noticed."""
        return self.said == "caught"


def mutated(mutant: Mutant, source: Path) -> str:
    """The text of the file with the mutant in it. Raises ValueError for a mutant that does not fit it."""
    text = (source / mutant.file).read_text()
    if (found := text.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: its text is {found} times in {mutant.file}, not once: {mutant.old!r}")
    changed = text.replace(mutant.old, mutant.new)
    if changed == text:
        raise ValueError(f"{mutant.name}: it changes nothing")
    compile(changed, mutant.file, "exec")  # SyntaxError is a ValueError's sibling: caught as a fault of the list too
    return changed


def run_tests(copy: Path, tests: Iterable[str], limit_s: float) -> tuple[int | None, str, float]:
    """pytest's exit code (None: out of time), what it printed and the seconds, for tests in a copy."""
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-o", "timeout=0", "--hypothesis-seed=0"]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # packages that are imported already
    arguments += [f"--basetemp={copy.parent / 'tmp'}", *(f"tests/{test}" for test in tests)]
    started = time.monotonic()
    child = FORK.Process(target=run_pytest, args=(copy, arguments))
    child.start()
    child.join(limit_s)
    code = child.exitcode
    if code is None:
        os.killpg(child.pid, signal.SIGKILL)  # with the servers and children that the tests started
        child.join()
    return code, (copy.parent / PRINTED).read_text(errors="replace"), time.monotonic() - started


def run_pytest(copy: Path, arguments: list[str]) -> None:
    """In a process of its own, with the packages of PACKAGES imported: pytest on a copy, as if it was started there."""
    os.setsid()
    for number, place in ((0, os.devnull), (1, copy.parent / PRINTED), (2, copy.parent / PRINTED)):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(place, flags | (os.O_TRUNC if number == 1 else 0)), number)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy / "src")
    sys.path[:] = [str(copy / "src"), *(path for path in sys.path if Path(path) not in (ROOT / "src", ROOT / "tests"))]
    sys.dont_write_bytecode = True
    import tunesmith

    own = str(tunesmith.__file__).startswith(str(copy))
    sys.exit(pytest.main(arguments) if own else OTHER_SOURCE)


def tried(mutant: Mutant, copy: Path, alone: tuple[int | None, str, float]) -> Outcome:
    """Write the mutant into the copy, run its tests, and take it out again. `alone`: how they ended without it."""
    if alone[0] != 0:
        return Outcome(mutant, f"its tests end with {alone[0]} without it:\n{alone[1][-2000:]}")
    source = copy / "src" / "tunesmith"
    try:
        changed = mutated(mutant, source)
    except (ValueError, SyntaxError) as error:
        return Outcome(mutant, f"no mutant: {error}")
    path = source / mutant.file
    original = path.read_bytes()
    path.write_text(changed)
    try:
        code, printed, seconds = run_tests(copy, mutant.tests, SPARE_S + 10 * alone[2])
    finally:
        path.write_bytes(original)
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", printed, re.MULTILINE)
    if code == FAILED and failed:
        return Outcome(mutant, "caught", failed[1], seconds)
    if code == 0:
        return Outcome(mutant, "SURVIVED", "", seconds)
    reason = "OUT OF TIME" if code is None else f"no result: pytest ended with {code}\n{printed[-2000:]}"
    return Outcome(mutant, reason, "", seconds)


@contextmanager
def copies(number: int) -> Iterator[Queue[Path]]:
    """As many copies of the repository, to be taken and put back."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        free: Queue[Path] = Queue()
        for index in range(number):
            copy = Path(place).resolve() / str(index) / "copy"
            for name in COPIED:
                if (ROOT / name).is_dir():
                    shutil.copytree(
                        ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
                    )
                else:
                    shutil.copy(ROOT / name, copy / name)
            free.put(copy)
        yield free


class Clock:
    """Lines as the work goes on, each with what is left."""

    def __init__(self, tests: dict[tuple[str, ...], int]) -> None:
        """`tests`: each set of tests, and how many mutants it is run for."""
        self.left, self.number, self.known = dict(tests), 0, dict[tuple[str, ...], float]()
        self.total = len(tests) + sum(tests.values())
        self.bare = set(tests)

    def done(self, tests: tuple[str, ...], seconds: float, text: str, *, bare: bool) -> None:
        """One run is over."""
        self.number += 1
        if bare:
            self.bare.discard(tests)
            self.known[tests] = seconds
        else:
            self.left[tests] -= 1
        usual = sum(self.known.values()) / max(1, len(self.known))
        ahead = sum(count * self.known.get(each, usual) for each, count in self.left.items()) + usual * len(self.bare)
        print(
            f"[{self.number} of {self.total}, {ahead / PROCESSES / 60:.0f} min left] {seconds:5.1f} s  {text}",
            flush=True,
        )


def run_all(mutants: list[Mutant]) -> list[Outcome]:
    """Every mutant's outcome, in order; progress is printed."""
    sets = dict.fromkeys(mutant.tests for mutant in mutants)
    clock = Clock({tests: sum(mutant.tests == tests for mutant in mutants) for tests in sets})
    with copies(PROCESSES) as free, ThreadPoolExecutor(PROCESSES) as pool:

        def in_a_copy(work: Callable[[Path], object]) -> object:
            copy = free.get()
            try:
                return work(copy)
            finally:
                free.put(copy)

        def bare(tests: tuple[str, ...]) -> object:
            found = in_a_copy(lambda copy: run_tests(copy, tests, 600.0))
            passed = "pass without a mutant" if found[0] == 0 else f"END WITH {found[0]} WITHOUT A MUTANT"
            clock.done(tests, found[2], f"{' '.join(tests)} {passed}", bare=True)
            return found

        alone = dict(zip(sets, pool.map(bare, sets), strict=True))

        def one(mutant: Mutant) -> Outcome:
            found = in_a_copy(lambda copy: tried(mutant, copy, alone[mutant.tests]))
            clock.done(mutant.tests, found.seconds, f"{found.said.splitlines()[0]}: {mutant.name}", bare=False)
            return found

        return list(pool.map(one, mutants))


def table(outcomes: list[Outcome]) -> str:
    """A line for each, those that were not caught last and whole."""
    lines = [f"{o.mutant.file:<26} {o.mutant.name:<62} {o.seconds:5.1f} s  {o.by}" for o in outcomes if o.caught]
    lines += [f"{o.mutant.file:<26} {o.mutant.name}: {o.said}" for o in outcomes if not o.caught]
    return "\n".join(lines)


def write_results(caught: int, outcomes: list[Outcome], minutes: float) -> None:
    """The section "Mutants" of RESULTS.md, as of today."""
    sys.path.insert(0, str(ROOT / "src"))
    from tunesmith.machine import processor

    files = len({outcome.mutant.file for outcome in outcomes})
    section = (
        "## Mutants\n\n"
        f"`make mutants`: {len(outcomes)} small wrong changes in {files} files (`tests/mutant_list.py`), each written "
        "into a copy, where the nearest tests must fail.\n\n"
        "| date | caught | minutes | processor |\n|---|---|---|---|\n"
        f"| {datetime.date.today()} | {caught} of {len(outcomes)} | {minutes:.1f} | {processor()}, "
        f"{os.cpu_count()} cores |\n"
    )
    text = re.sub(r"\n## Mutants\n.*?(?=\n## |\Z)", "", RESULTS.read_text(), flags=re.DOTALL)
    RESULTS.write_text(text.rstrip("\n") + "\n\n" + section)


def main(arguments: list[str]) -> int:
    """Run the mutants; the exit code is 0 if each was caught."""
    words = [word for word in arguments if word != "--write"]
    chosen = [m for m in MUTANTS if all(w.lower() in f"{m.file} {m.name}".lower() for w in words)]
    if not chosen:
        print("no mutant has these words")
        return 2
    os.environ.update(CHILDREN)  # before the first is forked
    FORK.set_forkserver_preload(list(PACKAGES))  # imported once, and not for each mutant; nothing of ours
    started = time.monotonic()
    outcomes = run_all(chosen)
    minutes = (time.monotonic() - started) / 60
    caught = sum(outcome.caught for outcome in outcomes)
    print(f"\n{table(outcomes)}\n\nmutants: {caught} of {len(outcomes)} caught in {minutes:.1f} min")
    if "--write" in arguments and not words:
        write_results(caught, outcomes, minutes)
    return 0 if caught == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
