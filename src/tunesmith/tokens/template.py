"""A chat template: conversations in, token ids and a proved supervised mask out (invariant 4 of the design).

The ids are those of the whole rendered conversation. Where the answers are in it is found by rendering a second time
with marks around each answer's words: without its marks the second text must be the first, letter by letter.
An answer as rendered is what follows the generation prompt, up to the end-of-turn token: what the model has to write
in the chat. It may lack what the template trims, and have what the template adds (Qwen's empty think block).
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date as Date
from functools import lru_cache, partial
from itertools import groupby, takewhile
from typing import Any, TypeVar
from unicodedata import normalize

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tunesmith.data.conversation import Conversation, Turn
from tunesmith.errors import DataError, RecipeError
from tunesmith.record import Proof

UNPROVED_SHARE = 0.01  # invariant 4; one row alone never refuses a template, or a set of 90 could not have a bad one
Messages = Sequence[dict[str, str]]
Span = tuple[int, int]
Result = TypeVar("Result")
MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # noncharacters (Unicode 23.7): no text of ours has them
ANY_MARK = re.compile(f"[{MARKS[0]}-{MARKS[-1]}]")
NO_SYSTEM, REFUSED = "the template takes no system prompt", "the template refuses it"
THINK_TAG = re.compile(r"(</?think>)")  # templates split answers here, so each side gets marks of its own


WITHOUT_SYSTEM = "remove chat.system from the recipe, or use a base whose template takes a system prompt"


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens."""

    ids: list[int]
    supervised: list[bool]
    answer_bytes: int
    """UTF-8 bytes of the answers as rendered, without the end-of-turn tokens."""
    turns: int
    """Turns of the conversation that are in it; fewer than it had if it was cut to max_length."""


class Refused(Exception):  # noqa: N818 (raised inside this file, a value outside it)
    """Why a conversation has no tokens."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail  # the detail says what was expected where the mask is not proved


@dataclass(frozen=True)
class _Form:
    """What is the same in every conversation of a template."""

    template: str
    header: str
    """Text from the end of a user's words to where the model starts to write."""
    end: str
    """The end-of-turn token, as text."""
    end_id: int
    forbidden: re.Pattern[str]
    """What no turn may hold: it would be read as the template's own."""


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
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, system: str | None, date: str,
    add_generation_prompt: bool = False,
) -> str:  # fmt: skip
    """The conversation as the model sees it. Raises jinja2's TemplateError where the template refuses it."""
    return _render(tokenizer, _template(tokenizer, system, date), [messages], add_generation_prompt)[0]


def mask_proof(unproved: int, tried: int) -> Proof:
    """How many of the `tried` conversations have a mask that is not proved: these are dropped, and must be few."""
    rows = max(tried, 1)
    limit = max(UNPROVED_SHARE, 1 / rows)
    return Proof("supervised tokens = answers as rendered, share of rows dropped", unproved / rows, limit, tried)


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer, learned from the template. Raises DataError if there is none."""
    return _form(tokenizer, _template(tokenizer, None, "2026-01-01"), None).end_id


def messages_of(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns as chat templates take them."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def encode(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, system: str | None, date: str
) -> Encoded | str:
    """Ids and supervised mask of one conversation, or the reason why it has none."""
    found = encode_all(tokenizer, [conversation], system=system, date=date)[0]
    return found.reason if isinstance(found, Refused) else found


def encode_all(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], *, system: str | None, date: str,
    max_length: int | None = None,
) -> list[Encoded | Refused]:  # fmt: skip
    """As `encode`, for many conversations at once; one longer than `max_length` tokens is cut after its last answer
    that fits, rendered again and proved again. Raises DataError if the template can train nothing, or nothing with
    this system prompt, and RecipeError if the prompt holds a special token.
    """
    form = _form(tokenizer, _template(tokenizer, system, date), system)
    drawn = [_tried(_drawn, tokenizer, form, conversation) for conversation in conversations]
    texts = [item[0] for item in drawn if not isinstance(item, Refused)]
    batch = iter(tokenizer(texts, add_special_tokens=False, verbose=False).encodings if texts else [])  # in threads
    found: list[Encoded | Refused] = []
    for conversation, item in zip(conversations, drawn, strict=True):
        turns = conversation.turns
        done = item if isinstance(item, Refused) else _tried(_proved, tokenizer, form, *item, next(batch), len(turns))
        if isinstance(done, Encoded) and max_length is not None and len(done.ids) > max_length:
            keep = _turns_that_fit(done, form, turns, max_length)
            shorter = [Conversation(turns[:keep], conversation.where)] if keep else []
            again = encode_all(tokenizer, shorter, system=system, date=date, max_length=max_length)
            done = again[0] if again else Refused("longer than max_length")
        found.append(done)
    return found


def _tried(step: Callable[..., Result], *arguments: Any) -> Result | Refused:
    try:
        return step(*arguments)
    except Refused as refused:
        return refused
    except TemplateError as error:
        return Refused(f"{REFUSED}: {error}", "it cannot be rendered")


def _turns_that_fit(encoded: Encoded, form: _Form, turns: Sequence[Turn], max_length: int) -> int:
    """Turns up to the last answer that ends within `max_length` tokens, but at least one answer fewer than before."""
    first = list(zip(encoded.ids[:max_length], encoded.supervised, strict=False))
    answers = [number for number, turn in enumerate(turns, 1) if turn.role == "assistant"]
    return [0, *answers[:-1]][min(first.count((form.end_id, True)), len(answers) - 1)]


def _drawn(tokenizer: PreTrainedTokenizerBase, form: _Form, conversation: Conversation) -> tuple[str, list[Span]]:
    """The rendered text, and from where to where in it each answer is."""
    everything = "\0".join(turn.text for turn in conversation.turns)
    if ANY_MARK.search(everything) or form.forbidden.search(everything):
        raise Refused("contains a special token of the template")
    plain, marked = messages_of(conversation.turns), messages_of(conversation.turns)
    answers = [message for message in marked if message["role"] == "assistant"]
    for number, message in enumerate(answers):
        message["content"] = _marked(message["content"], MARKS[number % len(MARKS)])
    try:
        text, marked_text = _render(tokenizer, form.template, [plain, marked])
    except TemplateError as error:
        if plain[0]["role"] == "system" and _renders(tokenizer, form.template, plain[1:]):
            raise Refused(NO_SYSTEM, str(error)) from None
        raise
    if ANY_MARK.sub("", marked_text) != text:
        raise Refused("the answers cannot be found in the rendered text", f"{text!r} is not {marked_text!r}")
    return text, list(_spans(form, text, marked_text, len(answers)))


def _marked(answer: str, mark: str) -> str:
    """The answer with a mark before and after its words, inside its outer white space, so that trimming is seen."""
    parts = THINK_TAG.split(answer)
    if not THINK_TAG.sub("", answer).strip():
        parts = [answer]  # tags alone: around them
    for index in range(0, len(parts), 2):  # every other part is a tag
        if words := parts[index].strip():
            before, _, after = parts[index].partition(words)
            parts[index] = before + mark + words + mark + after
    return "".join(parts)


def _spans(form: _Form, text: str, marked_text: str, answers: int) -> Iterator[Span]:
    """From the end of the generation prompt to the start of the end-of-turn token, for each answer."""
    marks = [(match[0], match.start() - number) for number, match in enumerate(ANY_MARK.finditer(marked_text))]
    groups = [[place for _, place in group] for _, group in groupby(marks, key=lambda mark: mark[0])]
    if len(groups) != answers or not answers:
        raise Refused("an answer is not in the rendered text", f"{answers} answers, {len(groups)} found in {text!r}")
    previous = 0
    for places in groups:
        header = text.rfind(form.header, previous, places[0])
        end = text.find(form.end, places[-1])
        if header < 0:
            raise Refused(
                "no generation prompt before an answer", f"no {form.header!r} in {text[previous : places[0]]!r}"
            )
        if end < 0 or THINK_TAG.sub("", text[places[-1] : end]).strip():  # tags have no marks, and may come last
            raise Refused("no end-of-turn token after an answer", f"no {form.end!r} at {text[places[-1] :][:40]!r}")
        start = header + len(form.header)
        if not text[start:end].strip():
            raise Refused("an answer is not in the rendered text", f"nothing is left of it in {text[previous:end]!r}")
        yield start, end
        previous = end


def _proved(
    tokenizer: PreTrainedTokenizerBase, form: _Form, text: str, spans: list[Span], encoding: Any, turns: int
) -> Encoded:
    """The tokens of the text, those in the spans supervised. Raises Refused where they are not exactly the spans."""
    ids, offsets = encoding.ids, encoding.offsets
    decode = partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=False)
    supervised = [False] * len(ids)
    token_ends = [end for _, end in offsets]
    for start, end in spans:
        first, stop = bisect_right(token_ends, start), bisect_right(token_ends, end)
        inside = first < stop < len(ids) and offsets[first][0] >= start and offsets[stop][0] == end
        if not inside:
            raise Refused("a token crosses the border of an answer", f"answer {text[start:end]!r} in {text!r}")
        before = ids[max(first - 1, 0) : first]  # decoders may drop the white space before the very first token
        decoded, expected = decode(before + ids[first:stop]), decode(before) + text[start:end]
        if decoded != expected and normalize("NFC", decoded) != normalize("NFC", expected):  # Qwen's tokenizer composes
            raise Refused("the supervised tokens are not the answer", f"expected {expected!r}, found {decoded!r}")
        if ids[stop] != form.end_id:
            raise Refused(
                "no end-of-turn token after an answer", f"{decode(ids[stop : stop + 1])!r} is not {form.end!r}"
            )
        supervised[first : stop + 1] = [True] * (stop + 1 - first)
    return Encoded(ids, supervised, sum(len(text[start:end].encode()) for start, end in spans), turns)


@lru_cache(maxsize=8)
def _form(tokenizer: PreTrainedTokenizerBase, template: str, system: str | None) -> _Form:
    """What the template, with `system` in it, writes around an answer, learned by rendering a conversation of marks."""
    if system and ANY_MARK.search(system):
        raise RecipeError("chat.system holds what Unicode gives no meaning (U+FDD0 to U+FDEF)", fix="take it out")
    question, answer = {"role": "user", "content": MARKS[0]}, {"role": "assistant", "content": MARKS[1]}
    try:
        prompt = _render(tokenizer, template, [[question]], add_generation_prompt=True)[0]
        whole = _render(tokenizer, template, [[question, answer] * 2])[0]
    except TemplateError as error:
        if system is not None and _renders(tokenizer, tokenizer.get_chat_template(), [question, answer]):
            raise DataError(f"the chat template takes no system prompt: {error}", fix=WITHOUT_SYSTEM) from error
        raise DataError(f"the chat template refuses a plain conversation: {error}", fix="use another base") from error
    if system and system.strip() not in whole:
        raise DataError("the chat template leaves the system prompt out", fix=WITHOUT_SYSTEM, where=repr(whole))
    pieces = ANY_MARK.split(whole)  # before the question, before the answer, after it, and once more
    if len(pieces) != 5:
        raise DataError("the chat template does not write each turn once", fix="use another base", where=repr(whole))
    before, after = pieces[1:3]
    same = takewhile(lambda both: both[0] == both[1], zip(prompt.partition(MARKS[0])[2], before, strict=False))
    header = "".join(letter for letter, _ in same)
    special = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]
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
    return _Form(template, header, end, ids[0], forbidden)


def _template(tokenizer: PreTrainedTokenizerBase, system: str | None, date: str) -> str:
    if not tokenizer.chat_template:
        raise DataError("the base has no chat template", fix="use a model tuned for chat, such as an -Instruct one")
    return chat_template_with(tokenizer.get_chat_template(), system, date)


def _render(
    tokenizer: PreTrainedTokenizerBase, template: str, chats: list[Messages], add_generation_prompt: bool = False
) -> list[str]:
    return tokenizer.apply_chat_template(
        chats, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def _renders(tokenizer: PreTrainedTokenizerBase, template: str, messages: Messages) -> bool:
    try:
        _render(tokenizer, template, [messages])
    except TemplateError:
        return False
    return True


def _literal(text: str) -> str:
    """A text as a Jinja string."""
    return json.dumps(text, ensure_ascii=False)
