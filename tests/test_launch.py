"""What recipes/launch/ starts on machines that are lent: a batch job with Slurm's signal. The cells: test_colab.py."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rented import LAUNCH, adapter_of, project, uninterrupted, wait_for_a_checkpoint

ROOT = Path(__file__).parents[1]
SBATCH = LAUNCH / "slurm.sbatch"
JOB = "4711"
TUNESMITH = f'exec "{sys.executable}" -m tunesmith "$@"'


def on_the_path(folder, **programs):
    """An environment in which these bash scripts are programs, in a job of Slurm."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "SLURM_JOB_ID": JOB, "SLURM_CPUS_PER_TASK": "2"}


def slurm(folder, tunesmith):
    """An environment with Slurm's programs, and the file that scontrol writes to."""
    scontrol = f'echo "$@" >> {folder}/scontrol'
    return on_the_path(folder / "bin", srun='exec "$@"', scontrol=scontrol, tunesmith=tunesmith), folder / "scontrol"


def batch(*arguments, **options):
    return subprocess.Popen(["bash", SBATCH, *arguments], stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGUSR1, 0), (signal.SIGTERM, 143)])
def test_the_job_waits_for_what_it_has_told_and_ends_with_its_code(tmp_path, number, code):
    name = signal.Signals(number).name
    told = f"trap 'sleep 0.3; exit {code}' {name}; touch {tmp_path}/ready; while :; do sleep 0.02; done"
    env, scontrol = slurm(tmp_path, told)
    with batch("recipe.yaml", env=env) as job:
        while not (tmp_path / "ready").exists():
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(number)
        job.communicate(timeout=30)
    assert job.returncode == code and scontrol.exists() == (code == 138)


def test_an_error_ends_the_job_and_is_not_tried_again(tmp_path):
    env, scontrol = slurm(tmp_path, TUNESMITH)
    with batch(tmp_path / "none.yaml", env=env) as job:
        _, said = job.communicate(timeout=60)
    assert job.returncode == 2 and "none.yaml" in said and not scontrol.exists()


def test_what_slurm_reads_of_the_file():
    lines = SBATCH.read_text().splitlines()
    asked = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} < set(asked)
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines[0] == "#!/bin/bash" and not [line for line in lines[first:] if line.startswith("#SBATCH")]


def test_a_job_is_told_goes_back_into_the_queue_and_ends_equal(tiny_base, tmp_path):
    recipe = project(tmp_path, tiny_base, 12, export="{gguf: []}", checkpoint="{every: 5 steps, overhead: null}")
    env, scontrol = slurm(tmp_path, TUNESMITH)
    asked = (recipe, "--run-dir", run := tmp_path / "run", "--set", f"checkpoint.mirror={tmp_path}/drive")
    with batch(*asked, env=env) as job:
        wait_for_a_checkpoint(run / "checkpoints")
        job.send_signal(signal.SIGUSR1)  # as `--signal=B:` does, to the shell alone
        _, said = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGUSR1 and scontrol.read_text() == f"requeue {JOB}\n", said
    saved = re.search(r"train: stopped at step \d+, (step-\d+) is saved", said)[1]
    assert f"mirror: {saved} is in {tmp_path}/drive/small" in said
    shutil.rmtree(run)  # the queue gives it to another machine
    with batch(*asked, env=env) as job:
        _, said = job.communicate(timeout=60)
    assert job.returncode == 0 and f"train: going on from {saved}" in said and scontrol.read_text().count("\n") == 1, (
        said
    )
    assert adapter_of(run) == uninterrupted(recipe, tmp_path / "whole")


def test_every_file_there_is_named_in_the_guide():
    guide, files = (ROOT / "docs" / "remote.md").read_text(), sorted(path.name for path in LAUNCH.iterdir())
    assert files == ["colab.py", "kaggle.py", "slurm.sbatch"] and [name for name in files if name not in guide] == []
