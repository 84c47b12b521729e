"""export: what is finished outlives a Ctrl-C and a kill; gguf/ appears whole or not at all; a proof is done later."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
from forked import forked
from small_project import write_project

from tunesmith import machine
from tunesmith.errors import ProofError, ResumeError
from tunesmith.files import FINISHED, digest_folder
from tunesmith.gguf.read import convert
from tunesmith.inventory import standing_of
from tunesmith.pipeline import run_stages
from tunesmith.proof.adapter_gguf import CHOICE, KL
from tunesmith.recipe import Source
from tunesmith.recipe_file import read_recipe
from tunesmith.record import lost_measures, read_record, refuse_lost_measures
from tunesmith.release import export as module
from tunesmith.release.export import export
from tunesmith.release.sources import trained_on
from tunesmith.runs import Run
from tunesmith.server.facts import model_facts
from tunesmith.stages import STAGES, stage_of
from tunesmith.weights.locate import locate_base

COMPARED = {"against_model", "model_held_out", "greedy"}
"""What proof.json says of F16 where there was memory for the model."""


def stop_at(number, at):
    """In the process that exports: say what is worked on, and send it a signal at a file, or in the proof."""
    write, prove = module.write_gguf, module.prove_gguf

    def stop():
        if number:
            os.kill(os.getpid(), number)
            time.sleep(60)

    def write_or_stop(folder, out, kind, about, weights):
        print(kind, flush=True)
        if kind == at:
            out.write_bytes(b"GGUF, half of it")
            stop()
        return write(folder, out, kind, about, weights)

    def prove_or_stop(*given):
        print("proof", flush=True)
        if at == "proof":
            stop()
        return prove(*given)

    module.write_gguf, module.prove_gguf = write_or_stop, prove_or_stop


@pytest.fixture(scope="module")
def merged(tiny_base, tmp_path_factory):
    """A recipe, and the folder of its run up to the merged model."""
    folder = tmp_path_factory.mktemp("merged")
    path = write_project(folder, tiny_base, export="{gguf: [F16, Q8_0, Q4_K_M], positions: 4}")
    assert run_stages(read_recipe(path), Run(folder / "run"), STAGES[:4]).done
    return path, folder / "run"


@pytest.fixture
def run(merged, tmp_path):
    return Run(shutil.copytree(merged[1], tmp_path / "run"))


def exported(recipe, run, number=0, at="", *changes):
    """Type `tunesmith export` and get signal `number` at a file, or in the proof: (exit code, what was worked on)."""
    arguments, output = ("export", recipe, "--run-dir", run.path, *changes), run.path.parent / "output"
    with forked(output, *arguments, before=stop_at, given=(int(number), at)) as done:
        code = done.wait()
    assert "Traceback" not in done.stderr, done.stderr
    return code, done.stdout.split(), done.stderr


def test_a_stopped_export_goes_on_with_the_first_missing_file(merged, run):
    recipe, draft = merged[0], run.path / ".gguf.draft"
    code, worked, said = exported(recipe, run, signal.SIGINT, "Q8_0")
    assert (code, worked) == (130, ["F16", "Q8_0"]) and not run.gguf.exists()
    assert "the same command goes on" in said
    note = json.loads((draft / FINISHED).read_text())["files"]
    assert list(note) == ["small-F16.gguf"] and note["small-F16.gguf"]["digest"]["bytes"] > 100_000
    f16 = (draft / "small-F16.gguf").stat()

    code, worked, said = exported(recipe, run, signal.SIGKILL, "proof")
    assert (code, worked) == (-9, ["Q8_0", "Q4_K_M", "proof"]) and not run.gguf.exists()
    assert "small-F16.gguf was finished before" in said
    code, worked, _ = exported(recipe, run)
    assert (code, worked) == (0, ["proof"]) and not draft.exists()
    after = (run.gguf / "small-F16.gguf").stat()
    assert (after.st_ino, after.st_mtime_ns) == (f16.st_ino, f16.st_mtime_ns)  # the very file
    record = read_record(run.gguf)
    assert record.outputs == digest_folder(run.gguf) and not record.unproved
    made = ["Modelfile", "small-F16.gguf", "small-Q4_K_M.gguf", "small-Q8_0.gguf", "small-lora-F16.gguf"]
    assert sorted(record.outputs) == made and {p.name for p in record.proofs} >= {KL, CHOICE}
    assert sorted(path.name for path in run.gguf.iterdir()) == [*sorted([*record.outputs, "proof.json", "record.json"])]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)])
def test_an_export_that_is_told_to_stop_ends_as_with_ctrl_c(merged, run, number, code):
    ended, worked, said = exported(merged[0], run, number, "Q8_0")
    assert (ended, worked) == (code, ["F16", "Q8_0"]) and not run.gguf.exists()
    assert said.endswith("interrupted; the same command goes on from what is committed\n")
    note = json.loads((run.path / ".gguf.draft" / FINISHED).read_text())["files"]
    assert list(note) == ["small-F16.gguf"] and not (run.path / ".gguf.draft" / "small-Q8_0.gguf").exists()


def test_importance_is_gathered_once_and_changes_what_takes_it(merged, run):
    base = locate_base(read_recipe(merged[0]).base, convert)
    digests, tokens = {}, {}
    for wish in ("off", "auto"):
        recipe = read_recipe(merged[0], ["export.gguf=[F16, Q8_0, Q4_K_M, Q4_0]", f"export.importance={wish}"])
        record, _ = export(recipe, run, base)
        digests[wish] = {name: output["sha256"] for name, output in record.outputs.items()}
        tokens[wish] = {kind: facts.get("importance_tokens", 0) for kind, facts in record.counts["files"].items()}
    assert set(tokens["off"].values()) == {0} and tokens["auto"]["Q4_0"] == tokens["auto"]["Q4_K_M"] > 300
    assert tokens["auto"]["F16"] == tokens["auto"]["Q8_0"] == 0
    other = {name for name in digests["off"] if digests["off"][name] != digests["auto"][name]}
    assert other == {"small-Q4_K_M.gguf", "small-Q4_0.gguf"}


def test_a_draft_of_other_settings_and_one_that_is_of_no_use_are_cleared(merged, run):
    recipe, draft = merged[0], run.path / ".gguf.draft"
    exported(recipe, run, signal.SIGKILL, "Q8_0")
    code, worked, _ = exported(recipe, run, 0, "", "--set", "chat.temperature=0.1")
    assert (code, worked) == (0, ["F16", "Q8_0", "Q4_K_M", "proof"]) and not draft.exists()
    exported(recipe, run, signal.SIGKILL, "Q8_0", "--set", "chat.temperature=0.2")
    assert (draft / "small-F16.gguf").exists()
    code, worked, said = exported(recipe, run, 0, "", "--set", "chat.temperature=0.1")  # what stands is what is wanted
    assert (code, worked) == (0, []) and "export    already done" in said and not draft.exists()


def test_files_that_fail_their_proof_are_not_used_again(merged, run, monkeypatch):
    recipe = read_recipe(merged[0])
    base = locate_base(recipe.base, convert)

    def fails(*_):
        raise ProofError("F16 is not the merged model", fix="report it")

    with monkeypatch.context() as patch:
        patch.setattr(module, "prove_gguf", fails)
        with pytest.raises(ProofError):
            export(recipe, run, base)
    assert not run.gguf.exists() and not (run.path / ".gguf.draft").exists()
    assert export(recipe, run, base)[1]


@pytest.mark.parametrize("kept", [True, False], ids=["F16 kept", "F16 not kept"])
def test_a_proof_that_was_skipped_is_done_alone_where_there_is_memory(merged, run, monkeypatch, capsys, kept):
    changes = [] if kept else ["export.gguf=[Q8_0, Q4_K_M]"]
    recipe = read_recipe(merged[0], changes)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "free_memory_bytes", lambda: 1_000_000)
        run_stages(recipe, run, [stage_of("export")])
    first = read_record(run.gguf)
    said = capsys.readouterr().err
    assert len(first.unproved) == 7 and "NOT proved" in said and "files are quantised without" in said
    assert "importance_tokens" not in first.counts["files"]["Q4_K_M"]
    before = json.loads((run.gguf / "proof.json").read_text())
    assert "against_model" not in before["F16"] and before["Q8_0"]["against_F16"]
    files = {path: path.stat() for path in run.gguf.glob("*.gguf")}
    assert len(files) == 4 - (not kept)

    written = []
    real = module.write_gguf
    monkeypatch.setattr(module, "write_gguf", lambda *given: [written.append(given[1]), real(*given)][1])
    run_stages(recipe, run, [stage_of("export")])
    assert [path.parent.name for path in written] == [] if kept else [".proof.draft"]
    record = read_record(run.gguf)
    assert not record.unproved and record.outputs == first.outputs and len(record.proofs) == len(first.proofs)
    proof = json.loads((run.gguf / "proof.json").read_text())
    assert list(proof) == ["F16", "Q8_0", "Q4_K_M"]
    for kind, facts in before.items():  # whole: what was known is there still, what was measured is new
        assert proof[kind].keys() == facts.keys() | (COMPARED if kind == "F16" else set())
        assert all(proof[kind][name] == facts[name] for name in ("bytes", "write_s", "tensor_types", "fallbacks"))
    assert proof["F16"]["against_model"]["mean_kl"] <= recipe.export.limits.kl
    for path, was in files.items():  # the files are the same; nothing after them is stale
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
    assert set(run.gguf.glob("*.gguf")) == set(files) and not list(run.path.glob(".proof*"))
    run_stages(recipe, run, [stage_of("export")])
    assert "export    already done\n" in capsys.readouterr().err


def test_measures_that_are_lost_are_noticed_and_made_again_beside_the_files(merged, run, capsys):
    recipe = read_recipe(merged[0], ["export.gguf=[Q8_0]"])
    run_stages(recipe, run, [stage_of("export")])
    path, file = run.gguf / "proof.json", run.gguf_file("small", "Q8_0")
    whole, was = json.loads(path.read_text()), file.stat()
    for lose, said in ((path.unlink, "is missing"), (lambda: path.write_text("{}"), "is not as it was written")):
        lose()
        assert standing_of(run).says == "damaged: gguf/proof.json is missing or not as it was written"
        with pytest.raises(ResumeError, match=said) as caught:
            refuse_lost_measures(run.gguf)
        assert caught.value.fix == f"type `tunesmith export {run.path}`, which measures it anew"
        capsys.readouterr()
        run_stages(recipe, run, [stage_of("export")])
        assert "already done, its proof was tried again" in capsys.readouterr().err
        assert json.loads(path.read_text()).keys() == whole.keys() and not lost_measures(run.gguf)
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
    path.unlink()
    path.mkdir()  # somebody's
    with pytest.raises(ResumeError, match=r"gguf/proof\.json is a folder") as caught:
        run_stages(recipe, run, [stage_of("export")])
    assert caught.value.fix == "move it elsewhere" and path.is_dir()


def test_a_later_proof_that_fails_leaves_what_stands_as_it_is(merged, run, monkeypatch):
    recipe = read_recipe(merged[0], ["export.gguf=[Q8_0]"])
    with monkeypatch.context() as patch:
        patch.setattr(machine, "free_memory_bytes", lambda: 1_000_000)
        run_stages(recipe, run, [stage_of("export")])
    before = {path: path.read_bytes() for path in run.gguf.iterdir()}
    real = module.write_gguf

    def damaged(folder, out, kind, about, *weights):
        facts = real(folder, out, kind, about, *weights)
        data = bytearray(out.read_bytes())
        data[-40_000:] = bytes(40_000)
        out.write_bytes(data)
        return facts

    monkeypatch.setattr(module, "write_gguf", damaged)
    with pytest.raises(ProofError, match="is not the merged model"):
        run_stages(recipe, run, [stage_of("export")])
    assert {path: path.read_bytes() for path in run.gguf.iterdir()} == before and not list(run.path.glob(".proof*"))
    assert len(read_record(run.gguf).unproved) == 7


def test_a_file_names_what_it_was_trained_on(merged, run):
    """Files by their names alone, what came from the Hub by its id; what was held out taught nothing."""
    recipe = read_recipe(merged[0], ["export.gguf=[Q8_0]", "export.adapter=false"])
    export(recipe, run, locate_base(recipe.base, convert))
    assert ("Data", "rows.jsonl") in model_facts(run.gguf / "small-Q8_0.gguf")
    sources = (Source(path="/home/anna/own.jsonl"), Source(path="org/rows"), Source(path="org/rows"))
    data = recipe.data.model_copy(update={"sources": sources, "held_out": Source(path="org/unseen")})
    record = replace(read_record(run.data), counts={"revisions": {"org/rows": "d" * 40, "org/unseen": "e" * 40}})
    assert trained_on(recipe.model_copy(update={"data": data}), record) == ("own.jsonl", "org/rows")
