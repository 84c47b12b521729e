"""The types that flow from the readers to the tokens."""

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says."""

    role: Role
    text: str
    trained: bool = True
    """Whether the loss counts this turn; it means something for answers only."""
    reasoning: str = ""
    """What the assistant thought before this answer; not part of `text`."""
    calls: str = ""
    """The tool calls of this answer: JSON, a list of {"name": ..., "arguments": {...}}."""

    def __reduce__(self) -> tuple[Any, ...]:  # for other processes; a frozen class is else unpickled field by field
        return Turn, (self.role, self.text, self.trained, self.reasoning, self.calls)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, and where they were read: "file:line", or "data set row N"."""

    turns: tuple[Turn, ...]
    where: str
    tools: str = ""
    """The tools that the assistant may call: JSON, a list of their schemas."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Conversation, (self.turns, self.where, self.tools)

    @property
    def is_plain(self) -> bool:
        """Whether it is questions and answers alone, as a chat page sends them."""
        odd = (turn.calls or turn.reasoning or turn.role == "tool" for turn in self.turns)
        return not self.tools and not any(odd)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not used, and why."""

    where: str
    reason: str
    words: str = ""
    """How the row begins, where it could be read."""
