"""Kaggle: one cell, or a script. A session has 12 hours: run it again (Save Version > Save & Run All), and it goes on.

Settings: Internet on, accelerator GPU T4 (one of two is used), the secret HF_TOKEN with a token that may write, and the
recipe as an input (Add Input > Upload). What is in /kaggle/working (20 GB) is kept only of a version that ran to its
end, so that the run goes on from the mirror on the Hub: a private data set, made if it is not there.
"""

import os
import subprocess
import sys

from kaggle_secrets import UserSecretsClient

INSTALL = "git+https://ADDRESS_OF_THIS_REPOSITORY"  # or a wheel among the inputs: file:///kaggle/input/...whl
RECIPE = "/kaggle/input/recipe/recipe.yaml"
MIRROR = "hf://datasets/USER/runs"

os.environ["HF_TOKEN"] = UserSecretsClient().get_secret("HF_TOKEN")
subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"tunesmith[train] @ {INSTALL}"], check=True)

import tunesmith

recipe = tunesmith.load_recipe(RECIPE)
keep = [f"checkpoint.mirror={MIRROR}", "train.stop_after=10h"]
result = tunesmith.run(recipe, f"/kaggle/working/runs/{recipe.name}", keep)
print(result)
