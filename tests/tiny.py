"""A tiny Llama and its tokenizer, made in seconds: real files for every stage, small enough to test with."""

import json
from pathlib import Path

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a small test model.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS = Path(__file__).parent / "data" / "corpus.txt"


def save_tokenizer(folder: Path, *, template: str = CHATML, specials=SPECIALS, eos="<|im_end|>", bos="<|im_start|>"):
    """Train a byte-level BPE of 512 tokens on tests/data/corpus.txt and save it in Hugging Face form."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=list(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(CORPUS.read_text().splitlines(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, eos_token=eos, pad_token=eos, additional_special_tokens=list(specials)
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_base(folder: Path, *, layers=2, width=64, tied=True, seed=0, **config):
    """A random Llama in Hugging Face form, with the tokenizer of `save_tokenizer`. Returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = save_tokenizer(folder)
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | config
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows) -> Path:
    """ShareGPT rows from lists of (question, answer, question, answer, ...)."""
    roles = ["human", "gpt"]
    lines = [
        json.dumps({"conversations": [{"from": roles[i % 2], "value": text} for i, text in enumerate(row)]})
        for row in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
