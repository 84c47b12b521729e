"""The Modelfile of a run: what its own chat template, recipe and tokenizer say, for gguf/modelfile.py."""

from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from tunesmith.console import warn
from tunesmith.gguf.config import context_length
from tunesmith.gguf.families import read_config
from tunesmith.gguf.modelfile import UNTRANSLATED, Messages, Render, modelfile
from tunesmith.recipe import GgufType, Recipe
from tunesmith.tokens.template import end_of_turn_id, render
from tunesmith.tokens.tokenizer import load_tokenizer

CONTEXT = 4096  # tokens; of a chat.context that is changed later the file knows nothing
USUAL: GgufType = "Q8_0"


def make_modelfile(recipe: Recipe, model: Path, path: Path) -> None:
    """Write the Modelfile of the merged folder's GGUF, and say where its chat template could not be translated."""
    text = modelfile_of(recipe, model, context_length(read_config(model)))
    if UNTRANSLATED in text:
        warn(f"{path.name} has no TEMPLATE: Ollama uses this chat template only if it is near one that it knows")
    path.write_text(text, encoding="utf-8", newline="\n")


def modelfile_of(recipe: Recipe, model: Path, longest: int) -> str:
    """The text. `model`: the merged folder; `longest`: tokens that it knows."""
    tokenizer, chat = load_tokenizer(model), recipe.chat
    ends = [tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer)), tokenizer.eos_token]
    said = {"temperature": chat.temperature, "top_p": chat.top_p, "num_ctx": min(CONTEXT, longest)}
    stops = list(dict.fromkeys(str(end) for end in ends if end))
    return modelfile(
        f"{recipe.name}-{_served(recipe)}.gguf", renderer(tokenizer, recipe.data.date), said, chat.system, stops
    )


def _served(recipe: Recipe) -> GgufType:
    """The type that it names. By what an export is made from alone: what is chosen later leaves the file as it is."""
    small: list[GgufType] = [kind for kind in recipe.export.gguf if kind not in ("F16", "BF16")]
    return USUAL if USUAL in small else (small or list(recipe.export.gguf))[0]


def renderer(tokenizer: PreTrainedTokenizerBase, date: str) -> Render:
    """How a tokenizer's chat template renders a conversation, less a start token that llama.cpp adds itself."""
    adds = tokenizer("A text")["input_ids"] != tokenizer("A text", add_special_tokens=False)["input_ids"]

    def rendered(messages: Messages, start: bool) -> str | None:
        try:
            text = render(tokenizer, messages, system=None, date=date, add_generation_prompt=start)
        except TemplateError:
            return None
        return text.removeprefix(str(tokenizer.bos_token)) if adds and tokenizer.bos_token else text

    return rendered
