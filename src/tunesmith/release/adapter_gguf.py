"""The adapter alone as a GGUF file, and its proof on the base's GGUF, which is made for that and deleted again."""

from pathlib import Path

from tunesmith.console import say, warn
from tunesmith.files import finish
from tunesmith.gguf.adapter import write_adapter
from tunesmith.gguf.write import About, expected_bytes, write_gguf
from tunesmith.machine import need_disk
from tunesmith.proof.adapter_gguf import prove_adapter_gguf
from tunesmith.recipe import Recipe
from tunesmith.record import Proof, refuse_damaged
from tunesmith.runs import Run
from tunesmith.weights.locate import LocatedBase
from tunesmith.weights.peft_files import WEIGHTS


def make_adapter_gguf(recipe: Recipe, run: Run, base: LocatedBase, path: Path, about: About) -> None:
    """Write NAME-lora-F16.gguf, and note that it is finished; without an adapter/ of the run, say so and leave it."""
    if not (run.adapter / WEIGHTS).exists():
        warn(f"there is no adapter/ any more, so there is no {path.name}")
        return
    refuse_damaged(run.adapter)  # no input of export: the merged model is
    size = write_adapter(run.adapter, base.folder, path, about)
    finish(path.parent, path.name, {"bytes": size})
    say(f"export: {path.name}, {size / 1e6:.1f} MB, for the GGUF of {base.name} and llama.cpp's --lora")


def prove_adapter(recipe: Recipe, run: Run, base: LocatedBase, path: Path, scratch: Path) -> list[Proof]:
    """Prove the file on the base's GGUF; nothing to prove where there is none."""
    if not path.exists():
        return []

    def make_base(file: Path) -> None:
        need_disk(scratch, expected_bytes(base.folder, "F16"), "the base's F16 file that the adapter's is proved on")
        write_gguf(base.folder, file, "F16", About(base.name, base.name, base.licence, recipe.chat))

    return prove_adapter_gguf(recipe, run, base.folder, path, make_base, scratch)
