"""Eight chat template families in small: template with the family's traps, tokens, and what it makes of an answer."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tiny import save_tokenizer

from tunesmith.data.conversation import Conversation, Turn

TEMPLATES = Path(__file__).parent / "data" / "templates"
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# family -> special tokens, end of sequence, begin of sequence, end of turn
FAMILIES = {
    "chatml": (CHATML, "<|im_end|>", "<|im_start|>", "<|im_end|>"),
    "llama3": (
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        "<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>",
    ),
    "qwen3": (CHATML, "<|im_end|>", "<|endoftext|>", "<|im_end|>"),
    "gemma": (("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", "<end_of_turn>"),
    "mistral": (("<s>", "</s>"), "</s>", "<s>", "</s>"),
    "phi": (
        ("<s>", "<|endoftext|>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>", "<s>", "<|end|>",
    ),
    "granite": (
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        "<|end_of_text|>", "<|end_of_text|>", "<|end_of_text|>",
    ),
    "smollm3": (CHATML, "<|im_end|>", "<|im_start|>", "<|im_end|>"),
}  # fmt: skip


@cache
def tokenizer_of(family):
    """The tiny tokenizer with a family's special tokens and template."""
    specials, eos, bos, _ = FAMILIES[family]
    template = (TEMPLATES / f"{family}.jinja").read_text()
    return save_tokenizer(Path(mkdtemp()), template=template, specials=specials, eos=eos, bos=bos)


def as_rendered(family, answer, *, is_last):
    """What the family's template writes for an answer, after the generation prompt; written down apart from it."""
    if family in ("llama3", "gemma"):
        return answer.strip()
    if family == "mistral":
        return " " + answer
    if family == "smollm3":
        return answer.lstrip("\n")
    if family == "qwen3":
        thought, tag, words = answer.rpartition("</think>")
        thought = thought.split("</think>")[0].rstrip("\n").split("<think>")[-1].strip("\n")
        words = words.lstrip("\n") if tag else answer
        return f"<think>\n{thought}\n</think>\n\n" + words.lstrip("\n") if is_last else words
    return answer


def conversation(*texts, system=None):
    """User and assistant in turns, after an optional system turn."""
    turns = [Turn("system", system)] if system is not None else []
    turns += [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return Conversation(tuple(turns), "test.jsonl:1")


def supervised_texts(tokenizer, encoded):
    """Each run of supervised tokens, decoded."""
    runs, run = [], []
    for token, is_supervised in zip([*encoded.ids, 0], [*encoded.supervised, False], strict=True):
        if is_supervised:
            run.append(token)
        elif run:
            runs.append(tokenizer.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            run = []
    return runs
