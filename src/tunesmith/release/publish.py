"""VERB publish: a finished run to the Hub: what goes where, and what must be so before anything does.

Nothing is sent here: upload.py does that, with the plan of this file.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tunesmith.errors import ProofError, RecipeError, ResumeError
from tunesmith.files import PROOFS, digest_file, never, write_user_file
from tunesmith.gguf.read import convert
from tunesmith.recipe import Part, Recipe
from tunesmith.record import Proof, read_record, refuse_damaged, refuse_lost_measures
from tunesmith.release.card import PLOT, STAGES_OF, SUFFIXES, Published, draw_losses, origin_of, proofs_of, write_card
from tunesmith.release.licences import Terms, refuse_clash, refuse_name, terms_of
from tunesmith.runs import Run
from tunesmith.stages import stage_at
from tunesmith.stale import stale
from tunesmith.weights import peft_files
from tunesmith.weights.locate import small_files
from tunesmith.weights.small_files import CARD, TEMPLATE, TOKENIZER_CONFIG

OWN_FOLDER: dict[Part, str] = {"model": "model", "lora": "adapter", "gguf": "gguf"}
"""What is published -> the folder that it comes from."""
IN_WORDS: dict[Part | Literal["space"], str] = {
    "model": "the merged model", "lora": "the adapter", "gguf": "the GGUF files", "space": "the chatbot",
}  # fmt: skip
TOKENIZER = ("tokenizer.json", TOKENIZER_CONFIG, TEMPLATE)
"""What goes with an adapter too: its chat template is the run's, not the base's."""


@dataclass(frozen=True)
class Sent:
    """One file of a repository: a file of the run, or what was made for the Hub."""

    name: str
    size: int
    """In bytes."""
    sha256: str
    path: Path | None = None
    content: bytes = field(default=b"", repr=False)

    def read(self) -> bytes:
        """What is in it, for a small one."""
        return self.path.read_bytes() if self.path else self.content


@dataclass(frozen=True)
class Repository:
    """One repository, and all that it is to hold."""

    id: str
    part: Part | Literal["space"]
    files: tuple[Sent, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def kind(self) -> str:
        """What the Hub calls such a repository."""
        return "space" if self.part == "space" else "model"

    @property
    def place(self) -> str:
        """Its address below the Hub's: a Space and a model may have one id."""
        return f"spaces/{self.id}" if self.kind == "space" else self.id

    def lines(self, visibility: str) -> Iterator[str]:
        """Every file with its size, where it goes and who may see it."""
        yield f"{self.place} ({visibility}): {IN_WORDS[self.part]}"
        yield from (f"  {file.size:>15,}  {file.name}" for file in self.files)
        yield f"  {self.size:>15,}  bytes in {len(self.files)} files"


@dataclass(frozen=True)
class Plan:
    """What would be published."""

    run: Run
    repositories: tuple[Repository, ...]
    public: bool
    duties: tuple[str, ...]
    skipped: tuple[str, ...]
    """Proofs that were skipped, which publish.unproved lets pass."""
    remarks: tuple[str, ...]
    """Parts that are left out, and why."""

    @property
    def visibility(self) -> str:
        """Who may see it."""
        return "public" if self.public else "private"

    def lines(self) -> Iterator[str]:
        """Every file with its size, where it goes and who may see it, and what the licence asks."""
        for repository in self.repositories:
            yield from repository.lines(self.visibility)
        licence, *duties = self.duties
        yield f"licence: {licence}"
        yield from (f"  - {duty}" for duty in duties)
        yield f"proofs: {f'NOT all: {len(self.skipped)} skipped' if self.skipped else 'all hold, none was skipped'}"
        yield from (f"  - {proof}" for proof in self.skipped)
        yield from self.remarks


def make_plan(recipe: Recipe, run: Run, changes: Sequence[str] = ()) -> Plan:
    """What `publish` in the recipe asks for. Reads every file that would be sent; sends nothing.

    `changes`: those to the recipe, which a command that makes what is missing must have too.

    Raises RecipeError for a name or a licence that does not do, ResumeError for a run that is not whole, not what its
    recipe says, or damaged, ProofError where a proof does not hold or was skipped.
    """
    config = recipe.publish
    if not config.to:
        fix = f"type `tunesmith publish {run.path} --to USER/NAME`, or set publish.to"
        raise RecipeError("publish.to says no repository, USER/NAME on the Hub", fix=fix)
    origin = origin_of(recipe)
    parts, remarks = _parts(recipe, origin.id is not None)
    terms = refuse_terms(recipe)
    sets = [word for change in changes if not change.startswith("publish.") for word in ("--set", change)]
    _refuse_unfinished(recipe, run, parts, shlex.join(["tunesmith", "run", str(run.path), *sets]))
    skipped = _refuse_unproved(run, parts, config.unproved)
    published = Published(recipe, run, config.to, parts, config, terms, origin)
    plot = draw_losses(run) if run.metrics.exists() else None
    if not plot:
        remarks.append(f"the cards have no learning curve: {run.metrics.name} is gone")
    repositories = tuple(Repository(published.repository(part), part, _files(published, part, plot)) for part in parts)
    return Plan(run, repositories, config.public, tuple(terms.duties()), tuple(map(str, skipped)), tuple(remarks))


def refuse_terms(recipe: Recipe) -> Terms:
    """The terms of the base. Raises RecipeError for one, or a name, that will not do: known before anything is made."""
    config = recipe.publish
    assert config.to
    for suffix in SUFFIXES.values():
        refuse_id(f"{config.to}{suffix}")
    terms = terms_of(small_files(recipe.base, convert), config, recipe.base)
    refuse_name(terms, config.to.partition("/")[2])
    return terms


def write_drafts(plan: Plan, folder: Path) -> None:
    """Write what is made for the Hub, such as the cards, to a new folder, to be read before it is published."""
    never(folder)
    for repository in plan.repositories:
        for file in repository.files:
            if file.path is None:
                write_user_file(folder / repository.id.partition("/")[2] / file.name, file.content)


def _parts(recipe: Recipe, on_hub: bool) -> tuple[tuple[Part, ...], list[str]]:
    """The parts that can be published, and why another one cannot. Raises RecipeError where none is left."""
    lacking: dict[Part, tuple[str, str]] = {}
    if not recipe.export.gguf:
        fix = f"name types, as in --set export.gguf=[Q8_0], and type `tunesmith run` for {recipe.name} first"
        lacking["gguf"] = ("the GGUF files are left out: export.gguf asks for none", fix)
    if not on_hub:
        what = f"the adapter is left out: its base, {Path(recipe.base).name}, is on this machine alone"
        lacking["lora"] = (what, "name the model on the Hub that it is: --set publish.base_on_hub=OWNER/NAME@COMMIT")
    asked = dict.fromkeys(recipe.publish.parts)
    parts = tuple(part for part in asked if part not in lacking)
    left_out = [lacking[part] for part in asked if part in lacking]
    if not parts:
        raise RecipeError(left_out[0][0], fix=left_out[0][1])
    return parts, [f"{what}; {fix}" for what, fix in left_out]


def _refuse_unfinished(recipe: Recipe, run: Run, parts: Sequence[Part], make: str) -> None:
    """Raise ResumeError unless the run is whole and of one piece, and its files are as the stages wrote them.

    `make`: the command that makes what is not.
    """
    folders = [name for name in dict.fromkeys(name for part in parts for name in STAGES_OF[part])
               if name != run.gguf.name or recipe.export.gguf]  # fmt: skip
    for name in folders:
        if read_record(run.path / name) is None:
            what = f"{run.path} has no whole {name}/, which is made by `tunesmith {stage_at(name).verb} {run.path}`"
            raise ResumeError(what, fix=f"type `{make}`, which makes what is missing")
    if old := stale(recipe, run, "evaluate"):
        what = "\n  - ".join(["the run is not what its recipe says, so it is not published:", *old])
        raise ResumeError(what, fix=f"type `{make}`, which makes it anew")
    if recipe.export.gguf and read_record(run.evaluation) is None:
        what = f"{run.path} has no whole {run.evaluation.name}/, whose answers and speeds the cards tell"
        raise ResumeError(what, fix=f"type `{make}`, which makes what is missing")
    for name in (*folders, run.evaluation.name):
        refuse_damaged(run.path / name)
        refuse_lost_measures(run.path / name)


def _refuse_unproved(run: Run, parts: Sequence[Part], unproved: bool) -> list[Proof]:
    """The proofs that were skipped. Raises ProofError for them, unless `unproved`, and for one that does not hold."""
    skipped = list[Proof]()
    for name, proof in dict.fromkeys(found for part in parts for found in proofs_of(run, part)):
        if proof.skipped_because:
            skipped.append(proof)
        elif not proof.holds:
            fix = f"type `tunesmith run {run.path}`; delete {name}/ if it stands as it is"
            raise ProofError(f"{name}/: a proof does not hold, so nothing is published: {proof}", fix=fix)
    if skipped and not unproved:
        fix = (
            f"type `tunesmith run {run.path}` where there is memory for it, which does them; or say "
            "--set publish.unproved=true: the card then says what was not proved"
        )
        raise ProofError("\n  - ".join(["not all is proved, so nothing is published:", *map(str, skipped)]), fix=fix)
    return skipped


def refuse_id(id: str) -> None:
    """Raise RecipeError for what can be no repository's name on the Hub."""
    try:
        validate_repo_id(id)
    except HFValidationError as error:
        fix = (
            "name it USER/NAME, of letters, digits, - _ and ., at most 96, with nothing but letters and digits at its "
            "ends, without -- or .. in it, and without .git at its end"
        )
        raise RecipeError(f"{id} can be no repository on the Hub: {error}", fix=fix) from None


def _files(published: Published, part: Part, plot: bytes | None) -> tuple[Sent, ...]:
    """All files of a repository, by name: those of the run as its records list them, and those made for the Hub."""
    run, folder = published.run, published.run.path / OWN_FOLDER[part]
    found = {file.name: file for file in _recorded(folder)}
    lora = run.adapter_gguf(published.recipe.name).name  # beside the others, `-hf REPOSITORY:F16` could mean it
    if part == "gguf":
        found.pop(lora, None)
    if part == "lora":
        found |= {file.name: file for file in _recorded(run.gguf) if file.name == lora}
        found |= {file.name: file for file in _recorded(run.model) if file.name in TOKENIZER}
        found[peft_files.CONFIG] = _made(peft_files.CONFIG, _adapter_config(published))
    if part == "gguf" and (run.gguf / PROOFS).is_file():
        found[PROOFS] = on_disk(run.gguf / PROOFS)
    refuse_clash(published.terms.files, {*found, PLOT, CARD})
    found |= {name: _made(name, content) for name, content in published.terms.files.items()}
    if plot:
        found[PLOT] = _made(PLOT, plot)
    found[CARD] = _made(CARD, write_card(published, part).encode())
    return tuple(found[name] for name in sorted(found))


def _recorded(folder: Path) -> Iterator[Sent]:
    record = read_record(folder)
    for name, output in (record.outputs if record else {}).items():
        yield Sent(name, output["bytes"], output["sha256"], folder / name)


def on_disk(path: Path) -> Sent:
    """A file as it is, under its own name."""
    return Sent(path.name, path.stat().st_size, digest_file(path), path)


def _made(name: str, content: bytes) -> Sent:
    return Sent(name, len(content), hashlib.sha256(content).hexdigest(), content=content)


def _adapter_config(published: Published) -> bytes:
    """The adapter's settings, with its base as others find it: never a folder of this machine."""
    settings = json.loads((published.run.adapter / peft_files.CONFIG).read_bytes())
    settings |= {"base_model_name_or_path": published.origin.id, "revision": published.origin.revision}
    return (json.dumps(settings, indent=2) + "\n").encode()
