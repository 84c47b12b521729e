"""A Modelfile for Ollama: the GGUF file, system prompt, sampling, stop texts, and the chat template in Go's language.

Ollama cannot run a Jinja template. It takes the one of a Modelfile, or compares that of the GGUF file with those it
knows and, where none is near, sends what a user says as it is (docs/template.md and template/template.go of Ollama). So
the form of the turns is learned by rendering probes; the Go template made of it is kept only if it renders sample
conversations as the Jinja one does.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

Messages = Sequence[dict[str, str]]
Render = Callable[[Messages, bool], str | None]
"""A conversation as the chat template renders it, with the start of the next answer or without, less a start token that
the tokenizer adds itself; None where the template refuses it."""
MODELFILE = "Modelfile"
PROBES = ("probe of the system", "probe of the first question", "probe of the answer", "probe of the second question")
ROLES = ("system", "user", "assistant", "user")
QUOTES = '"""'
UNTRANSLATED = "# no TEMPLATE: this chat template has no form that could be translated"
SAMPLES = (
    "What is a step?",
    'Two lines,\n\nand "quotes": {x} <b> 100 %?',
    "Grüße, 你好 - is that all?",
    "- one\n- two\n\n```python\nprint('a')\n```",
    "No.",
)


class Turns(NamedTuple):
    """What a chat template puts around the texts of a conversation."""

    opening: str
    """Before the first question, where there is no system prompt."""
    system: tuple[str, str] | None
    """Before and after a system prompt; None where the template takes none."""
    user: tuple[str, str]
    answer: tuple[str, str]
    start: str
    """Where an answer is to begin."""
    folded: str
    """The question that a system prompt stands in, "first" or "last"; empty where it has a turn of its own."""


def modelfile(
    file: str, render: Render, said: Mapping[str, str | float], system: str | None, stops: Sequence[str]
) -> str:
    """The text of a Modelfile for a GGUF file beside it. `said`: parameters by Ollama's name."""
    lines = [f"# ollama create NAME -f Modelfile    (in this folder)\nFROM ./{file}"]
    turns = learn_turns(render)
    if turns:
        lines.append(f"TEMPLATE {QUOTES}{go_template(turns)}{QUOTES}")
    else:
        lines.append(UNTRANSLATED)
    if system is not None and QUOTES not in system:
        lines.append(f"SYSTEM {QUOTES}{system}{QUOTES}")
    lines += [f"PARAMETER {name} {value}" for name, value in said.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop]
    return "\n".join(lines) + "\n"


def learn_turns(render: Render) -> Turns | None:
    """The form of the turns; None where the template's output is of no such form on sample conversations."""
    for turns in _candidates(render):
        usable = not any("{{" in text or QUOTES in text for text in _texts(turns))
        samples = sample_conversations(turns.system is not None)
        if usable and all(rendered(turns, messages) == render(messages, True) for messages in samples):
            return turns
    return None


def sample_conversations(with_system: bool) -> list[Messages]:
    """Conversations of one to three questions, of many kinds of text, with a system prompt and without."""
    found: list[Messages] = []
    for count in (1, 3, 5):
        for shift in range(len(SAMPLES)):
            texts = [SAMPLES[(shift + number) % len(SAMPLES)] for number in range(count + 1)]
            said = [
                {"role": ("user", "assistant")[number % 2], "content": text}
                for number, text in enumerate(texts[:count])
            ]
            found.append(said)
            if with_system:
                found.append([{"role": "system", "content": texts[-1]}, *said])
    return found


def _candidates(render: Render) -> Iterator[Turns]:
    """Forms that the template may have, from what it makes of probes; which one it has is for samples to show."""
    system, *said = [{"role": role, "content": text} for role, text in zip(ROLES, PROBES, strict=True)]
    texts = render(said, True), render(said[:1], False), render(said[:2], False)
    if None in texts:
        return
    with_system = render([system, said[0]], True)
    for split in (_by_ends, _by_overlap):
        with contextlib.suppress(ValueError):
            turns = split(*(text or "" for text in texts))
            if with_system is None:
                yield turns
                continue
            first, then, _ = _around(with_system, PROBES[:2])
            if then.endswith(turns.user[0]):
                yield turns._replace(system=(first, then.removesuffix(turns.user[0])))
            elif first == turns.opening + turns.user[0]:
                yield turns._replace(system=("", then), folded="first")
                yield turns._replace(system=("", then), folded="last")


def _by_ends(long: str, short: str, answered: str) -> Turns:
    """The form, where a conversation that is not to go on ends as its last turn does. Raises ValueError elsewhere."""
    before, between, after, end = _around(long, PROBES[1:])
    _, user_end = _around(short, PROBES[1:2])
    *_, answer_end = _around(answered, PROBES[1:3])
    user_start = _less(after, answer_end)
    opening = _less(before[::-1], user_start[::-1])[::-1]
    user, answer = (user_start, user_end), (_less(between, user_end), answer_end)
    return Turns(opening, None, user, answer, _less(end, user_end), "")


def _by_overlap(long: str, *_: str) -> Turns:
    """The form from what is alike before questions, and after them. Raises ValueError where a probe is not there."""
    before, between, after, end = _around(long, PROBES[1:])
    user_start = _alike(before[::-1], after[::-1])[::-1]
    user_end = _alike(between, end)
    user, answer = (user_start, user_end), (_less(between, user_end), after.removesuffix(user_start))
    return Turns(before.removesuffix(user_start), None, user, answer, _less(end, user_end), "")


def _around(text: str, probes: Sequence[str]) -> list[str]:
    """What stands before, between and behind texts. Raises ValueError unless each is there once, in order."""
    parts = []
    for probe in probes:
        part, found, text = text.partition(probe)
        if not found:
            raise ValueError(f"{probe} is not rendered")
        parts.append(part)
    return [*parts, text]


def _alike(one: str, other: str) -> str:
    """The longest start that two texts have in common."""
    same = takewhile(lambda letters: letters[0] == letters[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in same)


def _less(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError(f"{text!r} does not begin with {start!r}")
    return text[len(start) :]


def rendered(turns: Turns, messages: Messages) -> str:
    """What the Go template makes of a conversation, in Python; a test compares the two."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    text = turns.opening if turns.folded or not system else ""
    for number, message in enumerate(messages):
        last, content = number == len(messages) - 1, message["content"]
        if message["role"] == "system" and turns.system and not turns.folded:
            text += turns.system[0] + content + turns.system[1]
        elif message["role"] == "user":
            here = (turns.folded == "first" and number == 1) or (turns.folded == "last" and last)
            inside = system + turns.system[1] if turns.system and system and here else ""
            text += turns.user[0] + inside + content + turns.user[1] + (turns.start if last else "")
        elif message["role"] == "assistant":
            text += turns.answer[0] + content + ("" if last else turns.answer[1])
    return text


def go_template(turns: Turns) -> str:
    """The form of the turns as Ollama's template. An answer that is begun is left open, so that it can go on."""
    system, inside = "", ""
    if turns.system and turns.folded:
        here = "(eq $i 1)" if turns.folded == "first" else "$last"
        inside = _do(f"if and $.System {here}") + _do("$.System") + turns.system[1] + _do("end")
    elif turns.system:
        system = _do('if eq .Role "system"') + turns.system[0] + _do(".Content") + turns.system[1]
    parts = [
        _if("not .System", turns.opening) if system else turns.opening,
        _do("range $i, $_ := .Messages") + _do("$last := eq (len (slice $.Messages $i)) 1"),
        system + _do('else if eq .Role "user"' if system else 'if eq .Role "user"'),
        turns.user[0] + inside + _do(".Content") + turns.user[1] + _if("$last", turns.start),
        _do('else if eq .Role "assistant"'),
        turns.answer[0] + _do(".Content") + _if("not $last", turns.answer[1]),
        _do("end") + _do("end"),
    ]
    return "".join(parts)


def _do(action: str) -> str:
    return f"{{{{ {action} }}}}"


def _if(condition: str, text: str) -> str:
    return f"{_do(f'if {condition}')}{text}{_do('end')}" if text else ""


def _texts(turns: Turns) -> list[str]:
    return [turns.opening, *(turns.system or ()), *turns.user, *turns.answer, turns.start]
