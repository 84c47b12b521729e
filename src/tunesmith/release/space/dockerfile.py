"""The steps of a Dockerfile, as far as a Space's needs: read to be done without Docker."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tunesmith.errors import DataError

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
FLAG = re.compile(r"--([a-z-]+)=(\S+)\s+")
ADVICE = "let `tunesmith space` write it, or keep to what it writes"


@dataclass(frozen=True)
class Step:
    """One instruction."""

    word: str
    """In capitals, such as RUN."""
    text: str
    """What follows, without the instruction's own flags."""
    flags: tuple[tuple[str, str], ...]
    """Such as ("chown", "1000:1000")."""
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.word} {self.text}"

    def words(self) -> list[str]:
        """What a JSON form holds, or else the parts between spaces. Raises DataError for a form that is broken."""
        if not self.text.startswith("["):
            return self.text.split()
        try:
            found = json.loads(self.text)
        except ValueError as error:
            raise DataError(f"Dockerfile, {self} is no JSON list", fix=ADVICE) from error
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise DataError(f"Dockerfile, {self} is no list of texts", fix=ADVICE)
        return found


def steps(text: str) -> list[Step]:
    """The instructions in order: comments are left out, lines that end in a backslash go on."""
    return [_step(joined, line) for joined, line in _joined(text)]


def _joined(text: str) -> Iterator[tuple[str, int]]:
    parts: list[str] = []
    begun = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not (line.strip() or parts):
            continue
        begun = begun if parts else number
        parts.append(line.strip().removesuffix("\\").strip())
        if not line.rstrip().endswith("\\"):
            yield " ".join(filter(None, parts)), begun
            parts = []
    if parts:
        yield " ".join(filter(None, parts)), begun


def _step(joined: str, line: int) -> Step:
    word, _, text = joined.partition(" ")
    text, flags = text.strip(), []
    while match := FLAG.match(text):
        flags.append((match[1], match[2]))
        text = text[match.end() :]
    return Step(word.upper(), text, tuple(flags), line)


def filled(text: str, variables: Mapping[str, str]) -> str:
    """A text with $NAME and ${NAME} as ENV has set them; a name that is not set is empty."""
    return VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def settings(step: Step) -> dict[str, str]:
    """What an ENV line sets: NAME=value, or NAME="a value"."""
    found = re.findall(r'(\w+)=(?:"([^"]*)"|(\S*))', step.text)
    return {name: quoted or plain for name, quoted, plain in found}


def command(found: list[Step]) -> list[str]:
    """What the container starts: the last CMD. Raises DataError where there is none."""
    starts = [step for step in found if step.word == "CMD"]
    if not starts:
        raise DataError("the Dockerfile has no CMD, so the Space starts nothing", fix=ADVICE)
    return starts[-1].words()


def port_of(words: list[str]) -> int:
    """The port that a command is told. Raises DataError where it is told none."""
    found = dict(itertools.pairwise(words)).get("--port", "")
    if not found.isdigit():
        raise DataError(f"the CMD of the Dockerfile names no --port: {' '.join(words)}", fix=ADVICE)
    return int(found)
