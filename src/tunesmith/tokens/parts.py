"""Conversations longer than `max_length`: cut, dropped, or split into parts that begin with a question each."""

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.data.conversation import Conversation
from tunesmith.recipe import Recipe
from tunesmith.tokens.mask import CUT, TOO_LONG, Encoded, Refused, encode_all
from tunesmith.tokens.sent import ChatTokenizer

Part = tuple[Conversation, Encoded | Refused]
SPLIT = "split after an answer, as the whole is longer than max_length"
LEFT_OUT = "question and answer longer than max_length left out of a conversation that was split"


def encode_parts(tokenizer: ChatTokenizer, batch: Sequence[Conversation], recipe: Recipe) -> list[Part]:
    """Each conversation with its tokens, or why it has none; with data.too_long split its parts in its place."""
    data, splits = recipe.data, recipe.data.too_long == "split"
    parts: list[list[Part]] = [[] for _ in batch]
    left = list(enumerate(batch))
    while left:
        found = encode_all(
            tokenizer, [row for _, row in left], system=recipe.chat.system, date=data.date, train_on=data.train_on,
            max_length=recipe.train.max_length, too_long=data.too_long,
        )  # fmt: skip
        rests = []
        for (number, row), item in zip(left, found, strict=True):
            rest = _rest_of(row, item) if splits else None
            parts[number].append((row, _as_part(item) if rest else item))
            if rest:
                where = f"{batch[number].where}, part {len(parts[number]) + 1}"
                rests.append((number, replace(rest, where=where)))
        left = rests
    return [part for made in parts for part in _kept(made)]


def _rest_of(row: Conversation, item: Encoded | Refused) -> Conversation | None:
    """What comes after a part, from the next question on, under the same system prompt; None if no answer does."""
    if isinstance(item, Encoded):
        end = item.end
    elif item.reason == TOO_LONG:
        end = next((number for number, turn in enumerate(row.turns, 1) if turn.role == "assistant"), len(row.turns))
    else:
        return None
    left = row.turns[end:]
    asked = next((number for number, turn in enumerate(left) if turn.role == "user"), len(left))
    system = row.turns[:1] if row.turns[0].role == "system" else ()
    rest = left[asked:]
    return replace(row, turns=(*system, *rest)) if any(turn.role == "assistant" for turn in rest) else None


def _as_part(item: Encoded | Refused) -> Encoded | Refused:
    if isinstance(item, Refused):
        return item
    return replace(item, changes=tuple(SPLIT if change == CUT else change for change in item.changes))


def _kept(parts: list[Part]) -> list[Part]:
    """The parts that have tokens, where there are any; what was left out of the row is noted on the first of them."""
    made = [(row, item) for row, item in parts if isinstance(item, Encoded)]
    if not made:
        return parts[:1]
    left_out = [LEFT_OUT for _, item in parts if isinstance(item, Refused) and item.reason == TOO_LONG]
    row, first = made[0]
    return [(row, replace(first, changes=(*first.changes, *left_out))), *made[1:]]
