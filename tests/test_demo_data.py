"""The demo's conversations: enough of them, real turns, and nothing that is asked is in the training rows."""

import subprocess
import sys
from pathlib import Path


def test_the_check_passes():
    script = Path(__file__).parents[1] / "benchmarks" / "check_demo_data.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
