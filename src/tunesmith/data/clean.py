"""The rules of cleaning: what is put right in a conversation, and what is wrong with it. Each is a field of the recipe.

A rule that can put a row right does, and is counted; a fault in a later turn costs that turn and what follows, not the
answers before it; an answer that should not be learned stays as context. Only what is left without an answer to train
on is dropped, by the first reason found.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from tunesmith.data.answers import cut_short, only_refuses
from tunesmith.data.conversation import Conversation, Dropped, Turn
from tunesmith.data.repairs import DECODED, NO_TEXT, OF_CODES, decoded, has_control, is_blank, may_be_broken, tidied
from tunesmith.data.unread import FIRST_WORDS
from tunesmith.recipe import Clean

ALL = Clean()
BLANK_LINE = "\n\n"
CUT, LEAD_CUT = "cut before {}", "answers before the first question cut off: {}"
MIDDLE = "system turn in the middle made the user's"
JOINED = "turns of one speaker joined"
LEADING = "answers before the first question kept as context"
LONG, SHORT = "longer than max_characters", "answers shorter than min_answer"
NO_ANSWER, NOT_TRAINED, NOT_ASKED = (
    "no assistant turn",
    "no answer in it is to be trained on",
    "does not start with the user",
)
TRUNCATED, REFUSAL = "answers cut within JSON or a code block", "answers that only refuse"
Turns = list[Turn]


class Fault(NamedTuple):
    """A turn that cannot be used."""

    place: int
    reason: str


def clean(conversation: Conversation, rules: Clean = ALL) -> tuple[Conversation | Dropped, list[str]]:
    """The conversation, put right, or why it is dropped; and what was put right."""
    changes: list[str] = []
    turns = _texts(conversation.turns, rules, changes)
    turns = _speakers(turns, rules, changes)
    reason = _no_answer(turns, rules)
    if not reason and (fault := _first_fault(turns, conversation.tools, rules)):
        turns, name = _without(fault, turns, conversation.tools, rules)
        reason = fault.reason if not turns or _no_answer(turns, rules) else None
        changes.append(name.format(fault.reason))
    if not reason:
        reason = _learnable(turns, rules, changes)
    if reason:
        return Dropped(conversation.where, reason, _first_words(conversation.turns)), []
    cleaned = tuple(turns)
    return conversation if cleaned == conversation.turns else replace(conversation, turns=cleaned), changes


def _has_ends(text: str) -> bool:
    """Whether a text has white space around it."""
    return text[:1].isspace() or text[-1:].isspace()


def _texts(turns: Sequence[Turn], rules: Clean, changes: list[str]) -> Turns:
    """Turns with texts that are put right."""
    found = list(turns)
    if rules.mojibake and any(may_be_broken(turn.text) or may_be_broken(turn.reasoning) for turn in turns):
        if not any(OF_CODES.search(turn.text) for turn in turns):
            found = [replace(turn, text=decoded(turn.text), reasoning=decoded(turn.reasoning)) for turn in turns]
        if found != list(turns):
            changes.append(DECODED)
    if rules.control:
        for place, turn in enumerate(found):
            text, names = tidied(turn.text)
            reasoning, more = tidied(turn.reasoning)
            if names or more:
                found[place] = replace(turn, text=text, reasoning=reasoning)
                changes += [name for name in dict.fromkeys(names + more) if name not in changes]
    # Llama's and Gemma's templates strip answers, too; elsewhere white space can join the prompt's last token
    stripped = [
        replace(turn, text=turn.text.strip()) if turn.role == "assistant" and _has_ends(turn.text) else turn
        for turn in found
    ]
    if stripped != found:
        changes.append("white space around an answer removed")
    return stripped


def _speakers(turns: Turns, rules: Clean, changes: list[str]) -> Turns:
    """Turns in an order that templates take: a system turn, then user and assistant in turn."""
    found = [turn for turn in turns if turn.role != "system" or not is_blank(turn.text)] if rules.empty else turns
    if len(found) < len(turns):
        changes.append("empty system turn removed")
    if rules.roles:
        found = _taking_turns(found, changes)
    if rules.leading_answer:
        found = _asked_first(found, changes)
    kept = _to_last_answer(found)
    if kept and len(kept) < len(found):
        changes.append("last question without an answer cut off")
        found = kept
    return found


def _taking_turns(turns: Turns, changes: list[str]) -> Turns:
    """Neighbours of one speaker joined. A system turn in the middle is the user's: there it keeps its place, and it
    comes from the same side; in front it would rule answers that were given without it, and few templates take it."""
    first = next((place for place, turn in enumerate(turns) if turn.role != "system"), len(turns))
    after = [replace(turn, role="user") if turn.role == "system" else turn for turn in turns[first:]]
    sides = [*turns[:first], *after]
    if sides != turns:
        changes.append(MIDDLE)
    found: Turns = []
    for turn in sides:
        if found and (joined := _joined(found[-1], turn)):
            found[-1] = joined
        else:
            found.append(turn)
    if len(found) < len(sides):
        changes.append(JOINED)
    return found


def _joined(one: Turn, other: Turn) -> Turn | None:
    """Both turns as one, a blank line between; None where they are of two speakers, or the order would be lost."""
    if one.role != other.role or one.role == "tool":  # results of several calls
        return None
    if (one.calls and other.text) or (one.text and other.reasoning):  # calls come last in a turn, reasoning first
        return None
    text = BLANK_LINE.join(turn.text for turn in (one, other) if not is_blank(turn.text))
    reasoning = BLANK_LINE.join(turn.reasoning for turn in (one, other) if turn.reasoning)
    calls = one.calls or other.calls
    if one.calls and other.calls:
        calls = json.dumps([*json.loads(one.calls), *json.loads(other.calls)], ensure_ascii=False)
    return Turn(one.role, text, one.trained and other.trained, reasoning, calls)


def _asked_first(turns: Turns, changes: list[str]) -> Turns:
    """Answers before the first question, not trained on: nobody knows what they answer."""
    start = int(bool(turns) and turns[0].role == "system")
    asked = next((place for place, turn in enumerate(turns) if turn.role == "user"), start)
    lead = turns[start:asked]
    answer = next((place for place, turn in enumerate(lead) if turn.role == "assistant"), len(lead))
    if answer:
        changes.append("results of tools before the first question cut off")
    if answer < len(lead):
        changes.append(LEADING)
    context = [replace(turn, trained=False) if turn.role == "assistant" else turn for turn in lead[answer:]]
    return [*turns[:start], *context, *turns[asked:]] if lead else turns


def _to_last_answer(turns: Turns) -> Turns:
    """Without what follows the last answer."""
    last = max((place for place, turn in enumerate(turns, 1) if turn.role == "assistant"), default=0)
    return turns[:last]


def _no_answer(turns: Turns, rules: Clean) -> str | None:
    """Why there is nothing to train on."""
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not turns or (rules.no_answer and not answers):
        return NO_ANSWER
    if rules.leading_answer and all(turn.role != "user" for turn in turns):
        return NOT_ASKED
    return NOT_TRAINED if rules.no_answer and not any(turn.trained for turn in answers) else None


def _without(fault: Fault, turns: Turns, tools: str, rules: Clean) -> tuple[Turns, str]:
    """The turns before a fault, up to an answer; those after it where it is in an answer that nobody asked for."""
    start = int(turns[0].role == "system")
    asked = next((place for place, turn in enumerate(turns) if turn.role == "user"), 0)
    if not start <= fault.place < asked:
        return _to_last_answer(turns[: fault.place]), CUT
    rest = [*turns[:start], *turns[asked:]]
    if later := _first_fault(rest, tools, rules):
        rest = _to_last_answer(rest[: later.place])
    return rest, LEAD_CUT


def _first_fault(turns: Turns, tools: str, rules: Clean) -> Fault | None:
    """The first turn that cannot be used, and why."""
    if NO_TEXT.search(tools):
        return Fault(0, "text that is not valid Unicode")
    before = ""
    for place, turn in enumerate(turns):
        text = turn.text + turn.reasoning + turn.calls
        found = {
            "roles do not alternate": rules.roles and not _may_follow(before, turn.role),
            "an empty turn": rules.empty and not turn.calls and is_blank(turn.text),
            # it was decoded wrongly before it came here
            "text with replacement characters (U+FFFD)": rules.replacement and "\ufffd" in text,
            "text that is not valid Unicode": not text.isascii() and NO_TEXT.search(text),  # no tokenizer takes it
            "control characters": rules.control and has_control(text),
        }
        if reason := next((reason for reason, is_wrong in found.items() if is_wrong), None):
            return Fault(place, reason)
        before = turn.role
    return None


def _may_follow(before: str, role: str) -> bool:
    """Whether a turn may follow another: results of tools are of the assistant's side."""
    if role == "system":
        return not before
    if role == "user":
        return before != "user"
    if role == "tool":
        return before in ("assistant", "tool")
    return before != "assistant"


def _learnable(turns: Turns, rules: Clean, changes: list[str]) -> str | None:
    """Mark answers that are not to be learned, and cut what is too long. The reason where nothing is left."""
    if rules.max_characters is not None:
        kept, sizes = 0, 0
        for place, turn in enumerate(turns, 1):
            sizes += len(turn.text) + len(turn.reasoning) + len(turn.calls)
            kept = place if sizes <= rules.max_characters else kept
        if kept < len(turns):
            turns[:] = _to_last_answer(turns[:kept])
            if not turns or _no_answer(turns, rules):
                return LONG
            changes.append("cut to max_characters")
    for reason, is_on, is_such in (
        (TRUNCATED, rules.truncated, cut_short),
        (REFUSAL, rules.refusals, only_refuses),
        (SHORT, rules.min_answer is not None, lambda text: len(text) < (rules.min_answer or 0)),
    ):
        bad = [place for place, turn in enumerate(turns) if is_on and _is_learned(turn) and is_such(turn.text)]
        for place in bad:
            turns[place] = replace(turns[place], trained=False)
        if bad and not any(turn.trained for turn in turns if turn.role == "assistant"):
            return reason
        if bad:
            changes.append(f"{reason} not trained on")
    return None


def _is_learned(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.trained and not turn.calls


def _first_words(turns: Sequence[Turn]) -> str:
    """How a row begins, printable."""
    text = next((turn.text for turn in turns if turn.role != "system"), "")[:FIRST_WORDS]
    return text.encode(errors="backslashreplace").decode()
