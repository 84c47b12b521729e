"""What is shown on a terminal while something long runs."""

import os
import pty
import subprocess
import sys

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
