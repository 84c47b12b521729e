"""Answers that are whole and yet teach nothing: those that were cut, and those that only refuse."""

import json
import re

JSON_OPENS = re.compile(r'\{\s*(?:"|\})|\[\s*(?:[\[{"\]]|-?\d)')
FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})(.*)$", re.MULTILINE)
MOST_WORDS, MOST_CHARACTERS = 60, 600
"""An answer with more does more than refuse."""
TYPED = "\u2019"  # the apostrophe of typesetting
_OPENING = (
    r"(?:sorry|i(?:'m| am) (?:really |very |so )?(?:sorry|afraid)|i apologi[sz]e(?: for [^.,!]*)?|my apologies"
    r"|unfortunately|but|however|that|as an? [^.,!]*\b(?:ai|language model|assistant)\b[^.,!]*"
    r"|i(?:'m| am) (?:just |only )?an? [^.,!]*\b(?:ai|language model)\b[^.,!]*?(?:,| and))"
)
_CANNOT = r"i(?:'m| am)? (?:can'?t|cannot|can not|(?:am )?(?:unable|not able) to|won't|will not)"
_DEED = (
    r"(?:assist|help|provide|answer|fulfil+|comply|generate|create|write|produce|discuss|support|engage|participate|do"
    r"|complete|respond|retrieve|access|offer|give|share|recommend|predict|browse|continue|process|perform|have|express"
    r"|promote|encourage|condone|advise|tell|determine|understand)"
)
_LACK = (
    r"i (?:do not|don't) (?:currently |actually )?(?:have|possess|experience)"
    r" (?:(?:the|any|a|enough|personal|real-time|human|direct|physical|subjective|sufficient) )*"
    r"(?:ability|abilities|access|information|capability|capabilities|feelings|emotions|opinions|preferences|beliefs"
    r"|experiences?|data|context|body|consciousness)\b"
)
REFUSES = re.compile(rf"(?is)\W*(?:{_OPENING}\W+)*(?:{_CANNOT} (?:\w+ ){{0,2}}{_DEED}\b|{_LACK})")
"""How refusals of ChatGPT's kind begin. The openings are those that the community's lists for cleaning ShareGPT share
(optional_clean.py of ShareGPT_Vicuna_unfiltered and what was made from it); their words for topics are left out, as an
answer that names racism is no refusal. A deed must follow: "I will not succeed." is an answer."""


def cut_short(answer: str) -> bool:
    """True if an answer ends within JSON or a block of code.

    JSON: it starts as an object or array, and the decoder meets the end of the text within it. A block of code: a line
    that opens one (``` or ~~~) has no line that closes it (CommonMark 4.5: ```ls``` in one line opens none), and the
    last line does not end with what would, as in "print(1)```".
    """
    if JSON_OPENS.match(answer):
        try:
            json.JSONDecoder().raw_decode(answer)
        except json.JSONDecodeError as error:
            return error.pos >= len(answer) or error.msg.startswith("Unterminated string")
        except (ValueError, RecursionError):
            return False
        return False
    opened = ""
    for fence, after in FENCE.findall(answer):
        if not opened:
            opened = "" if fence[0] == "`" and "`" in after else fence
        elif fence[0] == opened[0] and len(fence) >= len(opened) and not after.strip():
            opened = ""
    last = answer.rstrip().rpartition("\n")[2]
    return bool(opened) and (FENCE.match(last) is not None or not last.endswith(opened))


def only_refuses(answer: str) -> bool:
    """True if an English answer refuses and does nothing else."""
    is_short = len(answer) <= MOST_CHARACTERS and len(answer.split()) <= MOST_WORDS
    return is_short and REFUSES.match(answer.replace(TYPED, "'")) is not None
