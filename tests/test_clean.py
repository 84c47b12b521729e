# ruff: noqa: RUF001 (letters of all kinds are what is tested)
"""Cleaning: what is put right and counted, what is dropped by which reason, what each rule does when it is off."""

import pytest

from tunesmith.data.answers import cut_short, only_refuses
from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation, Dropped, Turn
from tunesmith.data.repairs import decoded, is_blank, tidied
from tunesmith.recipe import Clean

CALL = '[{"name": "f", "arguments": {}}]'
U, A, S, T = Turn("user", "q"), Turn("assistant", "a"), Turn("system", "s"), Turn("tool", "42")
ASKS = Turn("assistant", "", calls=CALL)
LEAD = Turn("assistant", "a", trained=False)


def user(text):
    return Turn("user", text)


def answer(text, **more):
    return Turn("assistant", text, **more)


def cleaned(*turns, tools="", **rules):
    found, changes = clean(Conversation(turns, "x:1", tools), Clean(**rules))
    return (found.reason if isinstance(found, Dropped) else list(found.turns)), changes


@pytest.mark.parametrize(
    "turns",
    [
        [U, A],
        [S, U, A, U, A],
        [U, ASKS, T, A],
        [U, ASKS, T, T, A, U, A],
        [S, U, ASKS, T, ASKS, T, A],
        [U, ASKS],
        [U, answer("a", reasoning="thought")],
        [user(" q\n"), A],
        [U, answer("a\u200bb \u200d \u00ad"), user("\U0001f469\u200d\U0001f680"), A],  # within a text they have a use
    ],
)
def test_what_is_right_is_left_alone(turns):
    assert cleaned(*turns, tools="[1]") == (turns, [])
    assert clean(Conversation(tuple(turns), "x:1", "[1]"))[0].tools == "[1]"


@pytest.mark.parametrize(
    ("turns", "kept", "changes"),
    [
        ([U, user("q2"), A], [user("q\n\nq2"), A], ["turns of one speaker joined"]),
        ([U, A, A, A], [U, answer("a\n\na\n\na")], ["turns of one speaker joined"]),
        ([S, Turn("system", "t"), U, A], [Turn("system", "s\n\nt"), U, A], ["turns of one speaker joined"]),
        ([U, A, ASKS, T, A], [U, answer("a", calls=CALL), T, A], ["turns of one speaker joined"]),
        ([U, A, user("\u200b"), U, A], [U, A, U, A], ["turns of one speaker joined"]),
        ([U, answer("b", trained=False), A, U, A], [U, answer("b\n\na", trained=False), U, A],
         ["turns of one speaker joined"]),
        ([U, A, S, U, A], [U, A, user("s\n\nq"), A],
         ["system turn in the middle made the user's", "turns of one speaker joined"]),
        ([U, S, A], [user("q\n\ns"), A], ["system turn in the middle made the user's", "turns of one speaker joined"]),
        ([U, A, S, A], [U, A, user("s"), A], ["system turn in the middle made the user's"]),
        ([A, U, A], [LEAD, U, A], ["answers before the first question kept as context"]),
        ([S, A, U, A], [S, LEAD, U, A], ["answers before the first question kept as context"]),
        ([ASKS, T, A, U, A], [answer("", calls=CALL, trained=False), T, LEAD, U, A],
         ["answers before the first question kept as context"]),
        ([T, A, U, A], [LEAD, U, A],
         ["results of tools before the first question cut off", "answers before the first question kept as context"]),
        ([T, U, A], [U, A], ["results of tools before the first question cut off"]),
        ([Turn("system", "\ufe0f"), U, A], [U, A], ["empty system turn removed"]),
        ([U, A, U], [U, A], ["last question without an answer cut off"]),
        ([U, ASKS, T], [U, ASKS], ["last question without an answer cut off"]),
        ([U, A, S], [U, A], ["system turn in the middle made the user's", "last question without an answer cut off"]),
        ([U, answer(" a\n")], [U, A], ["white space around an answer removed"]),
        ([U, A, U, answer("")], [U, A], ["cut before an empty turn"]),
        ([U, A, user("\u3164"), A], [U, A], ["cut before an empty turn"]),
        ([U, A, U, answer("caf\ufffd"), U, A], [U, A], ["cut before text with replacement characters (U+FFFD)"]),
        ([U, A, U, answer("a\x01")], [U, A], ["cut before control characters"]),
        ([U, ASKS, A], [U, ASKS], ["cut before roles do not alternate"]),  # an answer without the call's result
        ([U, A, U, T, A], [U, A], ["cut before roles do not alternate"]),
        ([answer("\ufffd"), U, A], [U, A], [
            "answers before the first question kept as context",
            "answers before the first question cut off: text with replacement characters (U+FFFD)",
        ]),
    ],
)  # fmt: skip
def test_what_can_be_put_right_drops_no_row(turns, kept, changes):
    assert cleaned(*turns) == (kept, changes)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no assistant turn"),
        ([S, U], "no assistant turn"),
        ([A], "does not start with the user"),
        ([S, A, T, A], "does not start with the user"),
        ([A, U], "does not start with the user"),
        ([U, LEAD], "no answer in it is to be trained on"),
        ([U, T, A], "roles do not alternate"),
        ([U, answer("\u200b\u00ad\ufeff\u3164\ufe0f\u00a0\u2800")], "an empty turn"),
        ([user("\ufe0f"), A], "an empty turn"),
        ([U, answer("a", reasoning="\ud800")], "text that is not valid Unicode"),
        ([U, answer("a", calls='"\ufffd"')], "text with replacement characters (U+FFFD)"),
        ([U, answer("a\x00b")], "control characters"),
        ([U, answer('{"a": [1, 2')], "answers cut within JSON or a code block"),
    ],
)
def test_what_cannot_is_dropped_by_its_reason(turns, reason):
    assert cleaned(*turns) == (reason, [])


def test_a_dropped_row_says_how_it_begins():
    found, _ = clean(Conversation((S, user("Why\ud800" + "y" * 100), A), "x:1"))
    assert found == Dropped("x:1", "text that is not valid Unicode", "Why\\ud800" + "y" * 76)


def test_tools_that_are_no_text_drop_the_row():
    assert cleaned(U, A, tools='"\ud800"') == ("text that is not valid Unicode", [])


@pytest.mark.parametrize(
    ("rules", "turns"),
    [
        ({"empty": False}, [U, answer("")]),
        ({"empty": False}, [Turn("system", ""), U, A]),
        ({"no_answer": False}, [U]),
        ({"no_answer": False}, [U, LEAD]),
        ({"roles": False}, [U, U, A, S, A, A]),
        ({"leading_answer": False}, [A, U, A]),
        ({"leading_answer": False}, [A]),
        ({"mojibake": False}, [U, answer("cafÃ©")]),
        ({"replacement": False}, [U, answer("caf\ufffd")]),
        ({"control": False}, [U, answer("\x1b[1ma\x00")]),
        ({"truncated": False}, [U, answer('{"a":')]),
    ],
)
def test_every_rule_can_be_switched_off(rules, turns):
    assert cleaned(*turns, **rules) == (turns, [])
    assert cleaned(*turns) != (turns, []), "the rule is not on"


def test_every_rule_is_tried_off_or_on_here():
    off = {
        name for mark in test_every_rule_can_be_switched_off.pytestmark for rules, _ in mark.args[1] for name in rules
    }
    assert off | {"refusals", "min_answer", "max_characters"} == set(Clean.model_fields)


def test_answers_that_should_not_be_learned_stay_as_context():
    refusal, cut = answer("As an AI language model, I cannot do that."), answer("```py\nx = 1")
    no = {"trained": False}
    assert cleaned(U, refusal, U, A) == ([U, refusal, U, A], [])
    assert cleaned(U, refusal, U, A, refusals=True) == (
        [U, answer(refusal.text, **no), U, A], ["answers that only refuse not trained on"],
    )  # fmt: skip
    assert cleaned(U, refusal, refusals=True) == ("answers that only refuse", [])
    assert cleaned(U, cut, U, A) == (
        [U, answer(cut.text, **no), U, A], ["answers cut within JSON or a code block not trained on"],
    )  # fmt: skip
    assert cleaned(U, A, U, answer("long"), min_answer=2) == (
        [U, LEAD, U, answer("long")], ["answers shorter than min_answer not trained on"],
    )  # fmt: skip
    assert cleaned(U, A, min_answer=2) == ("answers shorter than min_answer", [])
    assert cleaned(U, ASKS, min_answer=2) == ([U, ASKS], [])  # a call is no short answer


def test_what_is_too_long_is_cut_after_the_last_answer_that_fits():
    assert cleaned(U, A, U, A, max_characters=4) == ([U, A, U, A], [])
    assert cleaned(U, A, U, A, max_characters=3) == ([U, A], ["cut to max_characters"])
    assert cleaned(U, A, max_characters=1) == ("longer than max_characters", [])
    assert cleaned(U, answer("a", reasoning="r"), max_characters=2) == ("longer than max_characters", [])


BROKEN = ["Itâ€™s", "cafÃ©", "voilÃ\xa0 tout", "ä½\xa0å¥½", "\x93hi\x94 he said", "naïve cafÃ© “ok”", "Ã©tÃ©"]
MENDED = ["It’s", "café", "voilà tout", "你好", "“hi” he said", "naïve café “ok”", "été"]


def test_text_that_was_decoded_with_the_wrong_code_is_put_right():
    assert [decoded(text) for text in BROKEN[:2] + BROKEN[3:]] == MENDED[:2] + MENDED[3:]
    assert cleaned(user("cafÃ©?"), answer("Itâ€™s", reasoning="Ã©tÃ©")) == (
        [user("café?"), answer("It’s", reasoning="été")],
        ["broken Unicode (decoded with the wrong code) put right"],
    )


GOOD = [
    "été, déjà vu: L’été à la plage – “oui”", "Größe, Straße, ÄÖÜ", "Привет, как дела?", "Ελληνικά", "你好，世界。",
    "नमस्ते दुनिया", "مرحبا", "x² ≥ √2 · ∑ᵢ αᵢ → ∞", "┌──┐\n│ok│\n└──┘", "ﬁn ﬂow ½ Å e\u0301 &eacute; &amp;",
    "¡Olé! ¿Qué? ÃO NÃO", "a\u0085b",
    "Łódź, Żółć, čeština", "Tiếng Việt có dấu", "«guillemets» ™ © ® €5 £3",
    "한국어", "日本語「はい」", "😀👩‍🚀✅ ok",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_good_text_is_never_changed(text):
    assert cleaned(user(text), answer(text)) == ([user(text), answer(text)], [])


def test_broken_letters_that_are_shown_on_purpose_stay():
    for turns in (
        [user("Why does cafÃ© show up?"), answer("UTF-8 was read as Latin-1.")],
        [U, answer("Use `s.replace('Ã©', 'é')` here: cafÃ©")],
        [U, answer("x = 'Ã©';\nprint(x)")],
    ):
        assert cleaned(*turns) == (turns, [])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("\x1b[1;31mred\x1b[0m and \x1b]0;title\x07plain", "red and plain"),
        ("\ufeffq\x00\x00", "q"),
        ("one\x0btwo\n\x0c\nThree\x0cFour", "one\ntwo\n\n\nThree\nFour"),
        ("\x0crac{1}{2} \x08eta \x08egin{x} \x0corall x", "\\frac{1}{2} \\beta \\begin{x} \\forall x"),
        ("a\x00b \x0cabc \x08", "a\x00b \x0cabc \x08"),  # nobody knows what was meant
    ],
)
def test_what_a_terminal_or_a_page_left_is_taken_out(text, kept):
    assert tidied(text)[0] == kept
    assert bool(tidied(text)[1]) == (kept != text)


def test_what_can_be_seen():
    for text in (
        "",
        " \n\t\u00a0\u2003\u3000",
        "\u200b\u200c\u200d\u2060\ufeff",
        "\u00ad\u034f\u180e",
        "\u3164\uffa0\u115f",
    ):
        assert is_blank(text)
    for text in ("a", "\u200b.", "❤\ufe0f", "\u0301", "한"):
        assert not is_blank(text)


@pytest.mark.parametrize(
    ("text", "is_cut"),
    [
        ('{"a": 1', True),
        ('[{"a": "b', True),
        ("[1, 2", True),
        ("Here:\n```python\nx = 1", True),
        ("````md\n```\nx\n```\n", True),
        ("~~~\nx", True),
        ('{"a": 1}', False),
        ('{"a": 1} and more', False),
        ("{a, b, c", False),  # no JSON
        ("[1, 5)", False),
        ("[citation needed", False),
        ("```\nx\n```", False),
        ("```a\nx\n```\n\n```b\ny\n```", False),
        ("~~~\n```\n~~~", False),
        ("Use ``` for code", False),
        ("```ls -la```\nlists files", False),
        ("Do this:\n```python\nprint(1)```", False),
        ("Do this:\n```", True),
        ("```ls```\n```\nls", True),
        ("The answer is", False),
    ],
)
def test_an_answer_that_is_cut(text, is_cut):
    assert cut_short(text) is is_cut


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("As an AI language model, I don't have personal opinions or feelings.", True),
        ("I’m sorry, but as an AI I cannot provide medical advice.", True),
        ("I apologize, but I am unable to fulfill that request.", True),
        ("Sorry, I won't help with that.", True),
        ("Unfortunately, I do not have access to real-time information.", True),
        ("I will not succeed.", False),
        ("I can't believe it! What a day.", False),
        ("As an AI, I can help you with that.", False),
        ("I'm sorry to hear that. Have you tried tea?", False),
        ("Sure! I cannot wait to help.", False),
        ("As an AI language model, I cannot taste, but here is a recipe: " + "mix it well " * 60, False),
    ],
)
def test_an_answer_that_only_refuses(text, refuses):
    assert only_refuses(text) is refuses
