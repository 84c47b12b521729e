"""Killed at random moments and where it hurts most, on machines that come and go: the same bits, and little is lost."""

import sys
from pathlib import Path

from forked import forked

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import crash

KILLS = 30


def test_killed_at_random_moments_and_where_it_hurts_the_bits_are_the_same(tmp_path):
    arguments = ("--kills", KILLS, "--mirror")
    with forked(tmp_path / "output", *arguments, of=crash.main, TMPDIR=str(tmp_path)) as killer:
        assert killer.wait() == 0, (killer.stdout, killer.stderr)
        *rows, last = killer.stdout.splitlines()
    assert last == f"{KILLS} of {KILLS} equal, 0 lost beyond the cadence"
    aims = {row[:20].strip(): int(row[20:26]) for row in rows[2:]}
    assert sum(aims.values()) == KILLS and aims.keys() == {crash.UNIFORM, *crash.AIMS}, aims
