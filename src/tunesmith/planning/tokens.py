"""Tokens of the first rows: counted with the base's tokenizer, or guessed from their letters where it is not here."""

import math
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.conversation import Conversation
from tunesmith.errors import BaseError
from tunesmith.gguf.read import convert
from tunesmith.gguf.supported import supported
from tunesmith.planning.look import Count, letters_of
from tunesmith.recipe import Recipe
from tunesmith.tokens.mask import Refused, encode_all
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.builtin import SCHEME
from tunesmith.weights.locate import LocatedBase, at_hand, is_local, small_files

LETTERS_PER_TOKEN = 4
"""Of English with the tokenizers of today's models; other languages have fewer."""


@dataclass(frozen=True)
class Tokens:
    """How tokens are counted, and what of the base is on this machine."""

    count: Count
    guessed_because: str = ""
    """Why they are guessed; empty where the base's own tokenizer counts them."""
    folder: Path | None = None
    """Where the base's small files are: its configuration and tokenizer."""
    base: LocatedBase | None = None
    """The whole base; None where its weights are not on this machine."""


def tokens_of(recipe: Recipe) -> Tokens:
    """The way to count a recipe's tokens. Weights are not fetched.

    Raises BaseError for a base on this machine that cannot be used, DataError or RecipeError for a template that
    cannot be used with this recipe.
    """
    try:
        folder = small_files(recipe.base, convert)
    except BaseError as error:
        if is_local(recipe.base) and not recipe.base.startswith(SCHEME):
            raise
        return Tokens(_guess, guessed_because=error.what)
    supported(folder, recipe=recipe)
    tokenizer = load_tokenizer(folder)

    def count(rows: list[Conversation]) -> list[int | str]:
        data = recipe.data
        found = encode_all(tokenizer, rows, system=recipe.chat.system, date=data.date, train_on=data.train_on)
        return [item.reason if isinstance(item, Refused) else len(item.ids) for item in found]

    return Tokens(count, folder=folder, base=at_hand(recipe.base, folder, convert))


def _guess(rows: list[Conversation]) -> list[int | str]:
    return [math.ceil(letters_of(row) / LETTERS_PER_TOKEN) for row in rows]
