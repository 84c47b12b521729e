"""The evaluation prompts in the base's tokens: one that the engine could not answer is found before training."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError

from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe, evaluation_context
from tunesmith.tokens.sent import ChatTokenizer
from tunesmith.tokens.template import render
from tunesmith.weights.small_files import CONFIG, read_json

TWICE = "raise evaluate.max_tokens: evaluate holds twice that"


def refuse_long_prompts(tokenizer: ChatTokenizer, folder: Path, recipe: Recipe, prompts: Sequence[str]) -> None:
    """Raise RecipeError for a prompt that leaves no room for an answer. One that is cut short there is an answer."""
    positions = read_json(folder / CONFIG).get("max_position_embeddings")
    takes = positions if isinstance(positions, int) else sys.maxsize  # llama.cpp gives no conversation more
    holds = min(evaluation_context(recipe.evaluate.max_tokens), takes)
    tokens, number = max((_tokens(tokenizer, recipe, prompt), number) for number, prompt in enumerate(prompts))
    if tokens >= holds:
        own = recipe.evaluate.prompts != "default"
        shorter = "shorten the prompt" if own else "name a YAML file of shorter prompts with evaluate.prompts"
        raise RecipeError(
            f"evaluate.prompts: prompt {number + 1} ({prompts[number][:40]!r}) has {tokens} tokens, and "
            f"{'the base' if holds == takes else 'evaluate'} holds {holds}: there is no room for an answer",
            fix=f"{shorter}, or {'use a base with more positions' if holds == takes else TWICE}",
            where=recipe.evaluate.prompts if own else "",
        )


def _tokens(tokenizer: ChatTokenizer, recipe: Recipe, prompt: str) -> int:
    """Tokens of a prompt as a conversation; 0 where the template refuses it, which is said of the data as well."""
    message = {"role": "user", "content": prompt}
    try:
        text = render(
            tokenizer, [message], system=recipe.chat.system, date=recipe.data.date, add_generation_prompt=True
        )
    except TemplateError:
        return 0
    return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
