"""The stages in one table, in the order of the pipeline: the only place that names a verb and its folder.

The pipeline, the command line and Run read it; what decides a stage and what does its work are named by their place,
and imported when they are used: `--help` needs neither, and a stage that stands needs no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.recipe import Recipe  # 0.3 s, and the help needs none


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    verb: str
    folder: str
    """Name of the folder that it commits in the run folder."""
    decides: str
    """module:function of what decides its result: (recipe, run, digest of the base) -> (settings, inputs)."""
    work: str
    """module:function that commits its folder: (recipe, run, base) -> (record, whether it was done now)."""
    says: str
    """One line of help."""
    gguf: bool = False
    """Whether it makes or needs GGUF files: left out where the recipe asks for none."""
    scores: bool = False
    """Whether it scores rows: left out where the recipe selects none by a score, and then not spoken of."""

    def is_wanted(self, recipe: "Recipe") -> bool:
        """Whether the recipe asks for it: without GGUF files a run ends with the merged model."""
        if self.scores:
            return recipe.data.select is not None and recipe.data.select.scored
        return bool(recipe.export.gguf) or not self.gguf

    def load_decides(self) -> Callable[..., Any]:
        """The function that `decides` names."""
        return _load(self.decides)

    def load_work(self) -> Callable[..., Any]:
        """The function that `work` names; this is what imports torch and transformers."""
        return _load(self.work)


STAGES = (
    Stage(
        verb="prepare", folder="data",
        decides="tunesmith.decides:data_needs", work="tunesmith.tokens.prepare:prepare",
        says="Conversations to clean token rows.",
    ),
    Stage(
        verb="score", folder="scores",
        decides="tunesmith.tokens.selected:scores_needs", work="tunesmith.training.score:score",
        says="A number for each training row, for data.select.", scores=True,
    ),
    Stage(
        verb="train", folder="adapter",
        decides="tunesmith.decides:adapter_needs", work="tunesmith.training.train:train",
        says="Token rows to an adapter; goes on where it was killed.",
    ),
    Stage(
        verb="merge", folder="model",
        decides="tunesmith.decides:model_needs", work="tunesmith.release.merge:merge",
        says="Adapter and base to one model, proven equal.",
    ),
    Stage(
        verb="export", folder="gguf",
        decides="tunesmith.decides:gguf_needs", work="tunesmith.release.export:export",
        says="Model to GGUF files for the CPU, proven equal.", gguf=True,
    ),
    Stage(
        verb="evaluate", folder="evaluation",
        decides="tunesmith.decides:evaluation_needs", work="tunesmith.evaluation.evaluate:evaluate",
        says="The GGUF answers ten prompts on this CPU, timed.", gguf=True,
    ),
)  # fmt: skip


def stage_of(verb: str) -> Stage:
    """The stage that a verb does."""
    return next(stage for stage in STAGES if stage.verb == verb)


def stage_at(folder: str) -> Stage:
    """The stage that commits a folder of this name."""
    return next(stage for stage in STAGES if stage.folder == folder)


def _load(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
