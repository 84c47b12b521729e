"""The recipe: everything that decides a run. The only place in the package that has defaults.

Fields are frozen pydantic models; the sentence under each field is also its text in recipes/schema.json.
Reading from YAML, with file and line in every problem, is in recipe_file.py.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from tunesmith.values import Every, EverySteps, Section, TimeShare, cadence, date_text, share_or_number, switch_text

GgufType = Literal["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M"]
SourceFormat = Literal[
    "auto", "sharegpt", "messages", "self-instruct", "alpaca", "prompt-completion", "question-answer",
    "chatgpt", "telegram", "whatsapp",
]  # fmt: skip
SpeakerRole = Literal["system", "user", "assistant", "tool"]
Dedup = Literal["off", "exact", "words", "near"]
TrainOn = Literal["all", "last"]
TooLong = Literal["cut", "split", "drop"]
Part = Literal["model", "lora", "gguf"]
LONGEST_NAME = 255 - len(".-lora-F16.gguf.draft")  # bytes of a file's name, less what is added to this one


class Columns(Section):
    """Names of the columns that hold the text, where they differ from the format's own."""

    conversations: str | None = None
    """ShareGPT: the list of turns."""
    messages: str | None = None
    """Messages: the list of messages."""
    instruction: str | None = None
    """Alpaca, self-instruct: the task."""
    input: str | None = None
    """Alpaca, question-answer: what it is about; may be empty."""
    output: str | None = None
    """Alpaca: the answer."""
    prompt: str | None = None
    """Prompt-completion: what the user says."""
    completion: str | None = None
    """Prompt-completion: the answer."""
    question: str | None = None
    """Question-answer: what the user says."""
    answer: str | None = None
    """Question-answer: the answer."""
    reasoning: str | None = None
    """Formats with one answer a row: what was thought before it."""
    tools: str | None = None
    """Any format: the tools that the assistant may call."""
    system: str | None = None
    """Any format: the system prompt of the row."""


class Source(Section):
    """One place that conversations come from."""

    path: Annotated[str, Field(min_length=1)]
    """A file, glob or folder (JSON, JSONL, Parquet, CSV, TSV, Arrow, WhatsApp's .txt, also as .gz or .zst; relative to
    the recipe file), or the id of a data set on the Hub."""
    format: SourceFormat = "auto"
    """How a row holds its conversation; `auto` decides by the columns of each row, first as what the first row is."""
    split: str = "train"
    """Split of a data set on the Hub, where it may be a part, as in train[:1000], or of a folder laid out as one."""
    config: str | None = None
    """Subset of a data set, where it has several."""
    streaming: bool = False
    """Read a Hub data set while it is fetched, and keep none of it on disk; needs the network each time."""
    revision: str | None = None
    """Revision of a Hub data set; the commit found is written to the record."""
    columns: Columns = Columns()
    """Columns with other names than the format's."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use only the first rows of this source."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1
    """How often an epoch trains on each row of this source: 2 is twice, 0.5 a random half of them."""


def _share_or_source(value: Any) -> str:
    return "source" if isinstance(value, dict | Source) else "share"


Share = Annotated[float, Field(gt=0, lt=1)]


class Clean(Section):
    """Which rules of cleaning apply; each is counted. What a rule can put right drops no row (docs/prepare.md)."""

    empty: bool = True
    """An empty turn, of invisible characters too: the row is cut before it, or dropped if no answer is before it."""
    no_answer: bool = True
    """Drop rows without an answer of the assistant, or without one that is trained on."""
    roles: bool = True
    """Speakers take turns: turns of one speaker are joined, a system turn in the middle becomes the user's; where that
    is not enough the row is cut before the turn, or dropped."""
    leading_answer: bool = True
    """Answers before the first question are kept as context that is not trained on."""
    mojibake: bool = True
    """Text that was decoded with the wrong code, such as "cafÃ©", is put right by ftfy; nothing else is."""
    replacement: bool = True
    """U+FFFD, where a letter is lost: the row is cut before the turn, or dropped."""
    control: bool = True
    """Terminal escapes are removed, form feeds made line ends; the row is cut before other control characters."""
    truncated: bool = True
    """An answer that is cut within JSON or a code block is not trained on."""
    refusals: bool = False
    """An answer that only refuses, as in "As an AI language model, I cannot ...", is not trained on (English)."""
    min_answer: Annotated[int, Field(ge=1)] | None = None
    """An answer with fewer characters is not trained on; null: none is too short."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """A row with more characters is cut after the last answer that fits, or dropped; null: none is too long."""


class SelectConfig(Section):
    """Which of the training rows are trained on; the others stay in data/, and held-out rows are never left out."""

    by: Literal["random", "longest", "difficulty", "likeness"]
    """`random`; `longest`: those with the most tokens to train on; `difficulty`: those whose question helps the base
    least to the answer (IFD); `likeness`: those most like the examples in data.select.like."""
    keep: Annotated[
        Annotated[float, Field(gt=0, le=1)] | Annotated[int, Field(ge=2)], BeforeValidator(share_or_number)
    ] = 0.5
    """How many are kept: a share of the training rows up to 1, or a number of rows from 2 on."""
    like: Annotated[str, Field(min_length=1)] | None = None
    """For likeness: a file of examples of what the chatbot is for, in any form that a source may have."""

    @property
    def scored(self) -> bool:
        """Whether it takes a number for each row, which the stage `score` makes."""
        return self.by in ("difficulty", "likeness")

    @model_validator(mode="after")
    def _like_fits(self) -> "SelectConfig":
        if (self.by == "likeness") != (self.like is not None):
            there = "names no file" if self.like is None else f"is {self.like}"
            raise ValueError(f"select.by is {self.by} and select.like {there}: likeness, and nothing else, takes one")
        return self


class DataConfig(Section):
    """Which conversations, and how they are cleaned and split."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Where the conversations come from; at least one."""
    roles: dict[str, SpeakerRole] = Field(default={})
    """Who the speakers are, by their names in the data, as in {Ann: user, Bob: assistant}; chats of people need it."""
    dedup: Annotated[Dedup, BeforeValidator(switch_text)] = "near"
    """Remove conversations that say the same: `exact` to the letter, but for the kind and number of spaces and Unicode
    form; `words` also without case, punctuation and system prompts; `near` where 8 of 10 runs of three words are the
    same and no number, negation or operator differs."""
    decontaminate: bool = True
    """Remove training rows that are nearly a held-out row or an evaluation prompt, or repeat half of a held-out row."""
    train_on: TrainOn = "all"
    """Which answers of a conversation are trained on; `last`: only the last one, the others are context."""
    too_long: TooLong = "cut"
    """What becomes of a conversation longer than train.max_length: `cut` after the last answer that fits, `split` into
    parts that begin with a question, under the same system prompt, or `drop`."""
    clean: Clean = Clean()
    """Which rules of cleaning apply."""
    held_out: Annotated[
        Annotated[Share, Tag("share")] | Annotated[Source, Tag("source")], Discriminator(_share_or_source)
    ] = 0.01
    """Share of the duplicate clusters that is kept out of training to measure the loss, or a source of its own."""
    select: SelectConfig | None = None
    """Train on a part of the training rows only, chosen by one of four rules; null trains on all."""
    date: Annotated[str, BeforeValidator(date_text), Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = "2026-01-01"
    """The day, as YYYY-MM-DD, that a chat template that states a date gets: data never depend on the clock."""


class LoraConfig(Section):
    """Which weights get an adapter, and how wide it is."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Inner width r; the adapter's size grows linearly with it."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The update is scaled by alpha / rank (Hu et al. 2021, section 4.1)."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Last parts of the names of the linear layers to adapt, as in [q_proj, v_proj]; `all-linear`: all but the head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that is zeroed in training."""


class EarlyStopping(Section):
    """Stop when the held-out loss no longer falls."""

    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations in a row without gain after which training stops."""
    min_gain: Annotated[float, Field(ge=0)] = 0.001
    """Fall of the held-out loss, in nats per token, that counts as a gain."""


class TrainConfig(Section):
    """How long, how fast, in which numbers."""

    epochs: Annotated[float, Field(gt=0)] = 1
    """Passes over the training rows."""
    tokens_per_step: Annotated[int, Field(ge=1)] = 16384
    """Tokens, prompts included, in one optimizer step, on all devices together."""
    max_length: Annotated[int, Field(ge=8)] = 2048
    """Longest conversation in tokens; what becomes of a longer one is for data.too_long."""
    micro_batch_tokens: Annotated[int, Field(ge=8)] | Literal["auto"] = "auto"
    """Tokens in one forward pass; changes memory and speed, not the result. `auto`: by device and memory."""
    packing_lookahead: Annotated[int, Field(ge=0, le=1024)] = 64
    """Rows after the next one of the shuffled order among which one is sought that still fits into a step; 0: none."""
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Highest learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay of AdamW (Loshchilov and Hutter 2019)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up; cosine and linear end at zero."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises from zero."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient; a longer one is scaled down to it."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Numbers the base model computes in; the adapter is always fp32. `auto`: what the device is fast in."""
    recompute: Annotated[Literal["auto", "on", "off"], BeforeValidator(switch_text)] = "auto"
    """Compute activations again in the backward pass to save memory; `auto`: where they would not fit."""
    evaluate_every: EverySteps = "200 steps"
    """Steps between two measurements of the held-out loss."""
    early_stopping: EarlyStopping | None = EarlyStopping()
    """When to stop before the last step; null never stops early."""
    stop_after: Every | None = None
    """Stop this command after so many steps or so much time, with a checkpoint; the next one goes on."""
    sample: bool = True
    """Show an answer to a held-out question at each of these measurements, and keep it in samples.jsonl."""
    deterministic: bool = False
    """On a GPU: only kernels that give the same bits each time, at some speed. A CPU always does."""

    @property
    def evaluate_every_steps(self) -> int:
        """Steps between two measurements of the held-out loss."""
        return cadence(self.evaluate_every).steps or 1


class Keep(Section):
    """Which checkpoints are not deleted."""

    last: Annotated[int, Field(ge=1)] = 3
    """The newest ones."""
    best: Literal[1] = 1
    """The one with the lowest held-out loss."""
    every: Every | None = None
    """Beside them, one for each such span of steps or of time spent training, however old."""


class CheckpointConfig(Section):
    """When the state is saved. Changes nothing in the result."""

    every: Every = "5min"
    """Time or steps between two checkpoints."""
    overhead: TimeShare | None = "1%"
    """Most of the time that writing them may take from training: they are further apart where it would take more; null:
    never."""
    keep: Keep = Keep()
    """Which checkpoints are not deleted."""
    mirror: Annotated[str, Field(min_length=1)] | None = None
    """A place that outlives this machine, for what the run needs to go on elsewhere: a folder, or an address such as
    s3://BUCKET/FOLDER, gs://, hf://datasets/USER/NAME; kept there under the run's name."""


class Limits(Section):
    """How far a GGUF file may be from what it was made from; one that is further away ends the export."""

    kl: Annotated[float, Field(gt=0)] = 1e-4
    """F16 against the merged model: mean KL divergence in nats, over the whole vocabulary."""
    top1: Annotated[float, Field(gt=0, le=1)] = 0.99
    """F16 against the merged model: share of positions with the same most likely token, or a near tie, at least."""
    loss: Annotated[float, Field(gt=0)] = 1e-3
    """F16 against the merged model: difference of their held-out losses in nats; over fewer than 1,000 positions it may
    be larger, by the root of 1,000 over their number."""
    near_tie: Annotated[float, Field(ge=0)] = 0.05
    """F16 and the merged model may choose two tokens that are so close to the latter, in nats; greedy answers too."""
    quantised_kl: Annotated[float, Field(gt=0)] | None = None
    """Every smaller file against F16: mean KL divergence in nats; null stops nothing, and warns above 0.5."""


class ExportConfig(Section):
    """Which files are made for llama.cpp, and how equal they must be."""

    gguf: tuple[GgufType, ...] = ("F16", "Q8_0", "Q4_K_M")
    """Types of the GGUF files; an empty list makes none: the run ends with the merged model."""
    positions: Annotated[int, Field(ge=1)] = 2000
    """Held-out positions, of whole rows, at which files are compared and their loss is measured; all if fewer."""
    limits: Limits = Limits()
    """How far a file may be from what it was made from."""
    importance: Annotated[Literal["auto", "on", "off"], BeforeValidator(switch_text)] = "auto"
    """Weigh errors of quantising by the inputs that training conversations give each layer. `auto`: for the types that
    measurably gain (docs/export.md), where there is memory; `on`: the same, or the export ends; `off`: for none."""
    adapter: bool = True
    """Make NAME-lora-F16.gguf as well, the adapter alone, which llama.cpp puts on the base's GGUF."""


class EvaluateConfig(Section):
    """How the GGUF is tried on the CPU."""

    prompts: Annotated[str, Field(min_length=1)] = "default"
    """`default`: the ten of tunesmith; or a YAML file with a list of prompts."""
    gguf: GgufType = "Q8_0"
    """Type of the GGUF file that answers; one of export.gguf."""
    threads: Annotated[int, Field(ge=1)] = 2
    """CPU threads."""
    max_tokens: Annotated[int, Field(ge=1)] = 200
    """Longest answer in tokens."""


def evaluation_context(max_tokens: int) -> int:
    """Tokens of a prompt and its answer that the engine has room for: the chat's, so that the memory is the chat's."""
    return max(ChatConfig().context, 2 * max_tokens)


class ChatConfig(Section):
    """How the model is spoken to: alike in training, evaluation, GGUF metadata and chat."""

    system: str | None = None
    """System prompt where the data have none; null leaves it to the chat template."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature in the chat; evaluation is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Sampling takes from the smallest set of tokens with this probability."""
    context: Annotated[int, Field(ge=256)] = 4096
    """Tokens of one conversation in the chat."""
    slots: Annotated[int, Field(ge=1)] = 2
    """Conversations the chat answers at the same time."""


class PublishConfig(Section):
    """Where the finished model goes on the Hugging Face Hub, and what its card says that no record knows."""

    to: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """USER/NAME on the Hub: `run` then ends with publishing, once every proof has passed; null publishes nothing."""
    public: bool = False
    """Whether everybody may see it; private otherwise."""
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = ("model", "lora", "gguf")
    """What is published: the merged `model` as NAME, the adapter as NAME-lora, the GGUF files as NAME-GGUF."""
    unproved: bool = False
    """Publish also where a proof was skipped, for want of memory say; the card tells which."""
    base_on_hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")] | None = None
    """Hub id[@commit] of the base, where `base` is a folder or a file."""
    licence: Annotated[str, Field(min_length=1)] | None = None
    """Licence of the base, as its id on the Hub, where tunesmith does not know it."""
    licence_files: tuple[str, ...] = ()
    """Files that the licence asks to go along, such as LICENSE and NOTICE, where they are not beside the base."""
    language: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = ()
    """Languages that the model was trained to speak, as in [en, de]."""
    data: str | None = None
    """A sentence on where the data come from and under which licence they are."""


class Recipe(Section):
    """Everything that decides the result of a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)]
    """Name of the run, of its folder and of its model files, which add endings to it."""
    base: Annotated[str, Field(min_length=1)]
    """Hub id[@revision], folder or GGUF file (relative to the recipe file), or builtin:smollm2-135m-instruct."""
    data: DataConfig
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export: ExportConfig = ExportConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    chat: ChatConfig = ChatConfig()
    publish: PublishConfig = PublishConfig()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Start of every random choice."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        if self.train.max_length > self.train.tokens_per_step:
            raise ValueError(
                f"train.max_length is {self.train.max_length} and train.tokens_per_step {self.train.tokens_per_step}: "
                "a step must hold the longest conversation"
            )
        if self.export.gguf and self.evaluate.gguf not in self.export.gguf:
            raise ValueError(
                f"evaluate.gguf is {self.evaluate.gguf}, which is not in export.gguf {list(self.export.gguf)}"
            )
        return self
