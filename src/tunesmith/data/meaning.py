"""What a row says beside its words, and what that makes of it: trained on in silence it would teach the wrong thing.

The keys are those of OpenAI's and Mistral's fine-tuning files (`weight`, `tools`, `functions`), Axolotl (`train`),
ms-swift (`loss`, `images`, `rejected_response`), LLaMA-Factory (`images`, `chosen`, `rejected`) and TRL (`label`,
`chosen`, `rejected`), and what servers of reasoning models answer (`reasoning_content`, `reasoning`, `thinking`).
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

TOOLS = "tool calls are not supported yet"
REASONING = "reasoning beside an answer is not supported yet"
PREFERENCE = "a better and a worse answer: preferences are not trained on"
BAD = "an answer that is marked as bad (label: false)"
MEDIA = "pictures, sound or film beside the text"
UNTRAINED = "an answer that is not to be trained on"

EMPTY = ("", "[]", "{}", "null")
"""A text that says nothing; tables write lists as text, and pad columns with null."""
OF_A_ROW = {
    "tools": TOOLS, "functions": TOOLS,
    **dict.fromkeys(("images", "image", "videos", "video", "audios", "audio"), MEDIA),
    "rejected": PREFERENCE, "rejected_response": PREFERENCE,
}  # fmt: skip
"""Column that says something -> why the row is not used."""
OF_REASONING = ("reasoning_content", "reasoning", "thinking")
OF_TRAINING = ("weight", "train", "loss")


def why_not_row(row: Mapping[str, Any], words: Collection[str]) -> str | None:
    """Why a row cannot be trained on as it stands, or None. `words`: the columns that hold its words."""
    for key, reason in OF_A_ROW.items():
        if key not in words and _says_something(row.get(key)):
            return reason
    return BAD if "label" not in words and row.get("label") is False else None


def why_not_turn(turn: Mapping[str, Any], role: str) -> str | None:
    """Why a turn cannot be trained on as it stands, or None."""
    if role == "tool" or any(_says_something(turn.get(key)) for key in ("tool_calls", "function_call")):
        return TOOLS
    if role != "assistant":
        return None
    for key in OF_TRAINING:
        if turn.get(key) is not None and turn[key] != 1:  # True is 1, and so is 1.0
            return f"{UNTRAINED} ({key}: {json.dumps(turn[key], default=str)[:40]})"
    return REASONING if any(_says_something(turn.get(key)) for key in OF_REASONING) else None


def _says_something(value: Any) -> bool:
    return bool(value.strip() not in EMPTY if isinstance(value, str) else value)
