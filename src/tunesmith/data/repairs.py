"""What a text has in it that is no text, and how much of that can be put right; every repair has a name."""

import re

CONTROL = bytes({*range(0x20), 0x7F} - {*b"\t\n\r"})  # all below U+0080 but tab and line ends
C1 = re.compile(r"[\x80-\x84\x86-\x9f]")  # all above but NEL, a line end
C1_LEAD = b"\xc2"  # of U+0080 to U+00BF in UTF-8
NO_TEXT = re.compile("[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")  # half a character, and what Unicode gives no meaning
VISIBLE = re.compile(
    # White_Space and Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt, and the blank of Braille
    "[^\\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)

DECODED = "broken Unicode (decoded with the wrong code) put right"
ESCAPES = "terminal escapes removed"
LATEX = "LaTeX commands that JSON took the backslash of put right"
LINE_ENDS = "vertical tabs and form feeds made line ends"
MARKS = "byte order marks and NUL at the ends of a text removed"

AT_END = "\0\ufeff"
LETTER = "[\x80-\u04ff\u2000-\u25ff\uf000-\uf8ff\ufb00-\ufb06]"
MAY_BE_BROKEN = re.compile(rf"{LETTER}(?:{LETTER}|(?<=[\x80-\x84\x86-\x9f])|(?<=\xc3) )")
"""What all text has that was decoded with a wrong 8-bit code: two of its letters in a row, a C1 control, or "à" whose
second byte became a space. U+0085 alone is a line end. One class of letters comes first, since re
looks for that ten times faster than for alternatives."""
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")  # ECMA-48: CSI, OSC, C1
# "\frac" in JSON that was written by hand is a form feed and "rac": LaTeX's and AMS's commands that start with b or f
OF_LATEX = re.compile(
    r"\x08(?=(?:ar|egin|eta|ecause|ig[glr]?|igcup|igcap|inom|mod|oldsymbol|ot|oxed|oxtimes|reve|ullet)(?![a-z]))"
    r"|\x0c(?=(?:rac|lat|box|orall|rown)(?![a-z]))"
)
FEED = re.compile(r"\x0b|\x0c(?![a-z])")  # a form feed within a word is none
OF_CODES = re.compile(
    r"(?i)mojibake|encod|decod|unicode|utf-?\d|latin-?1|iso-?8859|cp-?125|windows-125|charset|garbled"
)
"""What a text that shows broken letters on purpose speaks of."""
CODE = re.compile(r"`|[{};]\s*$|</?[a-z]+>", re.MULTILINE)


def is_blank(text: str) -> bool:
    """True if nothing of a text can be seen: white space, zero-width characters, fillers, variation selectors alone."""
    return VISIBLE.search(text) is None


def has_control(text: str) -> bool:
    """True if a text has a control character that is no tab or line end. Seven times faster than a pattern for all."""
    data = text.encode(errors="surrogatepass")
    return len(data.translate(None, CONTROL)) < len(data) or (C1_LEAD in data and C1.search(text) is not None)


def may_be_broken(text: str) -> bool:
    """True if a text has what all text has that was decoded with the wrong code; seldom if it was not."""
    return not text.isascii() and MAY_BE_BROKEN.search(text) is not None


def tidied(text: str) -> tuple[str, list[str]]:
    """The text without what a terminal or a page had in it, and the names of what was done."""
    changes: list[str] = []
    if not has_control(text) and "\ufeff" not in text:
        return text, changes
    if (found := text.lstrip("\ufeff").rstrip(AT_END)) != text:
        changes.append(MARKS)
        text = found
    for name, pattern, new in (
        (ESCAPES, ESCAPE, ""),
        (LATEX, OF_LATEX, _backslash),
        (LINE_ENDS, FEED, "\n"),
    ):
        if (found := pattern.sub(new, text)) != text:
            changes.append(name)
            text = found
    return text, changes


def _backslash(taken: re.Match[str]) -> str:
    return "\\b" if taken[0] == "\b" else "\\f"


def decoded(text: str) -> str:
    """The text as it was before it was decoded with the wrong code ("cafÃ©"), where ftfy is sure; else as it is.

    The encoding alone: quotes, ligatures, widths, HTML and the form of letters stay. Code stays.
    """
    if not may_be_broken(text):
        return text
    import ftfy

    if NO_TEXT.search(text) or CODE.search(text):
        return text
    # replace_lossy_sequences would put U+FFFD where a letter is lost, and so drop the row
    config = ftfy.TextFixerConfig(replace_lossy_sequences=False)
    return ftfy.fix_encoding_and_explain(text, config).text
