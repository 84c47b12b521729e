"""What evaluate takes from a run's rows: held-out questions to ask, and prompts that training has seen."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.dedup import exact, words
from tunesmith.data.split import HELD_OUT, TRAIN
from tunesmith.recipe import Dedup
from tunesmith.tokens.messages import messages_of
from tunesmith.tokens.texts import texts_of

MOST = 10


@dataclass(frozen=True)
class Asked:
    """The question of a held-out row whose answer is the first that is trained on, and that answer."""

    where: str
    messages: list[dict[str, str]]
    """What the row has before the answer: its system prompt, if any, and the question as the last message."""
    expected: str

    @property
    def question(self) -> str:
        """What the user says."""
        return self.messages[-1]["content"]


def pick_asked(data: Path) -> list[Asked]:
    """Up to ten held-out rows that a chat can ask, spread evenly; the same ones every time. None without texts."""
    found = []
    for row in texts_of(data, HELD_OUT):
        turns = row.turns
        first = next((i for i, turn in enumerate(turns) if turn.role == "assistant" and turn.trained), 0)
        if first and turns[first - 1].role == "user" and row.is_plain:
            found.append(Asked(row.where, messages_of(turns[:first]), turns[first].text))
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
    for row in texts_of(data, TRAIN):
        for turn in row.turns:
            if turn.role == "user":
                for prompt in wanted.get(form(turn.text) or exact(turn.text), ()):
                    found.setdefault(prompt, row.where)
    return found
