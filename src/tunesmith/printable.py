"""Text that a terminal shows and does not obey: what a model, a file or a web page says may steer nothing."""

import re

STEERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters (Unicode's Cc) but tab and line ends: each sequence that a terminal obeys begins with one."""
UNSEEN = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""What turns the direction of what follows it (Unicode's Bidi_Control), and what is no character of a text."""
INSTEAD = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """The text with a sign for each control character, so that pieces of a text can be made printable one by one.

    A carriage return, which would write over the line, is left out.
    """
    return STEERS.sub(INSTEAD, text.replace("\r", ""))


def visible(text: str) -> str:
    """A text with a sign for each character that would not be seen and changes how others are."""
    return UNSEEN.sub(INSTEAD, printable(text))
