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
from tunesmith.checks.saved import BEST, CHECKPOINTS, damaged_checkpoints
from tunesmith.checks.shipped import GGUF, LORA, MASK, MERGED, check_mask
from tunesmith.checks.verdict import FAILED, NOT_YET, OK, SKIPPED
from tunesmith.checks.written import FILES, INPUTS, RECORDS, ROWS, read_written
from tunesmith.decides import kept_recipe
from tunesmith.errors import ProofError, ResourceError, ResumeError
from tunesmith.files import DIGESTS, digest_file, digest_folder, file_entry
from tunesmith.gguf.read import convert
from tunesmith.record import output_digest, read_record
from tunesmith.runs import Run, checkpoint_folders, step_of, write_manifest
from tunesmith.tidy import clean
from tunesmith.tokens.template import end_of_turn_id
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.training import train as training
from tunesmith.training.metrics import DIGEST
from tunesmith.verify import BASE, look
from tunesmith.weights.locate import LocatedBase, locate_base

LINES = [FILES, RECORDS, INPUTS, ROWS, CHECKPOINTS, BEST, BASE, MASK, PACKED, RESUME, MERGED, GGUF, LORA]
RECIPE = {
    "lora": "{rank: 4, dropout: 0.1}",
    "train": "{tokens_per_step: 400, max_length: 200, epochs: 3, lr: 1e-2, precision: fp32, evaluate_every: 15 steps, "
    "packing_lookahead: 0}",  # it would make 13 steps of the 15
    "checkpoint": "{every: 5 steps}",
    "export": "{gguf: [F16, Q8_0], positions: 4}",
}


@pytest.fixture(scope="module")
def made(tiny_base, tmp_path_factory):
    """A finished run of 15 steps, with checkpoints at 5, 10 and 15."""
    folder = tmp_path_factory.mktemp("verify")
    recipe = write_project(folder, tiny_base, **RECIPE)
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
    for name in (name for name in listed if (run.path / name).stat().st_size):  # a list of no rows has no bytes
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


def test_steps_are_trained_again_from_a_checkpoint_and_end_in_the_same_bits(made):
    found = resumed(made)
    assert found[PACKED].state == OK and found[RESUME].state == OK
    assert found[RESUME].says.startswith("steps 6 to 15, from step-000005: bit for bit the same, adapter ")


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_changed_together_with_its_digests_fails_the_resume_proof(run, name):
    first = checkpoint_folders(run.checkpoints)[0]
    change_tensors(first / name, 1e-6)
    forged(first)
    assert damaged_checkpoints(run)[first.name] == ""
    found = resumed(run)[RESUME]
    assert found.state == FAILED
    assert "from step-000005: adapter " in found.says and ", and the trainer had " in found.says


def test_a_state_changed_together_with_its_digests_fails_the_resume_proof(run):
    first = checkpoint_folders(run.checkpoints)[0]
    change_state(first, progress={"step": -(10**9)})
    found = lines(run)
    assert states(found) == {PACKED: SKIPPED, RESUME: FAILED} and list(found) == LINES
    said = "step-000005: state.json is not as training writes it: step is -1000000000"
    assert found[RESUME].says.startswith(said)


def test_numbers_of_metrics_that_are_not_those_of_the_training_fail_it(run):
    text = run.metrics.read_text().splitlines()
    last = json.loads(text[-2])
    assert last["step"] == 15 and "loss" in last
    run.metrics.write_text("\n".join([*text[:-2], json.dumps(last | {"loss": last["loss"] * 1.01}), text[-1]]) + "\n")
    found = resumed(run)[RESUME]
    assert found.state == FAILED and "the adapter is the same, and metrics.jsonl is not: loss of step 15" in found.says


@pytest.mark.parametrize(("by", "state"), [(1e-6, OK), (1e-1, FAILED)])
def test_where_the_bits_may_be_others_the_losses_decide_and_that_is_said(run, by, state):
    first = checkpoint_folders(run.checkpoints)[0]
    machine = json.loads((first / "state.json").read_text())["machine"]
    change_state(first, machine={"versions": machine["versions"] | {"torch": "1.0"}})
    change_tensors(first / "adapter.safetensors", by)
    forged(first)
    found = resumed(run)[RESUME]
    assert found.state == state and found.details[0].startswith("not the same bits: versions.torch: 1.0 -> ")
    assert state == FAILED or "state-exact, not bit-exact: loss within" in found.says


def test_the_threads_of_the_training_are_those_of_the_proof(run, monkeypatch):
    first, before = checkpoint_folders(run.checkpoints)[0], torch.get_num_threads()
    change_state(first, machine={"threads": before + 1})
    seen = []
    monkeypatch.setattr(rerun, "usable_cores", lambda: before + 1)
    monkeypatch.setattr(rerun, "prepare_job", lambda *a, **k: seen.append(torch.get_num_threads()) or prepare(*a, **k))
    prepare = training.prepare_job
    assert resumed(run)[RESUME].state == OK
    assert seen == [before + 1] and torch.get_num_threads() == before


def test_on_another_kind_of_device_there_is_no_proof(run, monkeypatch):
    for checkpoint in checkpoint_folders(run.checkpoints):
        change_state(checkpoint, machine={"device": "NVIDIA H100 80GB HBM3"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = resumed(run)
    assert {name: line.state for name, line in found.items()} == {PACKED: SKIPPED, RESUME: SKIPPED}
    assert "trained on NVIDIA H100 80GB HBM3, and here is no GPU" in found[RESUME].says


def test_fewer_steps_than_to_the_next_digest_and_no_digest_at_all(run):
    found = resumed(run, most=1)[RESUME]
    assert found.state == SKIPPED and "within 1 steps of a checkpoint; --steps 5 reaches one" in found.says
    assert "steps 6 to 10, from step-000005: bit for bit the same" in resumed(run, most=5)[RESUME].says
    text = run.metrics.read_text().replace(DIGEST, "older")
    run.metrics.write_text(text)
    found = resumed(run)
    assert found[RESUME].state == SKIPPED and "an older version trained it" in found[RESUME].says
    assert found[PACKED].state == OK  # and before the first step is where that is proved


def test_without_checkpoints_the_fresh_adapter_is_where_it_begins(run):
    shutil.rmtree(run.checkpoints)
    found = resumed(run)[RESUME]
    assert found.state == OK and "steps 1 to 10, from the fresh adapter: bit for bit the same" in found.says


def forge(run, folder):
    """Let the record of a stage, those of the stages after it, and the manifest say what its files are now."""
    said_as_written(folder)
    digest = output_digest(read_record(folder))
    for later in (folder for folder in run.stage_folders if folder != run.scores):
        record = json.loads((later / "record.json").read_text())
        if folder.name in record["inputs"]:
            record["inputs"][folder.name] = digest
            (later / "record.json").write_text(json.dumps(record))
    write_manifest(run)


@pytest.mark.parametrize(
    ("folder", "file", "red"),
    [
        ("model", "model.safetensors", MERGED),
        ("adapter", "adapter_model.safetensors", BEST),
        ("gguf", "small-F16.gguf", GGUF),
        ("gguf", "small-lora-F16.gguf", LORA),
    ],
)  # fmt: skip
def test_what_is_forged_down_to_the_manifest_is_found_by_what_is_measured(run, monkeypatch, folder, file, red):
    monkeypatch.setitem(verify.NEEDS, RESUME, ("nothing",))  # what it finds has tests of its own
    path = run.path / folder / file
    if path.suffix == ".safetensors":
        change_tensors(path, 0.01)
    else:
        for at in range(len(path.read_bytes()) // 4 * 3, len(path.read_bytes()), 50):
            change(path, at)
    forge(run, run.path / folder)
    found = lines(run)
    assert {found[name].state for name in (FILES, RECORDS, INPUTS)} == {OK}
    assert found[red].state == FAILED, found[red]


@pytest.mark.parametrize("fault", ["moved", "more", "row of none", "last"])
def test_a_mask_that_is_not_that_of_answers_is_red(run, fault):
    path, offsets = run.data / "supervised.npy", np.load(run.data / "offsets.npy")
    ends = np.load(run.data / "tokens.npy") == end_of_turn_id(load_tokenizer(run.model))
    mask, record = np.load(path), json.loads((run.data / "record.json").read_text())
    if fault == "moved":  # as many as before
        mask[np.flatnonzero(mask & ends)[0]] = False
        mask[0] = True
        said = "answers do not end with the end-of-turn token"
    elif fault == "more":
        mask[0], said = True, "the record counts"
    elif fault == "row of none":
        record["counts"]["supervised_tokens"] -= int(mask[: offsets[1]].sum())
        mask[: offsets[1]], said = False, "1 rows have no supervised token"
    else:  # the last token of a row, and the first of the next one, which together would be one stretch
        record["counts"]["supervised_tokens"] += 2 - int(mask[offsets[1] - 1])
        mask[offsets[1] - 1 : offsets[1] + 1], said = True, "2 of 31 answers do not end"
    np.save(path, mask)
    (run.data / "record.json").write_text(json.dumps(record))
    found = check_mask(read_written(run), LocatedBase("base", run.model, "", None, None))
    assert found.state == FAILED and said in found.says, found


def test_a_base_that_is_another_now_is_red_and_one_that_is_gone_is_not(run, tiny_base, tmp_path):
    copy = shutil.copytree(tiny_base, tmp_path / "base")
    run.recipe.write_text(run.recipe.read_text().replace(str(tiny_base), str(copy)))
    write_manifest(run)
    change(copy / "model.safetensors", -1)
    found = lines(run)
    assert found[BASE].state == FAILED and "is not what the run was made from" in found[BASE].says
    assert {found[name].state for name in (MASK, RESUME, MERGED, GGUF, LORA)} == {SKIPPED}
    shutil.rmtree(copy)
    found = lines(run)
    assert {name for name, state in states(found).items() if state == SKIPPED} == {BASE, *verify.OF_BASE}
    assert look(run.path).failed() == []


def test_what_memory_is_too_small_for_is_skipped_with_the_reason(run, monkeypatch):
    def short(*_):
        raise ResourceError("the model needs 9 GB of memory", fix="")

    for name in ("check_merged", "check_gguf", "check_lora"):
        monkeypatch.setattr(verify, name, short)
    monkeypatch.setitem(verify.NEEDS, RESUME, ("nothing",))
    found = lines(run)
    assert states(found) == dict.fromkeys((MERGED, GGUF, LORA), SKIPPED)
    assert found[MERGED].says == "the model needs 9 GB of memory"


def test_a_model_that_clean_deleted_is_skipped(run, monkeypatch):
    monkeypatch.setitem(verify.NEEDS, RESUME, ("nothing",))
    clean(run, model=True)
    found = lines(run)
    assert states(found) == dict.fromkeys((INPUTS, MERGED, GGUF), SKIPPED) and found[LORA].state == OK
    assert found[MERGED].says == "model/ is no longer there, and gguf/ was made from it"
    assert found[INPUTS].says == "gguf/ was made from a model/ that is no longer there"


def test_of_a_paused_run_what_is_not_there_is_not_yet_and_of_a_killed_one_metrics_have_grown(tiny_base, tmp_path):
    recipe = write_project(tmp_path, tiny_base)
    assert tunesmith.run(recipe, tmp_path / "run", changes=["train.stop_after=7 steps"]).paused
    run = Run(tmp_path / "run")
    found = lines(run)
    assert states(found) == dict.fromkeys((BEST, MERGED, GGUF, LORA), NOT_YET) | {INPUTS: NOT_YET}
    with run.metrics.open("a") as file:
        file.write('{"step": 8, "loss": 1.0}\n')  # as the next call does, which is killed
    assert lines(run)[FILES].details == (
        "metrics.jsonl has grown since manifest.json was written: its training was killed, and goes on",
    )
    change(run.metrics, 30)
    assert lines(run)[FILES].says == "metrics.jsonl has other bytes than were written"


def test_a_run_of_version_0_1_is_green_where_it_kept_enough(tmp_path):
    made = shutil.copytree(Path(__file__).parent / "data" / "version-0.1", tmp_path / "project")
    run = Run(made / "finished")
    run.recipe.write_text(run.recipe.read_text().replace("{FOLDER}", str(made)))
    listed = json.loads(run.manifest.read_text())["files"] | {"recipe.yaml": file_entry(run.recipe)}
    run.manifest.write_text(json.dumps({"files": listed}))
    found = lines(run)
    assert states(found) == {RESUME: SKIPPED, LORA: SKIPPED}
    assert "an older version trained it" in found[RESUME].says


def test_a_run_that_a_process_works_in_is_refused_and_its_lock_is_left(run):
    with run.lock.open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ResumeError, match=r"process 4711 works in .*run"):
            look(run.path)
    assert run.lock.read_text() == "4711"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    done = completed("verify", tmp_path)
    assert done.returncode == 5 and "is no run folder: it has no recipe.yaml" in done.stderr and not done.stdout
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "recipe.yaml").write_text("name: small\n")
    done = completed("verify", tmp_path / "recipe.yaml")
    assert done.returncode == 5 and "recipe.yaml is no run folder: it is a file" in done.stderr


def test_a_mirror_is_no_run_and_not_called_damaged(run):
    (run.path / "owner.json").write_text("{}")
    assert look(run.path).verdicts  # a run that has such a file is one all the same
    run.manifest.unlink()
    with pytest.raises(ResumeError, match="is a mirror, not a run") as refused:
        look(run.path)
    assert "the same recipe and checkpoint.mirror" in refused.value.fix
