"""verify: green on a run that is whole, red in the right line where anything is not, and nothing written in the run."""

import fcntl
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import completed
from safetensors.torch import load_file, save_file
from small_project import write_project
from training_runs import said_as_written

import tunesmith
from tunesmith import verify
from tunesmith.checks import rerun
from tunesmith.checks.rerun import PACKED, RESUME, check_resume
from tunesmith.checks.saved import BEST, CHECKPOINTS, DIGEST, damaged_checkpoints, step_of
from tunesmith.checks.shipped import GGUF, LORA, MASK, MERGED
from tunesmith.checks.verdict import FAILED, NOT_YET, OK, SKIPPED
from tunesmith.checks.written import FILES, INPUTS, RECORDS, ROWS
from tunesmith.decides import kept_recipe
from tunesmith.errors import ProofError, ResumeError
from tunesmith.files import DIGESTS, digest_file, digest_folder, file_entry
from tunesmith.gguf.read import convert
from tunesmith.model.adapter import tensors_digest
from tunesmith.runs import Run, checkpoint_folders, write_manifest
from tunesmith.study.compare import compare
from tunesmith.tidy import clean
from tunesmith.verify import BASE, look
from tunesmith.weights.locate import locate_base

LINES = [FILES, RECORDS, INPUTS, ROWS, CHECKPOINTS, BEST, BASE, MASK, PACKED, RESUME, MERGED, GGUF, LORA]
DROPOUT = "{rank: 4, dropout: 0.1}"


@pytest.fixture(scope="module")
def made(tiny_base, tmp_path_factory):
    """A finished run of 15 steps: checkpoints at the evaluations that gained, and at the end."""
    folder = tmp_path_factory.mktemp("verify")
    recipe = write_project(folder, tiny_base, lora=DROPOUT, export="{gguf: [F16, Q8_0], positions: 4}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        tunesmith.run(recipe, folder / "run")
    return Run(folder / "run")


@pytest.fixture
def run(made, tmp_path):
    """The finished run, for a test that changes it."""
    return Run(shutil.copytree(made.path, tmp_path / "run"))


@pytest.fixture
def files_only(monkeypatch):
    """Without what is computed anew, which takes two seconds."""
    monkeypatch.setattr(verify._Anew, "verdicts", lambda self: iter(()))


def lines(run, steps=10):
    return {verdict.name: verdict for verdict in look(run.path, steps).verdicts}


def states(found):
    return {name: verdict.state for name, verdict in found.items() if verdict.state != OK}


def change(path, at=None):
    """One other byte, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


def forged(checkpoint):
    """Let a checkpoint's digests say what its files are now."""
    (checkpoint / DIGESTS).write_text(json.dumps(digest_folder(checkpoint)))


def change_tensors(file, by):
    """Add a number to the largest tensor of a file."""
    tensors = load_file(file)
    largest = max(tensors, key=lambda name: tensors[name].numel())
    save_file(tensors | {largest: tensors[largest] + by}, file)


def change_state(checkpoint, **values):
    path = checkpoint / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {name: state[name] | new for name, new in values.items()}))
    forged(checkpoint)


def resumed(run, most=10):
    """The lines of the resume proof alone."""
    recipe = kept_recipe(run)
    whole = [step_of(name) for name, reason in damaged_checkpoints(run).items() if not reason]
    return {found.name: found for found in check_resume(recipe, run, locate_base(recipe.base, convert), whole, most)}


def all_of(folder):
    """Every file with its bytes and when it was written; every folder."""
    return {p: (p.read_bytes() if p.is_file() else None, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def test_a_whole_run_is_green_and_nothing_is_written_in_it(made, tmp_path):
    before = all_of(made.path)
    (tmp_path / "tmp").mkdir()
    done = completed("verify", made.path, TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == 0, done
    first, *table = done.stdout.splitlines()
    assert first.split() == ["manifest.json", "sha256", digest_file(made.manifest)]
    named = [line for line in table if not line.startswith(" ")]
    assert len(named) == len(LINES)
    assert all(line.startswith(name) and f"  {OK} " in line for line, name in zip(named, LINES, strict=True)), table
    assert all_of(made.path) == before and list((tmp_path / "tmp").iterdir()) == []


def test_the_same_for_scripts_with_the_numbers(made, files_only):
    said = json.loads(look(made.path).text(as_json=True))
    assert said["ok"] and said["manifest_sha256"] == digest_file(made.manifest)
    assert [line["name"] for line in said["verdicts"]] == LINES[:5]


def test_one_byte_of_any_file_of_the_manifest_is_red_with_its_name(run, files_only):
    listed = sorted(json.loads(run.manifest.read_text())["files"])
    assert {Path(name).parts[0] for name in listed} >= {"data", "adapter", "model", "gguf", "evaluation", "recipe.yaml"}
    assert len(listed) > 30 and {"metrics.jsonl", "samples.jsonl", "loss.png", "gguf/record.json"} <= set(listed)
    for name in listed:
        for at in (0, None, -1):
            change(run.path / name, at)
            found = look(run.path)
            line = next(verdict for verdict in found.verdicts if verdict.name == FILES)
            assert (
                line.state == FAILED and line.says == f"{name} has other bytes than were written" and not line.details
            )
            with pytest.raises(ProofError, match=f"{FILES}.* FAILED") as error:
                found.refuse_failed()
            assert error.value.exit_code == 6 and name in str(error.value)
            change(run.path / name, at)
    assert look(run.path).failed() == []


def test_what_is_cut_missing_or_longer_is_red_too_and_all_are_named(run, files_only):
    (run.model / "config.json").write_text("{}")
    (run.evaluation / "answers.jsonl").unlink()
    with run.metrics.open("a") as file:
        file.write("{}\n")  # of a training that has ended
    found = lines(run)[FILES]
    assert found.state == FAILED and found.says == "evaluation/answers.jsonl is missing"
    assert [detail.split(" ", 2)[:2] for detail in found.details] == [
        ["metrics.jsonl", "has"],
        ["model/config.json", "has"],
    ]


def test_the_command_ends_with_6_and_proofs_of_what_is_damaged_are_not_done(run):
    change(run.model / "model.safetensors", -1)
    done = completed("verify", run.path, "--json")
    said = {line["name"]: line for line in json.loads(done.stdout)["verdicts"]}
    assert done.returncode == 6 and "error: " in done.stderr and "model/model.safetensors" in done.stderr
    assert states({name: verify.Verdict(name, line["state"], "") for name, line in said.items()}) == {
        FILES: FAILED, MERGED: SKIPPED, GGUF: SKIPPED,
    }  # fmt: skip
    assert said[MERGED]["says"] == "model/model.safetensors is not as it was written"
    assert said[LORA]["proofs"][0]["limit"] == 1e-4 and said[RESUME]["state"] == OK


@pytest.mark.parametrize("content", [None, "", "[]", '{"files": 3}', '{"files": {"../x": {"sha256": "", "bytes": 1}}}'])
def test_without_its_manifest_a_run_is_red(run, files_only, content):
    run.manifest.unlink()
    if content is not None:
        run.manifest.write_text(content)
    found = lines(run)[FILES]
    assert found.state == FAILED and "manifest.json is " in found.says
    change(run.data / "tokens.npy")  # the record still says what it must be
    assert lines(run)[FILES].details == ("data/tokens.npy has other bytes than were written",)


def test_a_record_that_is_not_the_manifests_and_a_chain_that_is_broken(run, files_only):
    record = json.loads((run.adapter / "record.json").read_text())
    other = record["outputs"]["adapter_config.json"] | {"sha256": "0" * 64}
    record["outputs"]["adapter_config.json"] = other
    (run.adapter / "record.json").write_text(json.dumps(record))
    found = lines(run)
    assert found[FILES].says.startswith("adapter/record.json has ")
    assert found[RECORDS].says == "adapter/record.json and manifest.json differ on adapter/adapter_config.json"
    assert (
        found[INPUTS].says == "model/ was made from another adapter/ than is there" and states(found)[INPUTS] == FAILED
    )


def test_rows_that_were_not_counted_and_proofs_that_do_not_hold(run, files_only):
    path = run.data / "record.json"
    record = json.loads(path.read_text())
    record["counts"]["read"] += 1
    record["proofs"][0] |= {"value": 0.5}
    path.write_text(json.dumps(record))
    found = lines(run)
    assert found[ROWS].state == FAILED and found[ROWS].says.startswith("17 read is not 12 to train on + 4 held out")
    assert found[RECORDS].state == FAILED and "a proof that does not hold" in found[RECORDS].says
    record["proofs"][0] |= {"value": None, "skipped_because": "no memory"}
    path.write_text(json.dumps(record))
    assert lines(run)[RECORDS].state == SKIPPED


def test_strangers_are_noted_and_what_other_verbs_write_is_no_alarm(run, files_only):
    (run.gguf / "mine.txt").write_text("the user's")
    run.published.write_text("{}")
    tunesmith.compare([run.path])
    found = lines(run)
    assert states(found) == {} and found[FILES].details == ("in gguf/, and not made by tunesmith: mine.txt",)
    change(run.report)
    assert lines(run)[FILES].says.startswith("report.html has")


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "state.json", DIGESTS])
def test_a_damaged_checkpoint_is_red_with_its_reason(run, files_only, name):
    checkpoint = checkpoint_folders(run.checkpoints)[0]
    if name == DIGESTS:
        (checkpoint / name).unlink()
    else:
        change(checkpoint / name, -1)
    found = lines(run)
    reason = f"{DIGESTS} is missing" if name == DIGESTS else f"{name} has other bytes than were written"
    assert states(found) == {CHECKPOINTS: FAILED} and found[CHECKPOINTS].says == f"{checkpoint.name}: {reason}"


def test_an_adapter_that_the_trainer_did_not_have_is_red_without_training(run, files_only):
    last = checkpoint_folders(run.checkpoints)[-1]
    change_tensors(last / "adapter.safetensors", 1e-6)
    forged(last)
    assert "is not the adapter that the trainer had at this step" in lines(run)[CHECKPOINTS].says
