"""A run from the stand-in Hub that is pushed to meanwhile, in its own process: the Hub's address is read at import.

usage: python pinned_run.py FOLDER BASE OTHER_BASE
"""

import json
import os
import sys
from pathlib import Path

from hub_server import COMMIT, HubServer

NEWER, ROWS, NEWER_ROWS = "b" * 40, "d" * 40, "e" * 40
RECIPE = """\
name: small
base: org/tiny
data: {sources: [{path: org/rows}], held_out: 0.25}
lora: {rank: 2}
train: {tokens_per_step: 100, max_length: 64, lr: 1e-2, precision: fp32, evaluate_every: 4 steps, epochs: 2}
"""


def main(folder: Path, base: Path, other: Path) -> None:
    with HubServer().running() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "TUNESMITH_CACHE": str(folder / "cache")}
        os.environ.update(own | {"HF_HUB_DISABLE_XET": "1"})
        follow(hub, folder, base, other)


def follow(hub: HubServer, folder: Path, base: Path, other: Path) -> None:
    from tunesmith.data import hub as data_hub
    from tunesmith.errors import ResumeError
    from tunesmith.pipeline import run_stages
    from tunesmith.recipe_file import read_recipe
    from tunesmith.record import read_record
    from tunesmith.runs import Run
    from tunesmith.stages import stage_of

    def call(verb, run, *changes):
        data_hub._resolve.cache_clear()  # as in a new process
        return run_stages(read_recipe(folder / "recipe.yaml", changes), run, [stage_of(verb)])

    (folder / "rows").mkdir()
    lines = [json.dumps({"prompt": f"question {n}", "completion": f"answer {n}"}) for n in range(24)]
    (folder / "rows" / "train.jsonl").write_text("\n".join(lines))
    (folder / "recipe.yaml").write_text(RECIPE)
    hub.models["org/tiny"], hub.datasets["org/rows"] = base, {"main": ROWS, ROWS: folder / "rows"}
    run = Run(folder / "run")
    call("prepare", run)
    begun = read_recipe(run.recipe)
    assert (begun.base, begun.data.sources[0].revision) == (f"org/tiny@{COMMIT}", ROWS)
    assert call("train", run, "train.stop_after=2 steps").paused.step == 2

    hub.models["org/tiny"] = {"main": NEWER, NEWER: other, COMMIT: base}
    hub.datasets["org/rows"] = {"main": NEWER_ROWS, NEWER_ROWS: folder, ROWS: folder / "rows"}
    assert call("train", run, "base=org/tiny@main", "data.sources.0.revision=main").done
    data, adapter = read_record(run.data), read_record(run.adapter)
    assert data.inputs["base"] == adapter.inputs["base"] and adapter.counts["base_revision"] == COMMIT
    assert adapter.counts["interruptions"] == 1 and read_recipe(run.recipe).base == f"org/tiny@{COMMIT}"
    assert read_recipe(run.recipe).data.sources[0].revision == ROWS

    try:  # another commit by name is another base
        call("train", run, f"base=org/tiny@{NEWER}")
    except ResumeError as error:
        assert "base: " in str(error)
    else:
        raise AssertionError("another base went on in the run of the first")
    fresh = Run(folder / "fresh")
    call("prepare", fresh, f"data.sources.0.revision={ROWS}")
    assert read_recipe(fresh.recipe).base == f"org/tiny@{NEWER}"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
