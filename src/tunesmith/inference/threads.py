"""How many threads llama.cpp is given."""

from tunesmith.console import warn
from tunesmith.machine import usable_cores


def warn_of_threads(threads: int, name: str) -> None:
    """Say so if there are more threads than cores: each waits for the others by spinning, and answers crawl.

    `name`: of the setting, for the user.
    """
    if threads > (cores := usable_cores()):
        have = "1 core" if cores == 1 else f"{cores} cores"
        warn(f"{name} is {threads}, and {have} can be used: answers will be slow; say {cores}")
