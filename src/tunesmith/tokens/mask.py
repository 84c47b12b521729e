"""Conversations in, token ids and a proved supervised mask out (invariant 4 of the design).

The ids are those of the whole rendered conversation. Where the answers are in it is found by rendering a second time
with marks around each answer's words: without its marks the second text must be the first, letter by letter.
An answer as rendered is what follows the generation prompt, up to the end-of-turn token: what the model has to write
in the chat. It may lack what the template trims, and have what the template adds (Qwen's empty think block).
Every answer is proved; supervised are those that are to be trained on.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, TypeVar
from unicodedata import normalize

from jinja2 import TemplateError

from tunesmith.data.clean import NOT_TRAINED
from tunesmith.data.conversation import Conversation, Turn
from tunesmith.recipe import TooLong, TrainOn
from tunesmith.record import Proof
from tunesmith.tokens.laps import lap
from tunesmith.tokens.messages import (
    ANY_MARK,
    THINK_TAG,
    Kind,
    everything_in,
    marked_messages,
    messages_of,
    texts_in,
    tool_calls,
    tools_of,
    whose_mark,
)
from tunesmith.tokens.sent import ChatTokenizer
from tunesmith.tokens.template import Form, form_of, render_all, render_plain, renders, template_of

UNPROVED_SHARE = 0.01  # invariant 4; one row alone never refuses a template, or a set of 90 could not have a bad one
NO_SYSTEM, REFUSED = "the template takes no system prompt", "the template refuses it"
TOO_LONG = "longer than max_length"
NO_TEXT = "an answer is not in the rendered text"
NO_TOOLS = "the template leaves tool calls out"
NO_REASONING = "the template leaves the reasoning out"
LEADING_CUT = "answer before the first question cut off: the template does not take it"
CUT = "cut to max_length"
Span = tuple[int, int]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens."""

    ids: list[int]
    supervised_spans: list[Span]
    """From which token to before which one each stretch that is trained on goes."""
    answer_bytes: int
    """UTF-8 bytes of the answers that are trained on as rendered, without the end-of-turn tokens."""
    turns: tuple[Turn, ...]
    """The turns that are in it; an answer is `trained` if it is supervised."""
    end: int
    """Turns of the conversation up to the last one that is in it."""
    answer_ends: list[int]
    """Tokens up to the end of each answer, its end-of-turn token included."""
    changes: tuple[str, ...] = ()
    """What was done to the conversation, each to be counted."""

    @property
    def supervised(self) -> list[bool]:
        """Of each token, whether it is trained on."""
        found = [False] * len(self.ids)
        for first, stop in self.supervised_spans:
            found[first:stop] = [True] * (stop - first)
        return found


class Refused(Exception):  # noqa: N818 (raised inside this file, a value outside it)
    """Why a conversation has no tokens."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail  # the detail says what was expected where the mask is not proved


@dataclass(frozen=True)
class _Drawn:
    """A rendered conversation."""

    text: str
    spans: list[Span]
    """From where to where in the text each answer is."""
    turns: tuple[Turn, ...]
    end: int
    changes: tuple[str, ...]


def mask_proof(unproved: int, tried: int) -> Proof:
    """How many of the `tried` conversations have a mask that is not proved: these are dropped, and must be few."""
    rows = max(tried, 1)
    limit = max(UNPROVED_SHARE, 1 / rows)
    return Proof("supervised tokens = answers as rendered, share of rows dropped", unproved / rows, limit, tried)


def encode(
    tokenizer: ChatTokenizer, conversation: Conversation, *, system: str | None, date: str,
    train_on: TrainOn = "all",
) -> Encoded | str:  # fmt: skip
    """Ids and supervised mask of one conversation, or the reason why it has none."""
    found = encode_all(tokenizer, [conversation], system=system, date=date, train_on=train_on)[0]
    return found.reason if isinstance(found, Refused) else found


def encode_all(
    tokenizer: ChatTokenizer, conversations: Sequence[Conversation], *, system: str | None, date: str,
    train_on: TrainOn = "all", max_length: int | None = None, too_long: TooLong = "cut",
) -> list[Encoded | Refused]:  # fmt: skip
    """As `encode`, for many conversations at once; one longer than `max_length` tokens is refused with `too_long` drop,
    else cut after its last answer that fits, rendered again and proved again. Raises DataError if the template can
    train nothing, or nothing with this system prompt, and RecipeError if the prompt holds a special token.
    """
    form = form_of(tokenizer, template_of(tokenizer, system, date), system)
    with lap("template"):
        drawn = [_drawn_anyhow(tokenizer, form, conversation, train_on) for conversation in conversations]
    with lap("tokenise"):
        texts = [item.text for item in drawn if isinstance(item, _Drawn)]
        batch = iter(tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))  # in threads
    with lap("prove"):
        found = [
            item if isinstance(item, Refused) else _tried(_proved, tokenizer, form, item, next(batch)) for item in drawn
        ]
    if max_length is None:
        return found
    shorter: dict[int, Conversation] = {}
    for number, (item, whole) in enumerate(zip(found, conversations, strict=True)):
        if isinstance(item, Encoded) and len(item.ids) > max_length:
            found[number] = Refused(TOO_LONG)
            if too_long != "drop" and (keep := _turns_that_fit(item, max_length)):
                first = item.end - len(item.turns) + keep  # turns before the first question may be left out
                shorter[number] = replace(whole, turns=whole.turns[:first])
    if shorter:
        again = encode_all(
            tokenizer, list(shorter.values()), system=system, date=date, train_on=train_on, max_length=max_length
        )
        for number, item in zip(shorter, again, strict=True):
            found[number] = _as_cut(item)
    return found


def _as_cut(item: Encoded | Refused) -> Encoded | Refused:
    if isinstance(item, Encoded):
        return item if CUT in item.changes else replace(item, changes=(*item.changes, CUT))
    return Refused(TOO_LONG) if item.reason == NOT_TRAINED else item


def _turns_that_fit(item: Encoded, max_length: int) -> int:
    """Turns up to the last answer that ends within `max_length` tokens, but at least one answer fewer than before."""
    answers = [number for number, turn in enumerate(item.turns, 1) if turn.role == "assistant"]
    return [0, *answers[:-1]][min(bisect_right(item.answer_ends, max_length), len(answers) - 1)]


def _tried(step: Callable[..., Result], *arguments: Any) -> Result | Refused:
    try:
        return step(*arguments)
    except Refused as refused:
        return refused
    except TemplateError as error:
        return Refused(f"{REFUSED}: {error}", "it cannot be rendered")


def _drawn_anyhow(tokenizer: ChatTokenizer, form: Form, whole: Conversation, train_on: TrainOn) -> _Drawn | Refused:
    """The conversation rendered; without what is said before its first question where the template takes it so only."""
    drawn = _tried(_drawn, tokenizer, form, whole, train_on)
    said = int(whole.turns[0].role == "system") if whole.turns else 0
    asked = next((number for number, turn in enumerate(whole.turns) if turn.role == "user"), said)
    if isinstance(drawn, _Drawn) or asked == said:
        return drawn
    later = replace(whole, turns=whole.turns[:said] + whole.turns[asked:])
    found = _tried(_drawn, tokenizer, form, later, train_on)
    return drawn if isinstance(found, Refused) else replace(found, end=len(whole.turns), changes=(LEADING_CUT,))


def _drawn(tokenizer: ChatTokenizer, form: Form, conversation: Conversation, train_on: TrainOn) -> _Drawn:
    """The rendered conversation. Raises Refused where something of it is not in the text."""
    everything = everything_in(conversation)
    if ANY_MARK.search(everything) or form.forbidden.search(everything):
        raise Refused("contains a special token of the template")
    turns, tools = conversation.turns, tools_of(conversation)
    plain = messages_of(turns)
    both = [plain, marked_messages(turns)]
    try:
        text, marked_text = (
            render_plain(tokenizer, form.template, both) if conversation.is_plain
            else render_all(tokenizer, form.template, both, tools)
        )  # fmt: skip
    except TemplateError as error:
        if plain[0]["role"] == "system" and renders(tokenizer, form.template, plain[1:]):
            raise Refused(NO_SYSTEM, str(error)) from None
        if conversation.tools or any(turn.calls or turn.role == "tool" for turn in turns):
            raise Refused(f"{NO_TOOLS}: {error}") from None
        raise
    if ANY_MARK.sub("", marked_text) != text:
        raise Refused("the answers cannot be found in the rendered text", f"{text!r} is not {marked_text!r}")
    if not all(name in text for name in _names(tools)):
        raise Refused(NO_TOOLS)
    groups = _grouped(turns, text, marked_text)
    spans = list(_spans(form, text, groups, turns))
    lost = _without_reasoning(groups, turns)
    return _Drawn(text, spans, _trained(turns, lost, train_on), len(turns), ())


def _names(tools: list[Any] | None) -> list[str]:
    """What the tools are called, in any of the forms that data sets have."""
    kinds = [tool.get("function", tool) for tool in tools or () if isinstance(tool, dict)]
    return [str(kind["name"]) for kind in kinds if isinstance(kind, dict) and "name" in kind]


def _answers(turns: Sequence[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.role == "assistant"]


Group = list[tuple[Kind, int]]
"""What is marked of one answer, and where in the text."""


def _grouped(turns: Sequence[Turn], text: str, marked_text: str) -> list[Group]:
    """The marks of each answer. Raises Refused if an answer has none, or what a tool gave is not in the text."""
    marks = [
        (*whose_mark(match[0]), match.start() - number) for number, match in enumerate(ANY_MARK.finditer(marked_text))
    ]
    answers = _answers(turns)
    results = sum(2 for turn in turns if turn.role == "tool" and turn.text.strip())
    calls = sum(2 * len(tool_calls(turn.calls)) for turn in answers if turn.calls)
    kinds = [kind for _, kind, _ in marks]
    if kinds.count("result") != results or kinds.count("call") != calls:
        raise Refused(NO_TOOLS)
    of_answers = [mark for mark in marks if mark[1] != "result"]
    groups = [[mark[1:] for mark in group] for _, group in groupby(of_answers, key=lambda mark: mark[0])]
    if len(groups) != len(answers) or not answers:
        raise Refused(NO_TEXT, f"{len(answers)} answers, {len(groups)} found in {text!r}")
    for turn, group in zip(answers, groups, strict=True):
        if turn.text.strip() and all(kind != "words" for kind, _ in group):
            raise Refused(NO_TOOLS) if turn.calls else Refused(NO_TEXT, f"nothing of {turn.text!r} is in {text!r}")
    return groups


def _without_reasoning(groups: list[Group], turns: Sequence[Turn]) -> set[int]:
    """Numbers of the answers whose reasoning the template leaves out: trained on, they would teach not to reason."""
    return {
        number
        for number, (turn, group) in enumerate(zip(_answers(turns), groups, strict=True))
        if turn.reasoning.strip() and all(kind != "reasoning" for kind, _ in group)
    }


def _trained(turns: Sequence[Turn], lost: set[int], train_on: TrainOn) -> tuple[Turn, ...]:
    """The turns, `trained` where the answer is to be supervised. Raises Refused if none is."""
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    wanted = {number for number in (answers if train_on == "all" else answers[-1:]) if turns[number].trained}
    found = wanted - {answers[number] for number in lost}
    if not found:
        raise Refused(NO_REASONING if wanted else NOT_TRAINED)
    return tuple(
        replace(turn, trained=False) if turn.role == "assistant" and number not in found else turn
        for number, turn in enumerate(turns)
    )


def _spans(form: Form, text: str, groups: list[Group], turns: Sequence[Turn]) -> Iterator[Span]:
    """From the end of the generation prompt to the start of the end-of-turn token, for each answer."""
    previous = 0
    for turn, group in zip(_answers(turns), groups, strict=True):
        first, last = group[0][1], group[-1][1]
        header, end = text.rfind(form.header, previous, first), text.find(form.end, last)
        if header < 0:
            raise Refused("no generation prompt before an answer", f"no {form.header!r} in {text[previous:first]!r}")
        start, tail = header + len(form.header), text[last:end]
        after = THINK_TAG.sub("", tail).strip()  # tags have no marks, and may come last
        if end < 0 or (after and not turn.calls):
            raise Refused("no end-of-turn token after an answer", f"no {form.end!r} at {text[last:][:40]!r}")
        if not text[start:end].strip():
            raise Refused(NO_TEXT, f"nothing is left of it in {text[previous:end]!r}")
        if turn.calls and not _has_all(text[start:end], turn.calls):
            raise Refused(NO_TOOLS)
        yield start, end
        previous = end


def _has_all(span: str, calls: str) -> bool:
    """Whether an answer as rendered has every text of its tool calls, as it is or as JSON writes it."""
    forms = (str, partial(json.dumps, ensure_ascii=False), json.dumps)
    return all(any(form(text).strip('"').strip() in span for form in forms) for text in texts_in(json.loads(calls)))


def _starts_at(encoding: Any, token: int) -> int:
    """The letter of the text that a token starts at."""
    return int(encoding.token_to_chars(token)[0])


def _proved(tokenizer: ChatTokenizer, form: Form, drawn: _Drawn, encoding: Any) -> Encoded:
    """The tokens of the text, those of the answers that are trained on supervised. Raises Refused where the tokens of
    an answer are not exactly its span.
    """
    text, ids = drawn.text, encoding.ids
    decode = partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=False)
    supervised, ends, answer_bytes = list[Span](), list[int](), 0
    for (start, end), turn in zip(drawn.spans, _answers(drawn.turns), strict=True):
        first, stop = encoding.char_to_token(start), encoding.char_to_token(end)
        if first is None or stop is None or _starts_at(encoding, first) < start or _starts_at(encoding, stop) != end:
            raise Refused("a token crosses the border of an answer", f"answer {text[start:end]!r} in {text!r}")
        answer = text[start:end].encode()
        if not form.spells(ids[first:stop], answer):
            _check_decoded(form, decode, ids, (first, stop), text[start:end])
        if ids[stop] != form.end_id:
            raise Refused(
                "no end-of-turn token after an answer", f"{decode(ids[stop : stop + 1])!r} is not {form.end!r}"
            )
        ends.append(stop + 1)
        if turn.trained:
            supervised.append((first, stop + 1))
            answer_bytes += len(answer)
    return Encoded(ids, supervised, answer_bytes, drawn.turns, drawn.end, ends, drawn.changes)


def _check_decoded(form: Form, decode: Callable[[list[int]], str], ids: list[int], span: Span, answer: str) -> None:
    """Raise Refused if some of the tokens are not the answer."""
    first, stop = span
    before = ids[max(first - 1, 0) : first]  # decoders may drop the white space before the very first token
    gap = form.gap if before and before[-1] in form.added else ""
    decoded, expected = decode(before + ids[first:stop]), decode(before) + gap + answer
    if decoded != expected and normalize("NFC", decoded) != normalize("NFC", expected):  # Qwen's tokenizer composes
        raise Refused("the supervised tokens are not the answer", f"expected {expected!r}, found {decoded!r}")
