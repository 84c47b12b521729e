"""What a row says beside its words, and what that makes of it: trained on in silence it would teach the wrong thing.

The keys are those of OpenAI's and Mistral's fine-tuning files (`weight`, `tools`, `functions`), Axolotl (`train`,
`training`, `train_detail`), xtuner (`loss`, `loss_weight`), ms-swift (`loss`, `images`, `rejected_response`),
LLaMA-Factory (`images`, `chosen`, `rejected`, `kto_tag`) and TRL (`label`, `chosen`, `rejected`), and what servers of
reasoning models answer (`reasoning_content`, `reasoning`, `thinking`).
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

PREFERENCE = "a better and a worse answer: preferences are not trained on"
BAD = "an answer that is marked as bad"
MEDIA = "pictures, sound or film beside the text"
NO_WEIGHT = "an answer whose weight is neither 0 nor 1"
NOT_TRAINED_ON = "a row that is marked as not to be trained on"
PARTLY = "an answer of which only parts are to be trained on"

ZERO = re.compile(r"0(\.0*)?")
EMPTY = ("", "[]", "{}", "null")
"""A text that says nothing; tables write lists as text, and pad columns with null."""
OF_A_ROW = {
    **dict.fromkeys(("images", "image", "videos", "video", "audios", "audio"), MEDIA),
    **dict.fromkeys(("rejected", "rejected_response", "non_preferred_output"), PREFERENCE),
}
"""Column that says something -> why the row is not used."""
LABELS = ("label", "kto_tag")
OF_REASONING = ("reasoning_content", "reasoning", "thinking")
OF_TRAINING = ("weight", "train", "training", "loss", "loss_weight")
JUDGED = {*OF_A_ROW, *LABELS, *OF_TRAINING}


class NoTurns(Exception):  # noqa: N818 (a reason on its way up, not a failure)
    """Why a row is no conversation."""


def why_not_row(row: Mapping[str, Any], words: Iterable[tuple[str, ...]]) -> str | None:
    """Why a row cannot be trained on as it stands, or None. `words`: the columns that may hold its words.

    A label of 0 is a number of a class, as often as not; a weight of 0 is none.
    """
    if JUDGED.isdisjoint(row):
        return None
    beside = {key: row[key] for key in JUDGED.intersection(row).difference(*words)}
    for key, reason in OF_A_ROW.items():
        if says_something(beside.get(key)):
            return reason
    if label := next((label for label in LABELS if _is_false(beside.get(label))), ""):
        return f"{BAD} ({label}: false)"
    key = next((key for key in OF_TRAINING if _is_false(beside.get(key)) or _is_zero(beside.get(key))), "")
    return f"{NOT_TRAINED_ON} ({key}: {beside[key]})".lower() if key else None


def _is_false(value: Any) -> bool:
    """Whether a cell says no; CSV has texts only."""
    return value is False or (isinstance(value, str) and value.strip().casefold() == "false")


def _is_zero(value: Any) -> bool:
    if isinstance(value, str):
        return ZERO.fullmatch(value.strip()) is not None
    return isinstance(value, int | float) and value == 0


def is_trained(turn: Mapping[str, Any]) -> bool:
    """Whether an answer is to be trained on, by what is beside it. Raises NoTurns for what is neither yes nor no."""
    if says_something(turn.get("train_detail")):
        raise NoTurns(PARTLY)
    said = {key: turn[key] for key in OF_TRAINING if turn.get(key) is not None}
    for key, value in said.items():
        if isinstance(value, str) or value not in (0, 1):  # True is 1, and so is 1.0
            raise NoTurns(f"{NO_WEIGHT} ({key}: {json.dumps(value, default=str)[:40]})")
    return all(said.values())


def says_something(value: Any) -> bool:
    """Whether a cell holds more than nothing."""
    return bool(value.strip() not in EMPTY if isinstance(value, str) else value)
