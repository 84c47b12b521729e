"""A chat template: what it writes around the turns, learned by rendering, and the text it makes of a conversation."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date as Date
from functools import lru_cache
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from tunesmith.errors import DataError, RecipeError
from tunesmith.tokens.messages import ANY_MARK, MARKS, Message
from tunesmith.tokens.sent import ChatTokenizer
from tunesmith.tokens.spelled import spells

Messages = Sequence[Message]
SWITCH = re.compile(r"/(no_)?think\b")  # in a system prompt: SmolLM3's template does what it says, and takes it out
WITHOUT_SYSTEM = "remove chat.system from the recipe, or use a base whose template takes a system prompt"


@dataclass(frozen=True)
class Form:
    """What is the same in every conversation of a template."""

    template: str
    header: str
    """Text from the end of a user's words to where the model starts to write."""
    end: str
    """The end-of-turn token, as text."""
    end_id: int
    forbidden: re.Pattern[str]
    """What no turn may hold: it would be read as the template's own."""
    added: frozenset[int]
    """Tokens that the tokenizer cuts a text at."""
    gap: str
    """What the tokenizer puts before a text that follows one of them: the space of SentencePiece, or nothing."""
    spells: Callable[[Sequence[int], bytes], bool]
    """Whether tokens decode to a text, in UTF-8; no where that takes the decoder itself to tell."""


@lru_cache(maxsize=8)
def chat_template_with(template: str, system: str | None, date: str) -> str:
    """The template with a prefix that puts `system` in where messages have none, and the date in where it states one.

    Renders alike in transformers and llama.cpp. A template that has the prefix already is returned as it is.
    Raises RecipeError if `date` is not written as YYYY-MM-DD.
    """
    try:
        day = Date.fromisoformat(date)
    except ValueError as error:
        raise RecipeError(f'data.date is "{date}", which is no day', fix="write it as 2026-01-01") from error
    prefix = ""
    if system is not None:
        added = f"[{{'role': 'system', 'content': {_literal(system)}}}]"
        prefix += f"{{%- if messages[0]['role'] != 'system' %}}{{%- set messages = {added} + messages %}}{{%- endif %}}"
    if "date_string" in template:
        prefix += f'{{%- set date_string = "{day:%d %b %Y}" %}}'  # as Llama 3 writes it
    if formats := sorted(set(re.findall(r"""strftime_now\(["'](.+?)["']\)""", template))):
        cases = [
            f"{{%- if format == {_literal(f)} %}}{{{{- {_literal(day.strftime(f))} }}}}{{%- endif %}}" for f in formats
        ]
        prefix += f"{{%- macro strftime_now(format) %}}{''.join(cases)}{{%- endmacro %}}"
    prefix += "\n" if prefix else ""  # removed by trim_blocks; the template's first line stays the start of a line
    return template if template.startswith(prefix) else prefix + template


def render(
    tokenizer: ChatTokenizer, messages: Messages, *, system: str | None, date: str,
    tools: list[Any] | None = None, add_generation_prompt: bool = False,
) -> str:  # fmt: skip
    """The conversation as the model sees it. Raises jinja2's TemplateError where the template refuses it."""
    return render_all(tokenizer, template_of(tokenizer, system, date), [messages], tools, add_generation_prompt)[0]


def end_of_turn_id(tokenizer: ChatTokenizer) -> int:
    """The token that ends an answer, learned from the template. Raises DataError if there is none."""
    return form_of(tokenizer, template_of(tokenizer, None, "2026-01-01"), None).end_id


@lru_cache(maxsize=8)
def form_of(tokenizer: ChatTokenizer, template: str, system: str | None) -> Form:
    """What the template, with `system` in it, writes around an answer, learned by rendering a conversation of marks."""
    if system and ANY_MARK.search(system):
        raise RecipeError("chat.system holds what Unicode gives no meaning (U+FDD0 to U+FDEF)", fix="take it out")
    question, answer = {"role": "user", "content": MARKS[0]}, {"role": "assistant", "content": MARKS[1]}
    try:
        prompt = render_all(tokenizer, template, [[question]], add_generation_prompt=True)[0]
        whole = render_all(tokenizer, template, [[question, answer] * 2])[0]
    except TemplateError as error:
        if system is not None and renders(tokenizer, tokenizer.get_chat_template(), [question, answer]):
            raise DataError(f"the chat template takes no system prompt: {error}", fix=WITHOUT_SYSTEM) from error
        raise DataError(f"the chat template refuses a plain conversation: {error}", fix="use another base") from error
    if system and SWITCH.sub("", system).strip() not in whole:
        raise DataError("the chat template leaves the system prompt out", fix=WITHOUT_SYSTEM, where=repr(whole))
    pieces = ANY_MARK.split(whole)  # before the question, before the answer, after it, and once more
    if len(pieces) != 5:
        raise DataError("the chat template does not write each turn once", fix="use another base", where=repr(whole))
    before, after = pieces[1:3]
    same = takewhile(lambda both: both[0] == both[1], zip(prompt.partition(MARKS[0])[2], before, strict=False))
    header = "".join(letter for letter, _ in same)
    special = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    backend = tokenizer.backend_tokenizer
    ids = backend.encode(after.lstrip(), add_special_tokens=False).ids
    if not header or not ids or ids[0] not in special:
        raise DataError(
            "the chat template does not end an answer with a special token, so the model could not learn to stop",
            fix="use a base whose template does, such as one tuned for chat",
            where=f"after an answer it writes {after!r}",
        )
    end = special[ids[0]]
    opening = after.partition(end)[2]
    written = {text.strip() for text in (header, opening) if re.search(r"[\[<|]", text)}  # [INST] is no special token
    forbidden = re.compile("|".join(re.escape(text) for text in {*special.values(), *written}))
    if found := forbidden.search(system or ""):
        raise RecipeError(f"chat.system contains {found[0]!r}, a special token of the template", fix="take it out")
    after_end = backend.encode(f"{end}a", add_special_tokens=False).ids
    gap = backend.decode(after_end, skip_special_tokens=False).removeprefix(end).removesuffix("a")
    added = frozenset(tokenizer.added_tokens_decoder)
    return Form(template, header, end, ids[0], forbidden, added, gap, spells(backend))


def template_of(tokenizer: ChatTokenizer, system: str | None, date: str) -> str:
    """The tokenizer's chat template, with what the recipe adds. Raises DataError if it has none."""
    if not tokenizer.chat_template:
        raise DataError("the base has no chat template", fix="use a model tuned for chat, such as an -Instruct one")
    return chat_template_with(tokenizer.get_chat_template(), system, date)


def render_all(
    tokenizer: ChatTokenizer, template: str, chats: Sequence[Messages], tools: list[Any] | None = None,
    add_generation_prompt: bool = False,
) -> list[str]:  # fmt: skip
    """Each conversation as a template writes it. Raises jinja2's TemplateError where it refuses one."""
    rendered, _ = render_jinja_template(  # what apply_chat_template calls
        list(chats), tools=tools, chat_template=template, add_generation_prompt=add_generation_prompt,
        **tokenizer.special_tokens_map,
    )  # fmt: skip
    return rendered


def render_plain(tokenizer: ChatTokenizer, template: str, chats: Sequence[Messages]) -> list[str]:
    """The same for messages that have a role and a text and nothing else, at a third of the time: transformers copies
    and looks through every message, which may be anything there.
    """
    compiled = _compile_jinja_template(template)  # the one that render_all uses, which keeps it
    more = tokenizer.special_tokens_map
    return [
        compiled.render(messages=chat, tools=None, documents=None, add_generation_prompt=False, **more)
        for chat in chats
    ]


def renders(tokenizer: ChatTokenizer, template: str, messages: Messages) -> bool:
    """Whether a template takes a conversation."""
    try:
        render_all(tokenizer, template, [messages])
    except TemplateError:
        return False
    return True


def _literal(text: str) -> str:
    """A text as a Jinja string."""
    return json.dumps(text, ensure_ascii=False)
