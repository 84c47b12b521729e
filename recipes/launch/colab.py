"""Colab: one cell (Runtime > Change runtime type > T4 GPU). Where the machine was taken away: the same cell again.

Needs in the Drive a recipe (`tunesmith init` writes one, recipes/ has some) and, for a gated base, the secret HF_TOKEN
(the key at the left). The notebook finetome_colab.ipynb goes the same way in steps.
"""

import contextlib
import os
import subprocess
import sys

from google.colab import drive, userdata

INSTALL = "git+https://ADDRESS_OF_THIS_REPOSITORY"  # or a wheel: file:///content/drive/MyDrive/...whl
RECIPE = "/content/drive/MyDrive/recipe.yaml"

drive.mount("/content/drive")
with contextlib.suppress(Exception):  # no such secret, or not for this notebook: a base that is open needs none
    os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")
subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"tunesmith[train] @ {INSTALL}"], check=True)

import tunesmith

recipe = tunesmith.load_recipe(RECIPE)
keep = ["checkpoint.mirror=/content/drive/MyDrive/tunesmith", "train.stop_after=10h"]
result = tunesmith.run(recipe, f"/content/runs/{recipe.name}", keep)
print(result)
