"""The disk of the whole run is asked for before training, not when merge is reached; and it is what the files take."""

from types import SimpleNamespace

import pytest
import torch
from small_project import write_project

from tunesmith import machine
from tunesmith.errors import ResourceError
from tunesmith.gguf.read import convert
from tunesmith.gguf.write import About, write_gguf
from tunesmith.model.adapter import adapter_tensors
from tunesmith.model.base import load_base
from tunesmith.model.lora import attach
from tunesmith.pipeline import run_stages
from tunesmith.recipe import ChatConfig
from tunesmith.recipe_file import read_recipe
from tunesmith.room import Need, disk_needs, fullest_bytes, make_sure, need_room
from tunesmith.runs import Run
from tunesmith.stages import STAGES, stage_of
from tunesmith.weights.locate import locate_base

RUN = [stage_of(verb) for verb in ("train", "merge", "export", "evaluate")]


def free(monkeypatch, count):
    """Make every disk have this many bytes left."""
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: SimpleNamespace(free=count))


@pytest.fixture
def made(tmp_path, tiny_base, own_cache):
    """(recipe, run, base) of a run that has not begun."""
    recipe = read_recipe(write_project(tmp_path, tiny_base))
    return recipe, Run(tmp_path / "run"), locate_base(recipe.base, convert)


def test_the_fullest_moment_counts(tmp_path, monkeypatch):
    needs = [Need("checkpoints", tmp_path, takes=6, leaves=4), Need("model", tmp_path / "new", takes=6, leaves=-2)]
    needs.append(Need("files", tmp_path, takes=7, leaves=7))  # 6, then 4 + 6, then 4 - 2 + 7
    free(monkeypatch, 10)
    need_room(needs)
    free(monkeypatch, 9)
    with pytest.raises(ResourceError, match=r"checkpoints .* model .* files") as caught:
        need_room(needs)
    assert "--run-dir" in caught.value.fix and "TUNESMITH_CACHE" in caught.value.fix


def test_what_is_asked_for_is_what_the_files_take(made, tmp_path, tiny_base):
    recipe, run, base = made
    needs = {need.what: need for stage in RUN for need in disk_needs(stage, recipe, run, base)}
    model = load_base(tiny_base, precision="fp32", device=torch.device("cpu"))
    attach(model, recipe.lora, seed=0)
    adapter = sum(tensor.nbytes for tensor in adapter_tensors(model).values())
    keep = recipe.checkpoint.keep
    assert needs["adapter"].takes == adapter
    assert needs["checkpoints"].takes == 3 * adapter * (keep.last + keep.best + 1)
    assert needs["merged model"].takes == (tiny_base / "model.safetensors").stat().st_size
    written = {}
    for kind in ("F16", "Q8_0"):
        write_gguf(tiny_base, tmp_path / kind, kind, About("a", "b", None, ChatConfig()))
        written[kind] = (tmp_path / kind).stat().st_size
    assert recipe.export.gguf == ("Q8_0",)  # F16 is made all the same, and deleted when Q8_0 is proved by it
    base_file = written["F16"]  # that the adapter's is proved on
    assert needs["GGUF files"].takes == pytest.approx(sum(written.values()) + adapter / 2 + base_file, rel=0.2)
    assert needs["GGUF files"].leaves == pytest.approx(written["Q8_0"] + adapter / 2, rel=0.2)
    assert needs["GGUF file of the base"].takes == pytest.approx(written["Q8_0"], rel=0.2)


def test_a_disk_too_small_for_the_end_is_said_before_any_work(made, monkeypatch):
    recipe, run, base = made
    needs = [need for stage in RUN for need in disk_needs(stage, recipe, run, base)]
    free(monkeypatch, max(need.takes for need in needs))  # each stage alone would fit
    loaded = []
    with pytest.raises(ResourceError, match="what is still to be made"):
        run_stages(recipe, run, STAGES, lambda stage: loaded.append(stage.verb))
    assert loaded == [] and not run.data.exists()


def test_what_a_new_start_deletes_is_room_once(made, monkeypatch):
    recipe, run, base = made
    old = run.checkpoints / "step-000008"
    old.mkdir(parents=True)
    (old / "state.json").write_bytes(b"x" * 50_000)
    needed = fullest_bytes(recipe, Run(run.path.parent / "new"), base)  # where nothing is yet
    for frees in (50_000, 300_000):
        free(monkeypatch, needed - frees)
        make_sure(STAGES, recipe, run, base, frees)
        free(monkeypatch, needed - frees - 1)
        with pytest.raises(ResourceError, match=r"still to be made \(checkpoints .*\) needs"):
            make_sure(STAGES, recipe, run, base, frees)


def test_for_stages_that_were_not_asked_for_it_is_a_warning(made, monkeypatch, capsys):
    recipe, run, base = made
    run_stages(recipe, run, STAGES[:1])
    free(monkeypatch, max(need.takes for need in disk_needs(RUN[0], recipe, run, base)) * 1.2)
    run_stages(recipe, run, [stage_of("train")])
    assert run.adapter.exists() and "there is room to train, but not for what comes after it" in capsys.readouterr().err
