"""A batch of rows as read made into token rows: all that is done to a row before the others are known.

A function of the batch alone, so that it does not matter which process makes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation, Dropped
from tunesmith.data.decontaminate import Prompts
from tunesmith.data.signed import Signed, sign
from tunesmith.recipe import Recipe
from tunesmith.tokens.laps import Laps, lap, timed
from tunesmith.tokens.mask import CUT, NO_SYSTEM, REFUSED, Encoded, Refused
from tunesmith.tokens.parts import encode_parts
from tunesmith.tokens.sent import SentTokenizer
from tunesmith.tokens.spool import Packed, packed
from tunesmith.tokens.tally import Tally, beginning, first_words

Rows = Sequence[Conversation | Dropped]
BEYOND = "a token beyond the base's embeddings"
UNPROVED = {
    NO_SYSTEM: (
        "the chat template takes no system prompt, which {} have",
        "take the system prompts out of these rows, or use a base whose template takes one",
    ),
    REFUSED: ("the chat template refuses {}", "correct these rows as it says, or use another base"),
    BEYOND: (
        "the tokenizer makes tokens that the base has no embeddings for in {}",
        "fetch or save the base and its tokenizer again from one place; or take what makes the token out of these rows",
    ),
    "": (
        "the chat template does not show where the answers are in {}, so what would be trained on is not proved",
        "use another base, or correct its chat template or these rows",
    ),
}
"""Kind, which is the start of the reason to drop a row -> what is wrong where many rows have it, and the fix."""


@dataclass(frozen=True)
class Made:
    """What a batch becomes. Can be sent to another process."""

    packed: Packed
    signed: Signed
    tally: Tally
    laps: Laps


@dataclass(frozen=True)
class Job:
    """What a maker needs to know. Can be sent to another process."""

    recipe: Recipe
    tokenizer: SentTokenizer
    known_ids: int | None
    """Token ids that the base has embeddings for; None: all."""
    asked: Prompts


class Maker:
    """Makes batches into token rows."""

    def __init__(self, job: Job) -> None:
        self.recipe, self.tokenizer, self._known_ids, self._asked = job.recipe, job.tokenizer, job.known_ids, job.asked

    def make(self, rows: Rows) -> Made:
        """Clean, made into tokens and signed; what is dropped is counted. Raises DataError for a template that can
        train nothing.
        """
        tally = Tally(StringIO())
        with timed() as laps:
            with lap("clean"):
                cleaned = self._cleaned(rows, tally)
            with lap("evaluation prompts"):
                unasked = self._not_asked(cleaned, tally)
            encoded = self._encoded(unasked, tally)
            with lap("sign"):
                signed = sign([(row, item.turns) for row, item in encoded], self.recipe.data.dedup)
            with lap("pack"):
                whole = packed(encoded)
        return Made(whole, signed, tally, laps)

    def _cleaned(self, rows: Rows, tally: Tally) -> list[Conversation]:
        """Without those that are broken."""
        found = []
        for row in rows:
            tally.read += 1
            cleaned, changes = clean(row, self.recipe.data.clean) if isinstance(row, Conversation) else (row, [])
            tally.changed.update(changes)
            if isinstance(cleaned, Conversation):
                found.append(cleaned)
            else:
                tally.drop(row.where, cleaned.reason, cleaned.words or _words(row))
        return found

    def _not_asked(self, rows: list[Conversation], tally: Tally) -> list[Conversation]:
        """Without those that hold an evaluation prompt."""
        found = []
        for row, hit in zip(rows, self._asked.hits([row.turns for row in rows]), strict=True):
            if hit:
                reason, prompt = hit
                tally.drop(row.where, reason, first_words(row.turns), beginning(prompt))
            else:
                found.append(row)
        return found

    def _encoded(self, rows: list[Conversation], tally: Tally) -> list[tuple[Conversation, Encoded]]:
        """As tokens, without the rows that the template refuses or the base has no embeddings for."""
        encoded = []
        for row, item in encode_parts(self.tokenizer, rows, self.recipe):
            refused = item if isinstance(item, Refused) else self._beyond(item)
            if refused:
                tally.drop(row.where, refused.reason, first_words(row.turns))
                if refused.detail:
                    kind = next(kind for kind in UNPROVED if refused.reason.startswith(kind))
                    tally.unproved[kind] += 1
                    tally.first_unproved.setdefault(kind, f"{row.where}: {refused.reason}: {refused.detail}"[:600])
            elif isinstance(item, Encoded):
                tally.changed.update(change for change in item.changes if change != CUT)  # of those that are written
                encoded.append((row, item))
        return encoded

    def _beyond(self, item: Encoded) -> Refused | None:
        """Why the base cannot read a row; in training it would be an IndexError, hours later."""
        highest = max(item.ids)
        if self._known_ids is None or highest < self._known_ids:
            return None
        token = self.tokenizer.backend_tokenizer.id_to_token(highest)
        return Refused(BEYOND, f"{token!r} is token {highest}, and the last embedding is that of {self._known_ids - 1}")


def _words(row: Conversation | Dropped) -> str:
    """How a row begins."""
    return first_words(row.turns) if isinstance(row, Conversation) else row.words
