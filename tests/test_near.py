"""Near duplicates: found where they are, and never made of rows whose numbers, negations or operators differ."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from families import conversation
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import clusters, near
from tunesmith.data.clusters import ALIKE, MOST_LEADERS, jaccard
from tunesmith.data.conversation import Conversation, Turn
from tunesmith.data.near import BANDS, ROWS, Sketches, hashed_words, sketches
from tunesmith.data.signed import SignedWriter, sign
from tunesmith.data.split import DUPLICATE, HELD_OUT, LEAK, NEAR_DUPLICATE, NEAR_LEAK, NOBODY, TRAIN, fates

DRAW = random.Random(0)
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrstv"]


def sentence(words=60, draw=DRAW):
    return " ".join(draw.choice(VOCABULARY) for _ in range(words))


def with_word(text, place, word):
    words = text.split()
    words[place] = word
    return " ".join(words)


def signed(rows, tmp_path, dedup="near", left=None, batch=7):
    """Rows in batches, as prepare has them; `left`: row -> turns that are left of it."""
    pairs = [(row, row.turns[: (left or {}).get(place, len(row.turns))]) for place, row in enumerate(rows)]
    with SignedWriter(tmp_path / "shingles") as writer:
        for first in range(0, len(rows), batch):
            writer.add(sign(pairs[first : first + batch], dedup))
        assert len(writer) == len(rows)
        return writer.rows()


def decided(rows, tmp_path, *, dedup="near", left=None):
    """What becomes of training rows beside a held-out one that is like none of them, and for whom each is dropped."""
    strange = conversation("Something else", "Nothing of the kind")
    found = fates(signed([*rows, strange], tmp_path, dedup, left), len(rows), None, 0, dedup, decontaminate=False)
    return found.what_N[:-1], found.by_N[:-1].tolist()


def alone(text):
    """The guard and the different shingles of one text."""
    found = sketches([[Turn("user", text)]])
    return int(found.guards_N[0]), np.unique(found.shingles_S)


def words_of(text):
    """How many words, and which of them are decisive, one letter each."""
    found = hashed_words([text])
    return "".join("!" if decisive else "." for decisive in found.decisive_W)


@pytest.mark.parametrize(("text", "expected"), [
    ("What is 3 * -2?", "..!!!!"), ("a low-rank adapter", "...."), ("7-3", "!!!"), ("7.3 or 1,000 or 7, 3", "!.!.!!"),
    ("n > -2 when n=2", "!!!!.!!!"), ("Do not. I don't, cannot; no!", ".!.!!!"), ("it's the dogs' bone", "...."),
    ("C# and C++", "!!.!!!"), ("option B or a", ".!.."),
    ("two of GPT4", "!.!"), ("5! is 120", "!!.!"), ("if (!done && a != b)", ".!.!!.!!!"),
    ("(7 + 3) * 2 (see below)", "!!!!!!.."), ("-(7 + 3)", "!!!!!"), ("€5, 5 km² and ½", "!!!!.!!!"),
    ("它不是猫", ".!.."), ("किताब नहीं", ".!"), ("三个苹果", "!..."), ("行きません", "..!..."),
    ("行きますか", "....."), ("안 갈 않다", "!.!"), ("안녕", "."), ("nicht ÜBER", "!."),
    ("naïve\u2019s caf\u00e9", ".."), ("", ""), ("… — !", ""),
])  # fmt: skip
def test_words_of_a_text_and_those_that_decide(text, expected):
    assert words_of(text) == expected


def test_a_word_has_one_hash_wherever_it_stands_and_in_any_case(monkeypatch):
    text = "Straße 東京 \u212b naïve don\u2019t FINE 1,000 x"
    whole = hashed_words([text]).hashes_W
    later = hashed_words(["", "word " * 999 + text.upper().replace("\u2019", "'"), "a"])
    assert later.hashes_W[999:-1].tolist() == whole.tolist()
    assert len(set(whole.tolist())) == len(whole) == 9
    monkeypatch.setattr(near, "BLOCK_BYTES", 40)
    many = [sentence(30) for _ in range(20)] + ["", "x" * 300, "東京" * 30]
    small = hashed_words(many)
    monkeypatch.undo()
    large = hashed_words(many)
    assert small.counts_N.sum() == len(small.hashes_W) and small.counts_N[:20].tolist() == [30] * 20
    assert small.hashes_W[:600].tolist() == large.hashes_W[:600].tolist() and large.counts_N.tolist()[20:] == [0, 1, 60]


@settings(max_examples=30)
@given(st.lists(st.text(max_size=60), max_size=6))
def test_a_batch_is_hashed_as_its_texts_are_alone(texts):
    whole, parts = (
        sketches([[Turn("user", text)] for text in texts]),
        [sketches([[Turn("user", text)]]) for text in texts],
    )
    for name in Sketches._fields if texts else ():
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts])), name


def test_shingles_are_three_words_in_a_ring():
    """Against sets of words: true Jaccard, by a second way."""

    def ring(text):
        words = re.findall(r"\w+", text.lower())
        return {tuple((words + words)[place : place + 3]) for place in range(len(words))}

    for changed in (0, 3, 11, 30, 59):
        one = sentence()
        other = with_word(one, changed, "Zebra")
        sets = ring(one), ring(other)
        assert jaccard(alone(one)[1], alone(other)[1]) == len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_bands_find_what_they_promise():
    """Minima of fewer hashes, or of hashes that are no permutation, would find fewer; 100 pairs about Jaccard 0.8."""
    one, pairs, promised = sentence(120), [], []
    for _ in range(100):
        other = one
        for place in DRAW.sample(range(0, 120, 3), 4):
            other = with_word(other, place, DRAW.choice(VOCABULARY) * 2)
        pairs.append(other)
        promised.append(jaccard(alone(one)[1], alone(other)[1]) ** ROWS)
    bands_NB = sketches([[Turn("user", text)] for text in (one, *pairs)]).bands_NB
    met = bands_NB[1:] == bands_NB[0]
    assert min(promised) > 0.25 and met.any(axis=1).all()
    assert met.mean() == pytest.approx(np.mean(promised), abs=0.05)
    assert 1 - (1 - ALIKE**ROWS) ** BANDS > 0.999
    far = sketches([[Turn("user", sentence())] for _ in range(300)]).bands_NB
    assert all(len(np.unique(band)) == 300 for band in far.T)


def test_the_longest_of_rows_that_are_nearly_the_same_is_kept(tmp_path):
    text = sentence()
    rows = [
        conversation("Please say something nice to all of my friends", text + end)
        for end in ("", " " + sentence(3), " indeed")
    ]
    rows += [rows[1], conversation("Please say something nice to all of my friends", sentence())]
    assert decided(rows, tmp_path) == (
        [NEAR_DUPLICATE, TRAIN, NEAR_DUPLICATE, DUPLICATE, TRAIN], [1, NOBODY, 1, 1, NOBODY]
    )  # fmt: skip
    assert decided(rows, tmp_path, dedup="exact")[0] == [TRAIN, TRAIN, TRAIN, DUPLICATE, TRAIN]


TEXT = (
    "Ann has 12 apples and gives 3 of them to each of the children who do not have one in the big garden of the house"
)


@pytest.mark.parametrize(("old", "new"), [
    ("12", "13"), ("12", "1.2"), ("3", "three"), (" not", ""), ("do not", "don't"), ("has 12", "has -12"),
    ("one", "none"),    ("12 apples", "12 * 2 apples"),
    ("gives 3", "gives > 3"), ("12 apples and gives 3", "3 apples and gives 12"),
    ("each", "half"), ("the big", "no big"), ("each", "fifth"), ("each", "deux"), ("each", "五"), ("each", "false"),
    ("each", "xiv"), ("big garden", "garden b"), ("big", "inte"), ("big", "못"),
])  # fmt: skip
def test_rows_that_differ_in_what_decides_are_never_merged(tmp_path, old, new):
    """Each pair is above 0.8, and meets in every band: the guard alone keeps it apart."""
    long = f"{sentence()} {TEXT} {sentence()}"
    other = long.replace(old, new, 1)
    assert other != long and jaccard(alone(long)[1], alone(other)[1]) >= ALIKE and alone(long)[0] != alone(other)[0]
    answer = "That is what she gives to the children"
    assert decided([conversation(long, answer), conversation(other, answer)], tmp_path)[0] == [TRAIN, TRAIN]


def test_no_chain_merges_what_differs(tmp_path):
    """a is like b and b like c, each by nine in ten; the numbers of a and c differ, so b has those of one of them."""
    text = sentence(100)
    rows = [conversation(with_word(text, place, word), "Yes, that is right, and it is so for all") for place, word in
            [(0, "12"), (1, "12"), (0, "13"), (0, "twelve"), (2, "12")]]  # fmt: skip
    kept = [place for place, what in enumerate(decided(rows, tmp_path)[0]) if what == TRAIN]
    assert kept == [0, 2, 3]


@pytest.mark.parametrize(("one", "other"), [("Yes.", "Maybe."), ("Paris", "London"), ("It is good.", "It is bad.")])
def test_short_turns_are_the_same_or_others(tmp_path, one, other):
    """A review of a hundred words and an answer of one: the row's Jaccard says nothing."""
    review = sentence(100)
    rows = [
        conversation(review, one),
        conversation(review, other),
        conversation(one, review),
        conversation(other, review),
    ]
    assert decided(rows, tmp_path)[0] == [TRAIN] * 4
    few = [conversation("How are you?", "I am fine"), conversation("How are you", "I am fine!")]
    assert decided(few, tmp_path)[0] == [TRAIN] * 2  # under 8 words: to the letter


def test_system_prompts_tools_and_masks_make_other_rows(tmp_path):
    question, answer = sentence(), sentence()
    near_answer = with_word(answer, 30, "zebra")
    rows = [conversation(question, text, system=system) for text in (answer, near_answer) for system in ("A", "B")]
    what, by = decided(rows, tmp_path)
    assert what == [TRAIN, TRAIN, NEAR_DUPLICATE, NEAR_DUPLICATE] and by[2:] == [0, 1]
    turns = rows[0].turns[1:]
    masked = (turns[0], replace(turns[1], trained=False))
    others = [Conversation(turns, "r:1"), Conversation(masked, "r:2"), Conversation(turns, "r:3", tools="[]")]
    assert decided(others, tmp_path)[0] == [TRAIN] * 3
    thought = [turns[0], replace(turns[1], reasoning=sentence())]
    both = [turns[0], replace(turns[1], text=f"{thought[1].reasoning}\n{turns[1].text}")]
    assert decided([Conversation(tuple(said), "r") for said in (thought, both)], tmp_path)[0] == [TRAIN] * 2
    assert decided([Conversation(tuple(thought), f"r:{n}") for n in (1, 2)], tmp_path)[0].count(TRAIN) == 1


def test_twins_are_on_one_side_of_the_split(tmp_path):
    """Their system prompts differ, so that both are kept; by seed the cluster is held out or not, and never in two."""
    rows = []
    for _ in range(6):
        question, answer = sentence(), sentence()
        rows += [
            conversation(question, answer, system="A"),
            conversation(question, with_word(answer, 9, "zebra"), system="B"),
        ]
    found = signed(rows, tmp_path)
    for seed in range(8):
        what = fates(found, 0, 0.34, seed, "near", decontaminate=False)
        sides = [tuple(what.what_N[place : place + 2]) for place in range(0, 12, 2)]
        assert sorted(sides) == [(HELD_OUT,) * 2] * 2 + [(TRAIN,) * 2] * 4
        assert what.clusters_N.tolist() == [place // 2 for place in range(12)]


@pytest.mark.parametrize("dedup", ["near", "exact", "off"])
def test_a_held_out_source_keeps_what_is_nearly_its_own_out_of_training(tmp_path, dedup):
    held, other = conversation(sentence(), sentence()), conversation(sentence(), sentence())
    twin = conversation(held.turns[0].text, with_word(held.turns[1].text, 5, "zebra"))
    rows = signed([twin, other, held, other], tmp_path, dedup)
    found = fates(rows, 2, None, 0, dedup, decontaminate=True)
    assert found.what_N == [LEAK if dedup == "near" else NEAR_LEAK, LEAK, HELD_OUT, HELD_OUT]
    assert found.by_N.tolist() == [2, 3, NOBODY, NOBODY]
    assert (fates(rows, 2, None, 0, dedup, decontaminate=False).what_N[0] == TRAIN) == (dedup != "near")


def test_what_is_left_after_the_cut_is_compared_too(tmp_path):
    question, answer = sentence(), sentence()
    rows = [
        conversation(question, text, sentence(150), sentence(150)) for text in (answer, with_word(answer, 7, "zebra"))
    ]
    assert decided(rows, tmp_path)[0] == [TRAIN, TRAIN]
    assert decided(rows, tmp_path, left={0: 2, 1: 2})[0] == [TRAIN, NEAR_DUPLICATE]


def test_many_rows_of_one_form_are_compared_with_few(tmp_path, monkeypatch):
    """They meet in bands and are not alike: pairs would be a square of their number."""
    form = sentence(60)
    rows = [conversation(form + " " + sentence(25), "Say it as it was said before, please") for _ in range(200)]
    compared = []
    monkeypatch.setattr(clusters, "jaccard", lambda one, other: compared.append(1) or jaccard(one, other))
    found = fates(signed(rows, tmp_path), 0, 0.1, 0, "near", decontaminate=False)
    assert found.what_N.count(TRAIN) == 180 and 100 < len(compared) < MOST_LEADERS * BANDS * 200
    near_rows = [
        conversation(with_word(form, place, "zebra"), "Say it as it was said before, please") for place in range(60)
    ]
    assert decided(near_rows, tmp_path)[0].count(NEAR_DUPLICATE) == 59
