"""A fixed draw of the dirty set and of the mutated files; both whole in benchmarks/."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import dirty
import dirty_kinds
import fuzz_data

ROWS = 4


@pytest.mark.parametrize("kind", [*dirty_kinds.ROWS, *dirty_kinds.FILES])
def test_a_planted_fault_becomes_what_it_should(tmp_path, kind):
    rng = random.Random(kind)
    counts, first_wrong = dirty.judged(kind, [dirty_kinds.words(rng) for _ in range(ROWS)], tmp_path)
    assert counts.total() == ROWS and not first_wrong


def test_a_wrong_outcome_is_seen():
    kept = dirty_kinds.kept(dirty_kinds.u("q"), dirty_kinds.a("a"))
    found = dirty.Conversation((dirty_kinds.u("q"), dirty_kinds.a("a")), "x:1")
    assert dirty.outcome(kept, (found, [])) == "kept"
    assert dirty.outcome(kept, (found, ["something was done"])) == "wrong"
    assert dirty.outcome(kept, (dirty.Dropped("x:1", "no reason"), [])) == "wrong"
    assert dirty.outcome(dirty_kinds.dropped("empty"), (dirty.Dropped("x:1", "no reason"), [])) == "wrong"
    assert dirty.outcome(kept, None) == "wrong"
    assert {turn.trained for turn in (dirty_kinds.a("a", trained=False),)} == {False}
    assert dirty.outcome(dirty_kinds.kept(dirty_kinds.a("a", trained=False)), (found, [])) == "wrong"


@pytest.mark.parametrize("name", fuzz_data.FORMS)
def test_mutated_files_are_read_or_refused_by_name(tmp_path, name):
    rng = random.Random(name)
    for _ in range(25):
        content = fuzz_data.mutated(fuzz_data.FORMS[name](fuzz_data.rows_of(rng)), rng)
        what, word = fuzz_data.result_of(tmp_path / name, content)
        assert what in ("read", "refused"), f"{what}: {word}\n{content!r}"


def test_a_silent_drop_is_seen(tmp_path, monkeypatch):
    content = fuzz_data.FORMS["lines.jsonl"](fuzz_data.rows_of(random.Random(1)))
    assert fuzz_data.result_of(tmp_path / "x.jsonl", content) == ("read", "")
    monkeypatch.setattr(fuzz_data, "conversations", lambda source: list(dirty.conversations(source))[1:])
    assert fuzz_data.result_of(tmp_path / "x.jsonl", content)[0] == "silent drop"
