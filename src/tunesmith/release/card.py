"""The model card: what the records of a run say of a model, for those who find it on the Hub. No number is typed.

One template, card.md.j2, for the merged model, the adapter and the GGUF files; what differs is asked there. Rows of the
data are not in it, nor is a path of this machine.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from tunesmith.files import PROOFS
from tunesmith.gguf.modelfile import MODELFILE
from tunesmith.json_file import json_object
from tunesmith.recipe import Part, PublishConfig, Recipe, Source
from tunesmith.recipe_file import dump_short
from tunesmith.record import Proof, Record, read_record
from tunesmith.release.licences import Terms
from tunesmith.release.sources import base_name, from_hub, named, sources
from tunesmith.runs import Run
from tunesmith.tokens.selected import selection_in_words
from tunesmith.training.metrics import Metrics, plot_losses
from tunesmith.training.outcome import ancestor_of
from tunesmith.weights import builtin
from tunesmith.weights.locate import HUB_ID, is_local

SUFFIXES: dict[Part, str] = {"model": "", "lora": "-lora", "gguf": "-GGUF"}
"""What is published -> what its repository's name adds to NAME."""
LIBRARIES: dict[Part, str] = {"model": "transformers", "lora": "peft", "gguf": "gguf"}
PLOT = "loss.png"
OF_ADAPTER = "adapter GGUF"  # how the proofs of it begin
STAGES_OF: dict[Part, tuple[str, ...]] = {
    "model": ("data", "adapter", "model"),
    "lora": ("data", "adapter", "model", "gguf"),
    "gguf": ("data", "adapter", "model", "gguf"),
}
"""What is published -> the folders whose proofs it rests on: an adapter is proved by the model merged from it, and as
a GGUF file beside the others."""


@dataclass(frozen=True)
class Origin:
    """The base as others can have it: on the Hub."""

    id: str | None
    """None: it is on this machine alone."""
    revision: str | None
    same_weights: bool
    """Whether the run began with the very weights that are there."""
    remark: str = ""
    """What is to be said where it did not."""


def origin_of(recipe: Recipe) -> Origin:
    """Where others find the base of a run."""
    if recipe.base.startswith(builtin.SCHEME):
        remark = (
            f"Its base is a 4-bit file (Q4_1) of {builtin.HUB_ID}, unpacked to 32 bits: near the weights on the Hub, "
            "and not the same."
        )
        return Origin(builtin.HUB_ID, None, False, remark)
    named = recipe.publish.base_on_hub if is_local(recipe.base) else recipe.base
    match = HUB_ID.fullmatch(named or "")
    if match and not is_local(recipe.base):
        return Origin(match[1], match[2], True)
    from_gguf = os.path.isfile(os.path.expanduser(recipe.base))
    kept = "unpacked from a GGUF file on its author's machine" if from_gguf else "in a folder on its author's machine"
    remark = f"Its base was {kept}" + (", named as this model by the author." if match else ".")
    if match:
        return Origin(match[1], match[2], not from_gguf, remark)
    return Origin(None, None, False, remark)


@dataclass(frozen=True)
class Published:
    """What is being published, and where."""

    recipe: Recipe
    run: Run
    to: str
    """USER/NAME."""
    parts: tuple[Part, ...]
    config: PublishConfig
    terms: Terms
    origin: Origin

    def repository(self, part: Part) -> str:
        """The repository of a part."""
        return f"{self.to}{SUFFIXES[part]}"


def write_card(published: Published, part: Part) -> str:
    """The card of one part: the Hub's metadata, then Markdown."""
    recipe, run = published.recipe, published.run
    records = {name: record for name in STAGES_OF["gguf"] if (record := read_record(run.path / name))}
    evaluation = read_record(run.evaluation)
    files = _gguf_files(recipe, run, records.get("gguf"))
    metadata = _metadata(published, part, records, files)
    made = records["gguf"].outputs if "gguf" in records else {}
    recipe_text = _recipe_text(recipe, records["data"])
    environment = Environment(
        loader=PackageLoader("tunesmith.release", ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    text = environment.get_template("card.md.j2").render(
        part=part,
        repositories={each: published.repository(each) for each in published.parts},
        repository=published.repository(part),
        name=published.repository(part).partition("/")[2],
        recipe=recipe,
        recipe_text=recipe_text,
        origin=published.origin,
        terms=published.terms,
        config=published.config,
        sources=list(sources(recipe, records["data"])),
        data=records["data"].counts,
        trained=records["adapter"].counts,
        selection_in_words=selection_in_words,
        ancestor=ancestor_of(records["adapter"].counts.get("ancestor"))[1],
        version=records["adapter"].versions["tunesmith"],
        proofs=list(proofs_of(run, part)),
        files=files,
        modelfile=MODELFILE in made,
        adapter_gguf=lora if (lora := run.adapter_gguf(recipe.name).name) in made else "",
        scores=evaluation.counts if evaluation else {},
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", recipe_text)), default=0)),
        metrics=run.metrics.exists(),
        plot=PLOT,
    )
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}"))


def proofs_of(run: Run, part: Part) -> Iterator[tuple[str, Proof]]:
    """What was proved of a part, each with the folder whose record says so."""
    for stage in STAGES_OF[part]:
        record = read_record(run.path / stage)
        for proof in record.proofs if record else ():
            if stage != "gguf" or proof.name.startswith(OF_ADAPTER) == (part == "lora"):
                yield stage, proof


def draw_losses(run: Run) -> bytes:
    """The learning curve of a run, as a PNG."""
    with tempfile.TemporaryDirectory() as folder:
        plot_losses(Metrics(run.metrics), Path(folder, PLOT))
        return Path(folder, PLOT).read_bytes()


def _metadata(
    published: Published, part: Part, records: Mapping[str, Record], files: list[dict[str, Any]]
) -> ModelCardData:
    """The head of the card, as the Hub reads it."""
    base, relation = published.origin.id, "adapter" if part == "lora" else "finetune"
    if part == "gguf" and "model" in published.parts:
        base, relation = published.repository("model"), "quantized"
    hub_data = list(from_hub(records["data"]))
    more: dict[str, Any] = published.terms.metadata() | ({"base_model_relation": relation} if base else {})
    return ModelCardData(
        base_model=base,
        datasets=hub_data or None,
        eval_results=list(_results(part, records, files, hub_data)),
        language=list(published.config.language) or None,
        library_name=LIBRARIES[part],
        model_name=published.repository(part).partition("/")[2],
        pipeline_tag="text-generation",
        tags=["tunesmith", "conversational", "lora", *(["llama.cpp"] if part == "gguf" else [])],
        **more,
    )


def _results(
    part: Part, records: Mapping[str, Record], files: list[dict[str, Any]], hub_data: list[str]
) -> Iterator[EvalResult]:
    """What was measured on held-out rows: of the adapter in training, of each GGUF file by llama.cpp."""
    counts, rows = records["adapter"].counts, records["data"].counts.get("held_out_rows")
    measured = [("", counts.get("held_out_loss"), counts.get("bits_per_byte"), f"{rows} rows")]
    if part == "gguf":
        measured = [(f" ({file['kind']})", file["loss"], file["bits_per_byte"], file["of"]) for file in files]
    for which, loss, bits, of in measured:
        values = (("loss", "Held-out loss, nats per token", loss), ("bits_per_byte", "Held-out bits per byte", bits))
        for kind, title, value in values:
            if value is not None:
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=hub_data[0] if hub_data else "held-out",
                    dataset_name=f"held-out conversations ({of})",
                    metric_type=kind,
                    metric_name=f"{title}{which}",
                    metric_value=round(value, 4),
                )


def _gguf_files(recipe: Recipe, run: Run, record: Record | None) -> list[dict[str, Any]]:
    """What is known of each GGUF file of the model: its size, and what it loses."""
    if not record:
        return []
    measured = json_object((run.gguf / PROOFS).read_bytes())
    found = []
    for kind in recipe.export.gguf:
        name = run.gguf_file(recipe.name, kind).name
        assert name in record.outputs, "a type of the recipe has no file, and the run was taken for what it says"
        said, against = measured.get(kind, {}), measured.get(kind, {}).get("against_F16") or {}
        held_out = said.get("held_out") or {}
        found.append({
            "kind": kind, "name": name, "bytes": record.outputs[name]["bytes"], "kl": against.get("mean_kl"),
            "top1": against.get("top1"), "loss": held_out.get("loss"), "bits_per_byte": held_out.get("bits_per_byte"),
            "of": f"{held_out['positions']:,} positions of {held_out['rows']:,} rows" if held_out else "",
        })  # fmt: skip
    return found


def _recipe_text(recipe: Recipe, data_record: Record) -> str:
    """The recipe without what is at its default, and without folders of this machine."""
    held_out = recipe.data.held_out
    data = recipe.data.model_copy(update={
        "sources": tuple(named(source, data_record) for source in recipe.data.sources),
        "held_out": named(held_out, data_record) if isinstance(held_out, Source) else held_out,
    })  # fmt: skip
    prompts = os.path.basename(recipe.evaluate.prompts)
    return dump_short(recipe.model_copy(update={
        "base": base_name(recipe.base), "data": data, "publish": PublishConfig(),
        "evaluate": recipe.evaluate.model_copy(update={"prompts": prompts}),
    }))  # fmt: skip
