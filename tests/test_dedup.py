"""Duplicates and the held-out split that follows them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from families import conversation
from hypothesis import assume, given
from hypothesis import strategies as st

from tunesmith.data.clusters import Texts
from tunesmith.data.conversation import Turn
from tunesmith.data.dedup import Signature, exact, signature, words
from tunesmith.data.signed import SignedRows
from tunesmith.data.split import DUPLICATE, HELD_OUT, LEAK, NOBODY, TRAIN, fates, held_out_clusters
from tunesmith.errors import DataError

BASE = conversation("What is LoRA?", "A low-rank adapter.")


def rows_of(pairs):
    """Rows signed as these, before and after the cut; none has words that another one could nearly have."""
    count, texts = len(pairs), [signed for pair in zip(*pairs, strict=True) for signed in pair]
    said = np.array([text.said.encode() for text in texts], "S64")
    beside = np.array([text.beside.encode() for text in texts], "S64")
    none = Texts(*np.zeros((2, 2 * count), np.uint64), *np.zeros((2, 2 * count), np.int64), Path())
    return SignedRows(np.arange(count), count + np.arange(count), said, beside, none)


def decided(pairs, first_held, share, dedup, seed=0):
    return fates(rows_of(pairs), first_held, share, seed, dedup, decontaminate=False).what_N


@pytest.mark.parametrize(
    "same",
    [
        conversation("what is  LORA", "A low-rank\nadapter!!"),
        conversation("«What is LoRA?»", "A low rank adapter"),
        conversation("What is LoRA?", "A low-rank adapter.", system="Be kind."),
        conversation("What is \uff2c\uff4f\uff32\uff21?", "A low-rank adapter."),
    ],
)
def test_the_same_words_are_duplicates_by_words_only(same):
    assert signature(same.turns, "words") == signature(BASE.turns, "words")
    assert signature(same.turns, "exact").whole != signature(BASE.turns, "exact").whole


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 * -2", "3 * 2"),
        ("What is x%y?", "What is x&y?"),
        ("Spell abc", "Spell ABC"),
        ("What is `f(x)`?", "What is `f[x]`?"),
        ("10.5", "105"),
        ("x²", "x2"),
        ("\u212b is a unit", "a\u030a is a unit"),  # Å the sign is Å the letter (NFC), not å
        ("ﬁne", "fine"),
        ("a\u200db", "ab"),  # a joiner joins letters of Hindi and emoji
    ],
)
def test_exact_keeps_what_words_may_lose(one, other):
    said = [signature([Turn("user", text), Turn("assistant", "6")], "exact") for text in (one, other)]
    assert len(set(said)) == 2 and said[0].said != said[1].said


@pytest.mark.parametrize(
    ("one", "other"),
    [("  a\u00a0 b\r\n\tc ", "a b c"), ("e\u0301", "é"), ("\u212b", "Å"), ("a\u2028b\u3000c", "a b c")],
)
def test_exact_looks_through_white_space_and_unicode_form(one, other):
    assert exact(one) == exact(other) == other
    assert len({signature([Turn("user", text)], "exact") for text in (one, other)}) == 1


def test_a_system_prompt_makes_another_row_that_stays_on_the_same_side():
    """It may hold the text that the question is about: three reviews, one question and two answers are three rows."""
    rows = [conversation("Is it praise?", "Yes.", system=text) for text in ("Review: good", "Review: fine")]
    rows += [conversation("Is it praise?", "No.", system="Review: bad"), conversation("Is it praise?", "Yes.")]
    found = [signature(row.turns, "exact") for row in rows]
    assert len({each.whole for each in found}) == 4 and len({each.said for each in found}) == 2
    assert found[3].whole == found[3].said == signature(rows[3].turns, "off").said
    assert len({signature(row.turns, "words") for row in rows}) == 2
    sides = decided([(each, each) for each in found], 0, 0.5, "exact")
    assert sides[0] == sides[1] == sides[3] != sides[2] and sorted(sides)[0] == HELD_OUT


def test_signatures_by_words_are_those_of_version_0_1():
    """Written down with version 0.1: runs begun with it go on with the same rows."""
    found = signature(BASE.turns, "words")
    assert found.said == found.whole == "42b90fbdbc81cffb9d83ccec3b0c7e2b4b938621678e7ceed12287987d369933"
    many = conversation("Straße «Don't» ½?", "कि 3 * -2\u00a0x²", "a\nb", "日本", system="S")
    assert signature(many.turns, "words").said == "b45a0b1392420e967a9235167e421acd05083a675f6b978507ee2a47704fae81"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BASE, conversation("What is LoRA?", "A high-rank adapter.")),
        (BASE, conversation("What is LoRA? A low-rank", "adapter.")),
        (BASE, conversation("What is LoRA?", "A low-rank adapter.", "And?", "No.")),
        (conversation("1 12", "x"), conversation("11 2", "x")),
        (conversation("2 + 2", "x"), conversation("2 = 2", "x")),
        (conversation("कि", "x"), conversation("की", "x")),
        (conversation("a", "b", "c", "d"), conversation("a", "b c", "d", "e")),
    ],
)
def test_other_words_are_not(one, other):
    for form in ("exact", "words"):
        assert signature(one.turns, form).said != signature(other.turns, form).said


@pytest.mark.parametrize("form", ["exact", "words"])
def test_the_same_words_as_reasoning_as_an_answer_and_as_a_call_are_not_the_same(form):
    """Joined, as they were, reasoning "A" before the answer "B" was a duplicate of the answer "A B"."""
    call = '[{"name": "f"}]'
    answers = [
        Turn("assistant", "A B"), Turn("assistant", "B", reasoning="A"), Turn("assistant", "", reasoning="A B"),
        Turn("assistant", f"A {call}"), Turn("assistant", "A", calls=call), Turn("assistant", "", calls=call),
        Turn("assistant", "", reasoning=call),
    ]  # fmt: skip
    assert len({signature([Turn("user", "?"), answer], form).said for answer in answers}) == len(answers)
    spaced = Turn("assistant", " B", reasoning="A\n")
    assert signature([spaced], form) == signature([answers[1]], form)


def test_words_of_a_text():
    assert words("  Straße, «Don't»\u00a0STOP…\n") == "strasse don t stop"


def test_clusters_are_numbered_by_first_appearance():
    rows = rows_of([(Signature(said),) * 2 for said in "babca"])
    assert fates(rows, 0, 0.5, 0, "off", decontaminate=False).clusters_N.tolist() == [0, 1, 0, 2, 1]


HASHES = [hashlib.sha256(bytes([n])).hexdigest() for n in range(40)]
SIGNATURES = st.lists(  # four system prompts, or none, above each of 40 things that are said
    st.builds(lambda said, system: Signature(said, system.strip()), st.sampled_from(HASHES), st.sampled_from(" abcd")),
    max_size=80,
)


@given(SIGNATURES, st.floats(0.01, 0.99), st.integers(0, 3), st.sampled_from(["exact", "off"]))
def test_no_cluster_is_on_both_sides(signatures, share, seed, dedup):
    different = {signature.said for signature in signatures}
    assume(not different or int(share * len(different) + 1e-9) > 0)  # none held out is an error: a test below
    found = decided([(s, s) for s in signatures], 0, share, dedup, seed)
    sides = {fate: {s.said for s, f in zip(signatures, found, strict=True) if f == fate} for fate in (TRAIN, HELD_OUT)}
    assert not sides[TRAIN] & sides[HELD_OUT] and sides[TRAIN] | sides[HELD_OUT] == different
    assert len(sides[HELD_OUT]) == int(share * len(different) + 1e-9)
    kept = [s for s, fate in zip(signatures, found, strict=True) if fate in (TRAIN, HELD_OUT)]
    assert sorted(kept) == sorted(set(signatures) if dedup == "exact" else signatures)


def test_a_new_row_moves_no_other_but_at_the_border():
    many = [hashlib.sha256(f"{n}".encode()).hexdigest() for n in range(1001)]
    before, after = held_out_clusters(many[:1000], 0.1, 0), held_out_clusters(many, 0.1, 0)
    assert len(before) == len(after) == 100 and len(before & after) >= 99
    assert len(held_out_clusters(many, 0.1, 1) & after) < 30  # another seed, another choice
    assert len(held_out_clusters(many[:100], 0.29, 0)) == 29  # 0.29 * 100 is 28.999999999999996


def test_a_held_out_source_keeps_its_words_out_of_training():
    pairs = [(Signature(name[0], name[1:]),) * 2 for name in ["a", "b", "b1", "c", "b", "d", "d", "d1"]]
    expected = [TRAIN, LEAK, LEAK, TRAIN, HELD_OUT, HELD_OUT, DUPLICATE, HELD_OUT]
    assert decided(pairs, 4, None, "exact") == expected
    assert decided(pairs, 4, None, "off")[5:] == [HELD_OUT] * 3
    found = fates(rows_of(pairs), 4, None, 0, "exact", decontaminate=False)
    assert found.by_N.tolist() == [NOBODY, 4, 4, NOBODY, NOBODY, NOBODY, 5, NOBODY]  # who each is dropped for


def test_rows_that_are_the_same_before_or_after_the_cut():
    """Read alike, cut apart (their letters make more tokens); read apart, cut alike; and both sides of a split."""
    rows = [tuple(Signature(hash) for hash in pair) for pair in ("AA", "Aa", "BB", "Cc", "Dc", "cc")]
    assert decided(rows, 0, 0.4, "exact").count(DUPLICATE) == 3  # Aa, Dc, cc
    off = decided(rows, 0, 0.26, "off")
    assert off[3] == off[4] == off[5] and off.count(HELD_OUT) in (1, 3)
    assert decided(rows, 5, None, "exact") == [TRAIN, DUPLICATE, TRAIN, LEAK, LEAK, HELD_OUT]
    assert decided(rows[1:] + rows[:1], 5, None, "exact") == [LEAK, TRAIN, TRAIN, DUPLICATE, DUPLICATE, HELD_OUT]


@pytest.mark.parametrize(("rows", "share", "fix"), [(91, 0.01, "0.011"), (3, 0.1, "0.34"), (99, 0.01, "0.011")])
def test_an_empty_held_out_set_says_what_to_write(rows, share, fix):
    names = [str(n) for n in range(rows)]
    with pytest.raises(DataError, match=rf"{share} of {rows} different conversations.*\n.*write {fix} or more"):
        held_out_clusters(names, share, 0)
    assert len(held_out_clusters(names, float(fix), 0)) == 1
    with pytest.raises(DataError, match="add conversations"):
        held_out_clusters(["one"], 0.5, 0)
