"""Machines that are lent: stand-ins for what is found there, an empty folder for pip, and a recipe of some seconds."""

import os
import re
import shutil
import sys
import time
from pathlib import Path

from forked import completed
from small_project import write_project

from tunesmith.release.space.wheel import FILE, wheel

LAUNCH = Path(__file__).parents[1] / "recipes" / "launch"
STAND_INS = Path(__file__).parent / "stand_ins"
SECRET = "hf_" + "s" * 30
CLOSED = "http://127.0.0.1:9"  # the discard port, which nobody listens at


def wheel_in(folder):
    """The address of a wheel of this tunesmith, for pip."""
    (folder / FILE).write_bytes(wheel())
    return f"file://{folder / FILE}"


def machine(folder):
    """Environment of a machine that has torch and the like, and no tunesmith before pip has put it there."""
    site = folder / "site"
    site.mkdir(parents=True)
    path = os.pathsep.join([str(site / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    pip = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    places = {"PATH": path, "PYTHONPATH": os.pathsep.join([str(site), str(STAND_INS)]), "HF_HOME": str(folder / "hf")}
    return os.environ | pip | places | {"SECRET_HF_TOKEN": SECRET, "HF_ENDPOINT": CLOSED, "COLUMNS": "120"}


def project(folder, tiny_base, epochs, **replaced):
    """The path of a recipe of `epochs` times 3 steps, on a base that says its licence."""
    base = shutil.copytree(tiny_base, folder / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    train = (
        f"{{tokens_per_step: 400, max_length: 200, epochs: {epochs}, lr: 1e-2, precision: fp32,"
        " evaluate_every: 50 steps, early_stopping: null}"
    )
    lines = {"train": train, "publish": f"{{base_on_hub: org/tiny@{'c' * 40}}}"}
    return write_project(folder, base, **(lines | replaced))


def uninterrupted(recipe, folder):
    """The adapter's bytes of a run that nothing cuts, and that has no mirror."""
    for verb in ("prepare", "train"):
        done = completed(verb, recipe, "--run-dir", folder, "--set", "checkpoint.mirror=null")
        assert done.returncode == 0, done.stderr
    return adapter_of(folder)


def adapter_of(run):
    return (Path(run) / "adapter" / "adapter_model.safetensors").read_bytes()


def wait_for_a_checkpoint(folder, but=()):
    """Until there is a whole one, of another name than these."""
    deadline = time.monotonic() + 60
    while not {path.parent.name for path in folder.glob("step-*/digests.json")} - {*but}:
        assert time.monotonic() < deadline, f"no checkpoint came to {folder}"
        time.sleep(0.005)


def filled_in(name, folder, recipe, wheel):
    """A file of recipes/launch/ as somebody has filled it in, its places below `folder`."""
    text = (LAUNCH / name).read_text()
    for place in ("/content", "/kaggle"):
        text = text.replace(place, f"{folder}{place}")
    values = {"INSTALL": wheel, "RECIPE": str(recipe), "MIRROR": f"{folder}/content/drive/MyDrive/tunesmith"}
    for value, new in values.items():
        text = re.sub(rf'(?m)^{value} = ".*"', f"{value} = {new!r}", text)
    (folder / name).write_text(text)
    return folder / name
