"""Training rows that give away what the model is measured by are dropped, by reason, and for whom is known."""

import pickle
import random

import pytest
from families import conversation
from test_near import VOCABULARY, sentence, signed, with_word

from tunesmith.data import decontaminate
from tunesmith.data.conversation import Turn
from tunesmith.data.decontaminate import COMMON_ROWS, IS_PROMPT, NEARLY_PROMPT, Prompts
from tunesmith.data.split import HELD_OUT, NOBODY, REPEATS, TRAIN, fates

PROMPT = "Please write a short and friendly letter to my neighbour about the noise at night"
PROMPTS = [PROMPT, "Who are you?", "What is 17 * 23?", "…", "Please write a short letter"]


def decided(train, held, tmp_path, *, decontaminate=True):
    found = fates(signed([*train, *held], tmp_path), len(train), None, 0, "near", decontaminate)
    return found.what_N, found.by_N.tolist()


def row(*turns):
    return conversation(*turns)


@pytest.mark.parametrize("chunk", [1 << 17, 150])
def test_rows_that_repeat_half_of_a_held_out_row_are_dropped(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(decontaminate, "CHUNK_SHINGLES", chunk)
    held = [row(sentence(50), sentence(50)), row(sentence(30), sentence(30)), row("Who is it?", sentence(8))]
    question, answer = (turn.text for turn in held[0].turns)
    half, less = " ".join(answer.split()[:60]), " ".join((question + " " + answer).split()[:50])
    train = [
        row(sentence(80), sentence(40) + " " + question + " " + half + " " + sentence(40)),  # 100 of 100 words
        row(sentence(80), less + " " + sentence(9)),  # 38 of 88 runs
        row(sentence(9), question[:-4] + " x " + sentence(20) + " " + answer),  # two halves of it
        row(sentence(300), held[1].turns[0].text.upper() + "!! " + held[1].turns[1].text.replace(" ", ", ")),
        row(sentence(40), sentence(200)),
        row("no", "yes"),
    ]
    what, by = decided(train, held, tmp_path)
    assert what == [REPEATS, TRAIN, REPEATS, REPEATS, TRAIN, TRAIN, *[HELD_OUT] * 3]
    assert by == [6, NOBODY, 6, 7, NOBODY, NOBODY, *[NOBODY] * 3]
    assert decided(train, held, tmp_path, decontaminate=False)[0][:6] == [TRAIN] * 6


def test_the_runs_that_are_counted_are_those_of_sets_of_words(tmp_path):
    """A second way: sets of 13 words in a row."""

    def runs(conversation):
        words = " ".join(turn.text for turn in conversation.turns).split()
        return {tuple(words[place : place + 13]) for place in range(len(words) - 12)}

    draw = random.Random(3)
    held = [row(sentence(40), sentence(40)) for _ in range(5)]
    train = []
    for number in range(5 * COMMON_ROWS):
        words = " ".join(turn.text for turn in held[number % 5].turns).split()
        first, size = draw.randrange(40), draw.randrange(20, 70)
        train.append(row(sentence(30), f"{sentence(20)} {' '.join(words[first : first + size])} {sentence(20)}"))
    what, _ = decided(train, held, tmp_path)
    for conversation_, fate in zip(train, what, strict=False):
        share = max(len(runs(conversation_) & runs(other)) / len(runs(other)) for other in held)
        assert (fate == REPEATS) == (share >= 0.5), share
    assert 10 < what.count(REPEATS) < 40


def test_the_wording_of_a_task_gives_nothing_away(tmp_path):
    """Every row begins with the same 60 words: that would drop the whole training set."""
    task = sentence(60)
    train = [row(f"{task} {sentence(10)}", sentence(20)) for _ in range(COMMON_ROWS + 1)]
    held = [row(f"{task} {sentence(10)}", sentence(20))]
    assert decided(train, held, tmp_path)[0] == [TRAIN] * len(train) + [HELD_OUT]
    assert set(decided(train[:-1], held, tmp_path)[0][:-1]) == {REPEATS}  # so few may be copies of the row
    many = [row(f"{task} {sentence(10)}", sentence(20)) for _ in range(decontaminate.COMMON_HELD + 1)]
    assert TRAIN in decided(train[:-1], many, tmp_path)[0]


def test_what_is_cut_off_gives_nothing_away(tmp_path):
    held = row(sentence(30), sentence(30))
    train = row(sentence(30), sentence(30), *(turn.text for turn in held.turns))
    found = [
        fates(signed([train, held], tmp_path, left=left), 1, None, 0, "near", True).what_N for left in ({}, {0: 2})
    ]
    assert found == [[REPEATS, HELD_OUT], [TRAIN, HELD_OUT]]


@pytest.mark.parametrize(("asked", "reason", "prompt"), [
    (PROMPT, IS_PROMPT, PROMPT), (f"  {PROMPT}\n", IS_PROMPT, PROMPT), ("Who are you?", IS_PROMPT, "Who are you?"),
    (PROMPT.upper() + "!", NEARLY_PROMPT, PROMPT), ("who are you", NEARLY_PROMPT, "Who are you?"),
    (PROMPT + " please", NEARLY_PROMPT, PROMPT), ("…", IS_PROMPT, "…"),
    ("What is 17 * 24?", None, None), ("What is 17 - 23?", None, None), ("Who are you, and who am I?", None, None),
    (PROMPT.replace("friendly letter", "angry song"), None, None), ("!", None, None), ("", None, None),
    (f"{PROMPT}. Then translate it into French and explain each word that you have chosen to a child", None, None),
    ("Please write a short letter to " + "all of us " * 30, None, None),
])  # fmt: skip
def test_a_turn_is_a_prompt_or_nearly_one_as_a_whole(asked, reason, prompt):
    prompts = pickle.loads(pickle.dumps(Prompts(PROMPTS, nearly=True)))  # as a worker gets them
    rows = [[Turn("user", asked), Turn("assistant", PROMPT)], [Turn("user", "Hi"), Turn("user", asked)], []]
    hit = (reason, prompt) if reason else None
    assert prompts.hits(rows) == [hit, hit, None]
    letter = hit if reason == IS_PROMPT else None
    assert Prompts(PROMPTS, nearly=False).hits(rows) == [letter, letter, None]
    assert Prompts([], nearly=True).hits(rows) == [None] * 3


def test_prompts_are_found_among_many(tmp_path):
    """The quick look that most turns end with passes over none."""
    texts = [" ".join(random.Random(n).choices(VOCABULARY, k=30)) for n in range(200)]
    prompts = Prompts(texts[::2], nearly=True)
    rows = [[Turn("user", with_word(text, 3, "zebra"))] for text in texts]
    assert [hit and hit[1] for hit in prompts.hits(rows)] == [t if n % 2 == 0 else None for n, t in enumerate(texts)]
