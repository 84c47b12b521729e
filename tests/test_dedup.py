"""Duplicates and the held-out split that follows them."""

import hashlib

import pytest
from families import conversation
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.dedup import clusters, signature, words
from tunesmith.data.split import DUPLICATE, HELD_OUT, LEAK, TRAIN, fates, held_out_clusters
from tunesmith.errors import DataError

BASE = conversation("What is LoRA?", "A low-rank adapter.")


@pytest.mark.parametrize(
    "same",
    [
        conversation("what is  LORA", "A low-rank\nadapter!!"),
        conversation("«What is LoRA?»", "A low rank adapter"),
        conversation("What is LoRA?", "A low-rank adapter.", system="Be kind."),
        conversation("What is \uff2c\uff4f\uff32\uff21?", "A low-rank adapter."),
    ],
)
def test_the_same_words_are_duplicates(same):
    assert signature(same) == signature(BASE)


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
    assert signature(one) != signature(other)


def test_words_of_a_text():
    assert words("  Straße, «Don't»\u00a0STOP…\n") == "strasse don t stop"


def test_clusters_are_numbered_by_first_appearance():
    assert clusters(["b", "a", "b", "c", "a"]) == [0, 1, 0, 2, 1]


SIGNATURES = st.lists(st.sampled_from([hashlib.sha256(bytes([n])).hexdigest() for n in range(40)] + [""]), max_size=80)


@given(SIGNATURES, st.floats(0.01, 0.99), st.integers(0, 3), st.booleans())
def test_no_cluster_is_on_both_sides(signatures, share, seed, dedup):
    different = set(filter(None, signatures))
    if different and int(share * len(different) + 1e-9) == 0:
        with pytest.raises(DataError, match="none would be held out"):
            fates(signatures, 0, share, seed, dedup=dedup)
        return
    found = fates(signatures, 0, share, seed, dedup=dedup)
    sides = {fate: {s for s, f in zip(signatures, found, strict=True) if f == fate} for fate in (TRAIN, HELD_OUT)}
    assert not sides[TRAIN] & sides[HELD_OUT] and sides[TRAIN] | sides[HELD_OUT] == different
    assert len(sides[HELD_OUT]) == int(share * len(different) + 1e-9)
    assert [fate == "" for fate in found] == [not signature for signature in signatures]
    kept = [s for s, fate in zip(signatures, found, strict=True) if fate in (TRAIN, HELD_OUT)]
    assert sorted(kept) == sorted(different if dedup else filter(None, signatures))


def test_a_new_row_moves_no_other_but_at_the_border():
    many = [hashlib.sha256(f"{n}".encode()).hexdigest() for n in range(1001)]
    before, after = held_out_clusters(many[:1000], 0.1, 0), held_out_clusters(many, 0.1, 0)
    assert len(before) == len(after) == 100 and len(before & after) >= 99
    assert len(held_out_clusters(many, 0.1, 1) & after) < 30  # another seed, another choice
    assert len(held_out_clusters(many[:100], 0.29, 0)) == 29  # 0.29 * 100 is 28.999999999999996


def test_a_held_out_source_keeps_its_words_out_of_training():
    signatures = ["a", "b", "b", "c", "", "b", "d", "d"]
    assert fates(signatures, 5, None, 0, dedup=True) == [TRAIN, LEAK, LEAK, TRAIN, "", HELD_OUT, HELD_OUT, DUPLICATE]
    assert fates(signatures, 5, None, 0, dedup=False)[6:] == [HELD_OUT, HELD_OUT]


@pytest.mark.parametrize(("rows", "share", "fix"), [(91, 0.01, "0.011"), (3, 0.1, "0.34"), (99, 0.01, "0.011")])
def test_an_empty_held_out_set_says_what_to_write(rows, share, fix):
    names = [str(n) for n in range(rows)]
    with pytest.raises(DataError, match=rf"{share} of {rows} different conversations.*\n.*write {fix} or more"):
        held_out_clusters(names, share, 0)
    assert len(held_out_clusters(names, float(fix), 0)) == 1
    with pytest.raises(DataError, match="add conversations"):
        held_out_clusters(["one"], 0.5, 0)
