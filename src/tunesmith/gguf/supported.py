"""Whether a base can go the whole way: trained, merged, exported. Asked before prepare.

What would fail at merge or export, hours later, is refused here, by name. It reads config.json, the tokenizer and the
headers of the weights, and neither torch nor transformers.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard

from tunesmith.errors import BaseError
from tunesmith.gguf.families import FAMILIES, UNUSED, read_config
from tunesmith.gguf.fields import odd
from tunesmith.gguf.heads import not_computed
from tunesmith.gguf.pretokenizers import need_room, read_tokenizer
from tunesmith.gguf.rope import rotary
from tunesmith.gguf.shapes import Shapes, shapes
from tunesmith.gguf.vocabulary import checked_tokenizer
from tunesmith.recipe import Recipe
from tunesmith.recipe_problems import no_such_target
from tunesmith.weights.small_files import CONFIG, architectures, read_json
from tunesmith.weights.tensorfile import FLOATS, NUMPY_TYPES, TensorInfo, read_index, weight_files

EXPERTS = re.compile(r"(^|_)experts$")  # num_experts, num_local_experts, n_routed_experts, moe_num_experts
BY_LONGEST = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
# rotary scalings that change with the longest conversation of a batch, and the length up to which they do not
REPLACEABLE = "_supports_attention_backend = True"  # so transformers marks what its AttentionInterface reaches
ENCODER = "standalone, add `is_decoder=True"  # what transformers' classes of encoders warn of
CHUNK = "attention_chunk_size"
PARTS = ("vision_config", "audio_config")  # of a model that takes more than text
LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
WITHOUT = "write `export: {gguf: []}` in the recipe to train and merge it without one"


def supported(folder: Path, recipe: Recipe, longest: int | None = None) -> None:
    """Raise BaseError, with what is supported, if the base in `folder` cannot be trained, merged and exported.
    RecipeError for targets of the adapter that it does not have.

    A folder without weights is judged by its small files. `longest`: tokens of the longest row where the rows stand
    already. Where the recipe asks for no GGUF, what only a GGUF needs is not asked.
    """
    config = read_json(folder / CONFIG)
    tensors = read_index(folder) if weight_files(folder) else {}
    _refuse_unknown(config, folder, recipe.base)
    _refuse_experts(config, tensors, folder, recipe.base)
    _refuse_more_than_text(config, folder, recipe.base)
    _refuse_unpacked(config, folder, recipe.base)
    _refuse_scaled(config, folder, recipe.base)
    tokenizer = read_tokenizer(folder)
    if recipe.export.gguf:
        try:
            _refuse_no_gguf(tokenizer, tensors, folder, recipe.base, longest or recipe.train.max_length)
        except BaseError as error:
            raise BaseError(error.what, fix=f"{error.fix}; or {WITHOUT}", where=error.where or str(folder)) from None
    elif _is_count(size := config.get("vocab_size")):
        need_room(tokenizer, size, folder, special=False)  # a special token that nobody writes does no harm
    _refuse_long(config, folder, recipe, longest or recipe.train.max_length)
    _refuse_numbers(tensors, folder)
    if tensors and recipe.lora.targets != "all-linear":
        _refuse_targets(recipe.lora.targets, tensors, config.get("vocab_size"))


def _refuse_targets(targets: Sequence[str], tensors: dict[str, TensorInfo], words: Any) -> None:
    """An adapter goes on linear layers alone: matrices that are neither the embedding nor the head."""
    matrices = {name for name, info in tensors.items() if len(info.shape) == 2 and info.shape[0] != words}
    linears = {name.removesuffix(".weight").rpartition(".")[2] for name in matrices if name.endswith(".weight")}
    if missing := sorted(set(targets) - linears):
        raise no_such_target(missing, linears)


def _refuse_no_gguf(
    tokenizer: dict[str, Any], tensors: dict[str, TensorInfo], folder: Path, name: str, longest: int
) -> None:
    """What cannot be written as a GGUF file, or would be read as something else there."""
    config = read_config(folder, name)
    checked_tokenizer(tokenizer, config["vocab_size"], folder)
    context = config["window"]
    if context and not config["family"].full_every and longest > context:
        raise BaseError(
            f"{name} has layers that see {context} tokens, llama.cpp lets all layers of a {architectures(config)[0]} "
            f"see all tokens, and a row may have {longest}",
            fix=f"lower train.max_length to {context} or less",
            where=str(folder),
        )
    if tensors:
        _refuse_tensors(shapes(config), tensors, folder)


def _refuse_unknown(config: dict[str, Any], folder: Path, name: str) -> None:
    """What transformers does not have itself is not trained: code that comes with a base is never run."""
    stated, kind = architectures(config)[0], config.get("model_type")
    known = _transformers_models()
    if not isinstance(kind, str):
        raise odd("model_type", kind, "is missing" if kind is None else "is no name", folder)
    if not known or stated in known.get(kind, ()):
        return
    version = metadata.version("transformers")
    if "auto_map" in config:
        what = (
            f"{name} is {stated}, which transformers {version} does not have: it comes with Python code of its own "
            "(auto_map in config.json), and code of a base is never run: it is not fetched, and no digest covers it"
        )
    elif kind in known:
        what = f"{name} is {stated} by its architectures and {' or '.join(known[kind])} by its model_type {kind}"
    else:
        what = f"{name} is {stated} of model_type {kind}, which transformers {version} does not have"
    fix = f"use a base whose architecture transformers has; to GGUF go: {', '.join(f.architecture for f in FAMILIES)}"
    raise BaseError(what, fix=fix, where=str(folder))


@cache
def _transformers_models() -> dict[str, tuple[str, ...]]:
    """model_type -> classes of the causal language models of the installed transformers; empty if it is not there.

    Read from its source: importing it takes torch and seconds.
    """
    source = _models_folder() / "auto" / "modeling_auto.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body if source.is_file() else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES":
            assert isinstance(node.value, ast.Call)
            pairs = ast.literal_eval(node.value.args[0])
            return {kind: (names,) if isinstance(names, str) else tuple(names) for kind, names in pairs}
    return {}


def _models_folder() -> Path:
    """The source of the installed transformers' models; a folder that is not there if it is not installed."""
    found = importlib.util.find_spec("transformers")
    return Path(str(found and found.origin)).parent / "models"


def _is_packable(architecture: str) -> bool:
    """Whether attention of this class of transformers can be replaced by ours; True where its source is not there."""
    return REPLACEABLE in (_source_of(architecture) or REPLACEABLE)


def _is_encoder(architecture: str) -> bool:
    """Whether a class of transformers is an encoder's, which it makes a decoder of where config.json asks for it."""
    return ENCODER in _source_of(architecture)


@cache
def _source_of(architecture: str) -> str:
    """The source of a class of transformers; empty where it is not there."""
    sources = (path.read_text(encoding="utf-8") for path in _models_folder().glob("*/modeling_*.py"))
    return next((source for source in sources if f"class {architecture}(" in source), "")


def _refuse_unpacked(config: dict[str, Any], folder: Path, name: str) -> None:
    """Conversations are packed by an attention of our own, which some classes cannot be given, or have no place for."""
    if _is_encoder(architectures(config)[0]):
        raise BaseError(
            f"{name} is {architectures(config)[0]}, an encoder: it was trained to see the words that follow",
            fix=f"use a chat model; to GGUF go: {', '.join(family.architecture for family in FAMILIES)}",
            where=str(folder),
        )
    if not _is_packable(stated := architectures(config)[0]):
        raise BaseError(
            f"{name} is {stated}, whose attention cannot be packed: tunesmith needs one that the AttentionInterface of "
            f"transformers can replace, which transformers {metadata.version('transformers')} does not have for it",
            fix=f"use another base; to GGUF go: {', '.join(family.architecture for family in FAMILIES)}",
            where=str(folder),
        )


def _refuse_more_than_text(config: dict[str, Any], folder: Path, name: str) -> None:
    """A model of pictures or sound too: its text part lies in it by other names, and its template writes for both."""
    if parts := [part for part in PARTS if isinstance(config.get(part), dict)]:
        raise BaseError(
            f"{name} is {architectures(config)[0]}, which takes more than text (its config.json has {parts[0]})",
            fix="use a base of text alone; of Gemma 3 these are google/gemma-3-270m-it and google/gemma-3-1b-it "
            "(Gemma3ForCausalLM)",
            where=str(folder),
        )


def _refuse_experts(config: dict[str, Any], tensors: dict[str, TensorInfo], folder: Path, name: str) -> None:
    """Experts are no linear layers in transformers: they would get no adapter, without a word."""
    counts = [value for key, value in _entries(config) if EXPERTS.search(key) and isinstance(value, int)]
    held = [tensor for tensor in tensors if ".experts." in tensor]
    if max(counts, default=0) > 1 or held:
        many = f"{max(counts)} experts" if max(counts, default=0) > 1 else "experts"
        raise BaseError(
            f"{name} ({architectures(config)[0]}) is a mixture of {many}, which would get no adapter",
            fix=f"use a dense base; to GGUF go: {', '.join(family.architecture for family in FAMILIES)}",
            where=str(folder),
        )


def _refuse_scaled(config: dict[str, Any], folder: Path, name: str) -> None:
    """Training computes attention itself, and the loss from the last hidden state and the head."""
    if field := not_computed(config):
        raise BaseError(
            f"{name} ({architectures(config)[0]}) scales or caps what attention or head give ({field} is "
            f"{config[field]}), which training does not compute",
            fix=f"use another base; to GGUF go: {', '.join(family.architecture for family in FAMILIES)}",
            where=str(folder),
        )


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of a config.json, those of its sections too."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _entries(value)


def _refuse_long(config: dict[str, Any], folder: Path, recipe: Recipe, longest: int) -> None:
    """No row may be longer than the model's positions, the chunk of a layer, or what packing keeps the same."""
    limits = [(config[name], f"{name} in config.json") for name in LENGTHS if _is_count(config.get(name))][:1]
    limits += [(chunk, f"the chunk that its layers attend in, {CHUNK}") for chunk in _chunks(config)]
    rope = rotary(config)
    for scaling in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind = str(scaling.get("rope_type"))
        length = scaling.get(BY_LONGEST.get(kind, ""), config.get(BY_LONGEST.get(kind, "")))
        if _is_count(length):
            limits.append((length, f"above it its rotary scaling, {kind}, changes with the longest row of a batch"))
    for limit, what in sorted(limits):
        if longest > limit:
            given = f"train.max_length is {longest}" if longest == recipe.train.max_length else f"a row has {longest}"
            raise BaseError(
                f"{recipe.base} takes {limit} tokens ({what}), and {given}",
                fix=f"lower train.max_length to {limit} or less, or use a base that takes longer conversations",
                where=str(folder),
            )


def _chunks(config: dict[str, Any]) -> Iterator[int]:
    """Tokens of the chunks that some layers attend in, which attention of ours is not told."""
    kinds, known = config.get("layer_types"), [family.architecture for family in FAMILIES]
    chunked = "chunked_attention" in kinds if isinstance(kinds, list) else architectures(config)[0] not in known
    if chunked and _is_count(config.get(CHUNK)):
        yield config[CHUNK]


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_numbers(tensors: dict[str, TensorInfo], folder: Path) -> None:
    """Weights are floats; a mask that lies beside them, as in old models, is copied as it is."""
    for name, info in tensors.items():
        if info.dtype not in NUMPY_TYPES or (info.dtype not in FLOATS and name.endswith(".weight")):
            raise BaseError(
                f"tensor {name} is stored as {info.dtype}",
                fix=f"use the model it was made from, stored as one of: {', '.join(FLOATS)}",
                where=str(folder),
            )


def _refuse_tensors(wanted: Shapes, tensors: dict[str, TensorInfo], folder: Path) -> None:
    """The tensors are those that config.json asks for: no other one has a place in a GGUF, a missing one is random."""
    here = {name: info.shape for name, info in tensors.items() if not name.endswith(UNUSED)}
    problems = [f"tensor {name} has no place in a GGUF file" for name in here if name not in wanted | _TIED]
    problems += [f"tensor {name} is missing" for name in wanted if name not in here]
    problems += [
        f"tensor {name} is {list(here[name])}, and config.json asks for {list(shape)}"
        for name, shape in wanted.items()
        if name in here and here[name] != shape
    ]
    if problems:
        more = f", and {len(problems) - 1} more like it" if len(problems) > 1 else ""
        fix = f"use an unchanged model of one of these: {', '.join(family.architecture for family in FAMILIES)}"
        raise BaseError(problems[0] + more, fix=fix, where=str(folder))


_TIED: Shapes = {"lm_head.weight": ()}  # a copy of the embedding that some models keep although they tie it
