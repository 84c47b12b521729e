"""What evaluate takes from a run's rows: held-out questions to ask, and prompts that training has seen."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.dedup import exact, words
from tunesmith.data.split import HELD_OUT, TRAIN
from tunesmith.recipe import Dedup
from tunesmith.tokens.texts import texts_of

MOST = 10


@dataclass(frozen=True)
class Asked:
    """The first question of a held-out row, and the answer that the data give."""

    where: str
    messages: list[dict[str, str]]
    """The row's system prompt, if it has one, and the question."""
    expected: str

    @property
    def question(self) -> str:
        """What the user says."""
        return self.messages[-1]["content"]


def pick_asked(data: Path) -> list[Asked]:
    """Up to ten held-out rows, spread evenly over all; the same ones every time. None where the rows have no texts."""
    found = []
    for where, messages in texts_of(data, HELD_OUT):
        first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), 0)
        if first and messages[first - 1]["role"] == "user":
            found.append(Asked(where, messages[:first], messages[first]["content"]))
    count = min(MOST, len(found))
    return [found[round(i * (len(found) - 1) / max(count - 1, 1))] for i in range(count)]


def seen_in_training(data: Path, prompts: Sequence[str], dedup: Dedup) -> dict[str, str]:
    """Prompts that a user asks in a training row -> where that row was read.

    Those known at prepare drove such rows out; these were named later.
    """
    form = words if dedup == "words" else exact
    wanted, found = defaultdict[str, list[str]](list), dict[str, str]()
    for prompt in prompts:
        wanted[form(prompt) or exact(prompt)].append(prompt)  # signs alone have no words
    for where, messages in texts_of(data, TRAIN):
        for message in messages:
            if message["role"] == "user":
                text = message["content"]
                for prompt in wanted.get(form(text) or exact(text), ()):
                    found.setdefault(prompt, where)
    return found
