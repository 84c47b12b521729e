"""A tiny random model of each family that becomes a GGUF file: its config, its kind of tokenizer, its template.

Norms and biases are random too, so that one that is lost shows. The tokenizers are trained on tests/data/corpus.txt and
have the parts of the real ones: normalizer, pre-tokenizer, post-processor, special tokens and how they are declared.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny import CORPUS

TEMPLATES = Path(__file__).parent / "data" / "templates"
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLITS = {
    "llama3": rf"{WORDS}|\p{{N}}{{1,3}}|{REST}",
    "qwen2": rf"{WORDS}|\p{{N}}|{REST}",
    "tekken": CASED % ("", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": CASED % (ENDS, ENDS) + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
MORE = """def call(values, other_values):
    if (values and (other_values)):
        return call((values), [x for x in values])
\tself.assertEqual(call(("values")), 2024)  # it's, they're, DON'T, I'LL
{"name": "values", "names": ["other"]}

  HelloWorld helloWorld HELLO, values;\r\n\r\nnext 1234 1234 1234
"""
"""Where pre-tokenizers differ: so that merges are learned that another one would not make."""
SPACE = "\u2581"  # how SentencePiece writes a space


@dataclass(frozen=True)
class TinyFamily:
    """What makes a family's tiny model; `architecture` as in config.json, `kind` is transformers' model_type."""

    architecture: str
    kind: str
    layout: str  # of the tokenizer: a key of SPLITS, "digits" (SmolLM2, Granite), or a SentencePiece one: spm, gemma
    template: str  # file in tests/data/templates
    specials: tuple[str, ...]
    eos: str
    bos: str | None
    end_of_turn: str
    adds_bos: bool = False  # to a plain text
    ignore_merges: bool = False
    strips: tuple[str, ...] = ()  # special tokens that take the spaces to their right
    own: tuple[str, ...] = ()  # tokens that are added but not special
    pre: str = ""  # tokenizer.ggml.pre
    config: dict[str, Any] = field(default_factory=dict)


ROPE3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64}  # fmt: skip
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.1, 2.0, 4.0]}  # fmt: skip
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
TINY = {
    "llama3": TinyFamily(
        "LlamaForCausalLM", "llama", "llama3", "llama3", LLAMA3, "<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>",
        adds_bos=True, ignore_merges=True, pre="llama-bpe", config={"rope_parameters": ROPE3},
    ),
    "smollm2": TinyFamily(
        "LlamaForCausalLM", "llama", "digits", "chatml", CHATML, "<|im_end|>", "<|im_start|>", "<|im_end|>",
        pre="smollm", config={"tie_word_embeddings": True},
    ),
    "qwen2": TinyFamily(
        "Qwen2ForCausalLM", "qwen2", "qwen2", "chatml", CHATML, "<|im_end|>", None, "<|im_end|>",
        pre="qwen2",
        config={"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3": TinyFamily(
        "Qwen3ForCausalLM", "qwen3", "qwen2", "qwen3", CHATML, "<|im_end|>", None, "<|im_end|>",
        own=("<think>", "</think>"), pre="qwen2", config={"head_dim": 16},
    ),
    "mistral": TinyFamily(
        "MistralForCausalLM", "mistral", "spm", "mistral", ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>",
        "</s>", adds_bos=True, config={"sliding_window": None},
    ),
    "mistral-nemo": TinyFamily(
        "MistralForCausalLM", "mistral", "tekken", "mistral", ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), "</s>",
        "<s>", "</s>", adds_bos=True, ignore_merges=True, pre="tekken", config={"sliding_window": None, "head_dim": 16},
    ),
    "gemma3": TinyFamily(
        "Gemma3ForCausalLM", "gemma3_text", "gemma", "gemma", GEMMA, "<eos>", "<bos>", "<end_of_turn>",
        adds_bos=True, own=("<unused0>", "\n\n", "\n\n\n", SPACE * 2, SPACE * 3),
        config={"num_hidden_layers": 7, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 48},
    ),
    "smollm3": TinyFamily(
        "SmolLM3ForCausalLM", "smollm3", "llama3", "chatml", (*CHATML, "<|begin_of_text|>"), "<|im_end|>", None,
        "<|im_end|>", own=("<think>", "</think>"), pre="smaug-bpe",
        config={"num_hidden_layers": 5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
    ),
    "phi3": TinyFamily(
        "Phi3ForCausalLM", "phi3", "spm", "phi",
        ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        "<|endoftext|>", "<s>", "<|end|>",
        strips=("</s>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        config={"tie_word_embeddings": False, "sliding_window": 300},
    ),
    "phi4": TinyFamily(
        "Phi3ForCausalLM", "phi3", "gpt-4o", "phi4",
        ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"), "<|endoftext|>", "<|endoftext|>",
        "<|end|>", pre="gpt-4o",
        config={"tie_word_embeddings": True, "sliding_window": None, "original_max_position_embeddings": 64,
                "rope_parameters": LONGROPE},
    ),
    "granite": TinyFamily(
        "GraniteForCausalLM", "granite", "digits", "granite",
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), "<|end_of_text|>", "<|end_of_text|>",
        "<|end_of_text|>", pre="smollm",
        config={"embedding_multiplier": 6.0, "logits_scaling": 0.25, "residual_multiplier": 0.4,
                "attention_multiplier": 0.2, "tie_word_embeddings": True},
    ),
}  # fmt: skip


def save_family(folder: Path, name: str, *, seed=0, **config) -> Path:
    """The tiny model of a family in Hugging Face form, with its tokenizer. Returns the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, tokenizer = TINY[name], save_tokenizer(folder, name)
    torch.manual_seed(seed)
    ids = {f"{special}_token_id": getattr(tokenizer, f"{special}_token_id") for special in ("bos", "eos", "pad")}
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.3,
    }  # fmt: skip
    made = AutoConfig.for_model(family.kind, **(settings | ids | family.config | config))
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in model.parameters():
            if values.dim() == 1:  # a norm, around 1 or Gemma's 0, or a bias
                values.add_(torch.randn(values.shape, generator=generator), alpha=0.3)
    model.save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, name: str):
    """The tokenizer of a family in Hugging Face form, with its chat template."""
    from transformers import PreTrainedTokenizerFast

    family = TINY[name]
    raw = _spm(family) if family.layout in ("spm", "gemma") else _bytes(family)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=family.bos, eos_token=family.eos, pad_token=family.specials[0],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = (TEMPLATES / f"{family.template}.jinja").read_text()
    tokenizer.save_pretrained(folder)
    return tokenizer


def _bytes(family: TinyFamily):
    """Byte-level BPE: the special tokens come after the others, as in the real ones."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if family.layout == "digits":
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        cut = pre_tokenizers.Split(Regex(SPLITS[family.layout]), "isolated")
        parts = [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    raw = Tokenizer(models.BPE(ignore_merges=family.ignore_merges))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    raw.normalizer = normalizers.NFC() if family.layout == "qwen2" else None
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([CORPUS.read_text(), *[MORE] * 20], trainer)
    return _with_added(raw, family)


def _spm(family: TinyFamily):
    """SentencePiece's BPE as tokenizer.json has it: bytes where a character is unknown, every way to cut a piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    words.train_from_iterator(CORPUS.read_text().splitlines(), trainers.BpeTrainer(vocab_size=260, show_progress=False))
    learned = sorted(words.get_vocab().items(), key=lambda item: item[1])
    pieces = [piece for piece, _ in learned if len(piece) > 1] + [piece for piece, _ in learned if len(piece) == 1]
    pieces += [piece for piece in family.own if piece.strip() != piece or SPACE in piece]
    before = [*family.specials, *family.own] if family.layout == "gemma" else list(family.specials[:3])
    tokens = dict.fromkeys([*before, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    swap = normalizers.Replace(" ", SPACE)
    ending = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if family.layout == "gemma":
        raw.normalizer, raw.pre_tokenizer = swap, pre_tokenizers.Split(" ", "merged_with_previous")
        raw.decoder = decoders.Sequence(ending)
    else:
        raw.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), swap])
        raw.decoder = decoders.Sequence([*ending, decoders.Strip(" ", 1, 0)])
    return _with_added(raw, family)


def _with_added(raw, family: TinyFamily):
    from tokenizers import AddedToken, processors

    for token in family.specials:
        raw.add_special_tokens([AddedToken(token, rstrip=token in family.strips, normalized=False, special=True)])
    raw.add_tokens([AddedToken(token, normalized=False, special=False) for token in family.own])
    if family.adds_bos:
        bos = family.bos
        pair = f"{bos} $A {bos} $B"
        raw.post_processor = processors.TemplateProcessing(f"{bos} $A", pair, [(bos, raw.token_to_id(bos))])
    return raw
