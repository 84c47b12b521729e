"""What is wrong with a recipe, in words: every problem with its place, and the key that was meant."""

import difflib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.recipe_defaults import sections_in
from tunesmith.values import Section
from tunesmith.yaml_text import Loc, Places

HELD_OUT_TAGS = ("share", "source")
UNION_TAGS = {*HELD_OUT_TAGS, "literal['auto']", "literal['all-linear']", "constrained-int", "tuple[str, ...]"}
# what pydantic calls the alternatives of a union; users never wrote it
COUNTED = "a step is counted in tokens, prompts included: rows a step times their mean length"
ELSEWHERE = {
    **dict.fromkeys(("model", "model_name", "model_name_or_path", "base_model", "model_id"), "base"),
    **dict.fromkeys(("dataset", "datasets", "dataset_name", "train_file", "data_path"), "data.sources"),
    **dict.fromkeys(("max_samples", "max_train_samples"), "data.sources[].limit"),
    **dict.fromkeys(("val_set_size", "test_size", "validation_split", "eval_split"), "data.held_out"),
    **dict.fromkeys(("learning_rate", "max_learning_rate"), "train.lr"),
    **dict.fromkeys(("num_epochs", "num_train_epochs", "n_epochs"), "train.epochs"),
    **dict.fromkeys(
        ("batch_size", "per_device_train_batch_size", "micro_batch_size", "train_batch_size",
         "gradient_accumulation_steps", "gradient_accumulation"), f"train.tokens_per_step ({COUNTED})",
    ),
    **dict.fromkeys(
        ("max_seq_length", "max_seq_len", "max_length", "sequence_len", "sequence_length", "cutoff_len",
         "model_max_length"), "train.max_length",
    ),
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "train.warmup (a share of the steps)"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler"), "train.schedule"),
    **dict.fromkeys(("max_grad_norm", "gradient_clipping", "grad_clip"), "train.clip"),
    **dict.fromkeys(("bf16", "fp16", "dtype", "torch_dtype", "mixed_precision"), "train.precision"),
    **dict.fromkeys(("gradient_checkpointing", "activation_checkpointing"), "train.recompute"),
    **dict.fromkeys(("eval_steps", "eval_every", "evaluation_strategy"), "train.evaluate_every"),
    **dict.fromkeys(("early_stopping_patience",), "train.early_stopping.patience"),
    **dict.fromkeys(("max_steps", "max_time"), "train.stop_after (a pause), or train.epochs"),
    **dict.fromkeys(("save_steps", "save_every", "save_strategy"), "checkpoint.every"),
    **dict.fromkeys(("save_total_limit",), "checkpoint.keep.last"),
    **dict.fromkeys(("lora_r", "lora_rank", "r", "adapter_rank"), "lora.rank"),
    **dict.fromkeys(("lora_alpha",), "lora.alpha"),
    **dict.fromkeys(("lora_dropout",), "lora.dropout"),
    **dict.fromkeys(("target_modules", "lora_target", "lora_target_modules"), "lora.targets"),
    **dict.fromkeys(("output_dir", "run_name"), "name (and --run-dir on the command line)"),
    **dict.fromkeys(("random_seed", "data_seed"), "seed"),
    **dict.fromkeys(("system_prompt", "default_system"), "chat.system"),
    **dict.fromkeys(("quantization_method", "quantization", "save_gguf"), "export.gguf"),
}  # fmt: skip
"""What TRL, Axolotl, LLaMA-Factory and Unsloth call a setting -> where it stands here."""


NOT_HERE = {
    **dict.fromkeys(("template", "chat_template"), "the base's own chat template is used"),
    **dict.fromkeys(("packing", "sample_packing"), "rows are always packed, and none sees another"),
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "quantization_bit"), "a base in 4 or 8 bits cannot be trained yet",
    ),
    **dict.fromkeys(("optimizer", "optim"), "it is always AdamW"),
    **dict.fromkeys(
        ("adapter", "finetuning_type", "stage", "do_train", "peft", "use_peft", "use_lora"),
        "a LoRA adapter is always trained, on the answers",
    ),
    **dict.fromkeys(
        ("flash_attention", "flash_attn", "use_flash_attention_2", "attn_implementation"),
        "FlashAttention is used by itself where the GPU and the precision have it",
    ),
    **dict.fromkeys(("logging_steps", "logging_dir"), "every step is written to metrics.jsonl in the run folder"),
    **dict.fromkeys(
        ("report_to", "wandb_project", "use_wandb"), "nothing is sent anywhere: metrics.jsonl in the run folder has it",
    ),
    **dict.fromkeys(
        ("gpu_memory_utilization", "gpu_memory_limit", "auto_find_batch_size"),
        "train.micro_batch_tokens fits a pass to the memory by itself",
    ),
}  # fmt: skip
"""What the same tools call a setting that is none here -> why none is needed."""


def no_such_target(missing: Sequence[str], linears: Collection[str]) -> RecipeError:
    """What is said of targets of the adapter that a base does not have. `linears`: those that it has."""
    what = f"lora.targets: {', '.join(missing)} {'names' if len(missing) == 1 else 'name'} no linear layer of the base"
    return RecipeError(what, fix=f"choose from {', '.join(sorted(linears))}; or write all-linear")


def report(error: ValidationError, path: Path, lines: Places) -> RecipeError:
    """One error with a line for each problem; `lines` says where each key of the recipe at `path` was said."""
    problems, said = [], set()
    places, meant = [found["loc"] for found in error.errors()], set(_meant(error))
    for found in error.errors():
        if any(place[: len(found["loc"])] == found["loc"] and place != found["loc"] for place in places):
            continue  # a list that is short because of an item that is wrong
        if found["type"] == "missing" and meant & {found["loc"], (*found["loc"], "sources")}:
            continue  # it is there, by another tool's name
        loc = _written(found["loc"])
        where = place_of(loc, path, lines)
        said.add("--set" if where.startswith("--set") else "the recipe")
        problem = f"{'.'.join(map(str, loc)) or 'recipe'}{_what(found, loc)} ({where})"
        if problem not in problems:
            problems.append(problem)
    head = "the recipe has a problem" if len(problems) == 1 else f"the recipe has {len(problems)} problems"
    fix = f"correct {' and '.join(sorted(said, reverse=True))} and run the same command again"
    return RecipeError(f"{head}:\n  - " + "\n  - ".join(problems), fix=fix)


def _meant(error: ValidationError) -> Iterator[Loc]:
    """The settings that were said by another name."""
    for found in error.errors():
        if found["type"] == "extra_forbidden":
            *section, key = _written(found["loc"])
            yield tuple(meant_by(str(key), tuple(section)).partition(" ")[0].split("."))


def place_of(loc: Loc, path: Path, lines: Places) -> str:
    """File and line, or `--set`, of the nearest enclosing key that was said; of the whole recipe, each `--set`."""
    for end in range(len(loc), 0, -1):
        if loc[:end] in lines:
            place = lines[loc[:end]]
            return place if isinstance(place, str) else f"{path}, line {place}"
    changes = sorted({place for place in lines.values() if isinstance(place, str)})
    return str(path) if loc else ", ".join([str(path), *changes])


def in_words(found: Any) -> str:
    """What is wrong with the value of one of pydantic's problems, after the name of its key."""
    kind, value, bounds = found["type"], found["input"], found.get("ctx", {})
    if kind == "missing":
        return " is missing"
    if kind == "value_error":
        return f": {found['msg'].removeprefix('Value error, ')}"
    shown = json.dumps(value, default=str)
    if kind in {"float_parsing", "float_type", "int_parsing", "int_type", "int_from_float", "finite_number"}:
        shown = shown if isinstance(value, str) else f'"{value}"'
        return f" is {shown}, which is no {'whole ' if kind.startswith('int') else ''}number"
    return f" is {shown}{_demand(kind, bounds)}"


def _demand(kind: str, bounds: dict[str, Any]) -> str:
    """What a value must be that is not of this kind of problem."""
    comparisons = {
        "greater_than": "must be more than {gt}", "greater_than_equal": "must be at least {ge}",
        "less_than": "must be less than {lt}", "less_than_equal": "must be at most {le}",
        "too_short": "must have at least {min_length}", "string_too_short": "must not be empty",
        "string_too_long": "must have at most {max_length} characters", "literal_error": "must be {expected}",
        "enum": "must be {expected}",
    }  # fmt: skip
    if kind in comparisons:
        return f" and {comparisons[kind].format(**bounds)}"
    if kind == "string_pattern_mismatch":
        return f" and {PATTERNS.get(bounds['pattern'], 'must be of the form ' + bounds['pattern'])}"
    forms = {
        "string": "no text", "bool": "neither true nor false", "tuple": "no list", "list": "no list",
        "model": "no mapping of settings", "dict": "no mapping of settings",
    }  # fmt: skip
    return f", which is {next((form for name, form in forms.items() if kind.startswith(name)), 'not what it may be')}"


PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "may hold only letters a to z, digits, dots, _ and -, and begins with a letter or "
    "digit",
    r"^\d{4}-\d{2}-\d{2}$": "must be a day, as 2026-01-31",
    r"^[\w.-]+/[\w.-]+$": "must be USER/NAME, as in me/chat",
    r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$": "must be OWNER/NAME or OWNER/NAME@COMMIT",
    r"^[a-z]{2,3}$": "must be the code of a language, as en",
}
"""Pattern of a field -> what it asks for."""


def _written(loc: Loc) -> Loc:
    """A place as users write it: `source` is an alternative after held_out alone, elsewhere it is a key of theirs."""
    pairs = zip(("", *loc), loc, strict=False)
    return tuple(
        part for before, part in pairs
        if part not in UNION_TAGS or (part in HELD_OUT_TAGS and before != "held_out")
    )  # fmt: skip


def _what(found: Any, loc: Loc) -> str:
    """The problem in words, after the name of the key."""
    if found["type"] != "extra_forbidden":
        return in_words(found)
    key, here = str(loc[-1]), _known_keys(loc[:-1])
    if near := difflib.get_close_matches(key.lower(), NOT_HERE, n=1, cutoff=0.9):
        return f" is no setting; leave it out: {NOT_HERE[near[0]]}"
    if meant := meant_by(key, loc[:-1]):
        return f" is no setting; did you mean {meant}?"
    return f" is no setting; known here: {', '.join(here)}"


def meant_by(key: str, loc: Loc = ()) -> str:
    """The setting that was meant by a key which is none at this place; empty if nobody can know."""
    here, known = _known_keys(loc), dict(paths())
    if key in ELSEWHERE and ELSEWHERE[key] != ".".join([*map(str, loc), key]):
        return ELSEWHERE[key]
    if same := [path for path in known if path.rpartition(".")[2] == key]:
        return " or ".join(same[:3])
    if close := difflib.get_close_matches(key, here, n=1):
        return close[0]
    close = difflib.get_close_matches(key, [*ELSEWHERE, *known.values()], n=1, cutoff=0.8)
    return meant_by(close[0]) if close else ""


def paths(section: Any = Recipe, before: str = "") -> Iterator[tuple[str, str]]:
    """Every setting that a recipe may hold, by its whole path, with its own name; not those of a list's items."""
    for name, field in section.model_fields.items():
        yield f"{before}{name}", name
        if isinstance(field.annotation, type) or isinstance(field.default, Section):
            for inner in sections_in(field.annotation):
                yield from paths(inner, f"{before}{name}.")


def _known_keys(loc: Loc) -> list[str]:
    """The keys that may stand at a place in the recipe."""
    model: Any = Recipe
    for part in loc:
        if isinstance(part, str):
            model = next((m for m in sections_in(model.model_fields[part].annotation)), None)
    return list(model.model_fields) if model else []
