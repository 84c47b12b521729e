"""What is shown on a terminal while something long runs."""

import os
import pty
import subprocess
import sys

from tunesmith import console
from tunesmith.console import say, warn
from tunesmith.printable import printable
from tunesmith.study.compare import _printed
from tunesmith.study.measures import Cell

CODE = """
import sys
from tunesmith.console import progress, say
with progress("work", 3) as advance:
    say("a line of ours")
    print("a line of another package", file=sys.stderr)
    for _ in range(3):
        advance(1, "loss 1.0")
say("done")
"""


def test_a_bar_on_a_terminal_lets_lines_by_and_ends():
    master, slave = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", CODE], stderr=slave, env=os.environ | {"TERM": "xterm"})
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        shown += part
        assert len(shown) < 100_000, "it prints without end"
        if not part:
            break
    os.close(master)
    assert child.wait(timeout=60) == 0
    text = shown.decode()
    assert text.count("a line of ours") == text.count("a line of another package") == text.count("done") == 1
    assert "work" in text and "loss 1.0" in text


def test_the_time_left_is_in_seconds_only_while_it_is_short(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    advance = console._lines("work", 1000, 0, "steps")
    steps = (
        (20.0, 1, "1 of 1000 steps, 5.5 h"),
        (40.0, 19, "20 of 1000 steps, 33 min"),
        (80.0, 480, "500 of 1000 steps, 80 s"),
    )
    for now[0], more, said in steps:
        advance(more, "")
        assert capsys.readouterr().err == f"work: {said} left\n"


def test_what_others_wrote_is_shown_as_it_is_and_obeyed_by_nobody(capsys):
    """A sequence that steers a terminal begins with a control character; rich has signs of its own."""
    for show, sign in ((say, ""), (warn, "warning: ")):
        show("\x1b[2J\x9b31m\x07\r\n[bold]:cat:[/bold] \u65e5\x7f")
        shown = "\ufffd[2J\ufffd31m\ufffd\n[bold]:cat:[/bold] \u65e5\ufffd\n"
        assert capsys.readouterr().err == sign + shown
    assert _printed(Cell("\x1b[2J", spread="\x07")).plain == "\ufffd[2J (\ufffd)"
    every = "".join(map(chr, range(0x100)))
    assert [letter for letter in printable(every) if not letter.isprintable()] == ["\t", "\n", "\xa0", "\xad"]
