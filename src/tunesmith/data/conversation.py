"""The types that flow from the readers to the tokens."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, and where they were read: "file:line", or "data set row N"."""

    turns: tuple[Turn, ...]
    where: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not used, and why."""

    where: str
    reason: str
