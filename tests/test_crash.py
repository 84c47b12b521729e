"""Killed at random moments and where it hurts most, on machines that come and go: the same bits, and little is lost."""

import re
import sys
from pathlib import Path

from forked import forked

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import crash
import t4_day

KILLS = 30


def test_killed_at_random_moments_and_where_it_hurts_the_bits_are_the_same(tmp_path):
    arguments = ("--kills", KILLS, "--mirror", "--epochs", 4)
    with forked(tmp_path / "output", *arguments, of=crash.main, TMPDIR=str(tmp_path)) as killer:
        assert killer.wait() == 0, (killer.stdout, killer.stderr)
        *rows, last = killer.stdout.splitlines()
    assert last == f"{KILLS} of {KILLS} equal, 0 lost beyond the cadence"
    aims = {row[:20].strip(): int(row[20:26]) for row in rows[2:-1]}
    assert sum(aims.values()) == KILLS and aims.keys() == {crash.UNIFORM, *crash.AIMS}, aims


def test_a_day_on_machines_that_are_taken_away_ends_with_the_same_adapter(tmp_path):
    """A short one, with two cuts and a limit; its clock is simulated, all else is real."""
    arguments = ("--hours", 1, "--limit", "0.5h", "--step", 150, "--seed", 8)
    with forked(tmp_path / "output", *arguments, of=t4_day.main, TMPDIR=str(tmp_path)) as killer:
        assert killer.wait() == 0, (killer.stdout, killer.stderr)
        *_, limit, last = killer.stdout.splitlines()
    assert int(re.fullmatch(r"the limit ended (\d+) session\(s\)", limit)[1]) >= 1
    found = re.fullmatch(r"the run ended: (\d+) cuts, most lost (\d+) s of 300 s, adapter equal", last)
    assert int(found[1]) >= 2 and 0 < int(found[2]) <= 300
