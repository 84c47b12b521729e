"""Run folders: complete or absent, skipped when unchanged, and a full disk or a damaged record loses nothing."""

import errno
import json
import os
import subprocess
import sys
import textwrap

import pytest
from small_project import write_project

from tunesmith import __version__, cli
from tunesmith.errors import ResourceError, ResumeError
from tunesmith.files import RECORD, commit_folder, digest_folder, fingerprint, full_disk_named, sweep, write_file
from tunesmith.lock import locked
from tunesmith.machine import need_disk
from tunesmith.pipeline import run_stages
from tunesmith.recipe_file import read_recipe
from tunesmith.record import output_digest, read_record
from tunesmith.runs import Run, commit_stage, write_manifest
from tunesmith.stages import STAGES, stage_of


def writes(text):
    def work(draft):
        (draft / "sub").mkdir()
        (draft / "sub" / "a.txt").write_text(text)
        return {"letters": len(text)}

    return work


def test_a_stage_is_done_once_and_again_when_settings_or_inputs_change(tmp_path):
    folder = tmp_path / "data"
    first, done = commit_stage(folder, {"a": 1}, {"base": "x"}, writes("hello"))
    assert done and first.counts == {"letters": 5} and first.stage == "data" and first.seconds >= 0
    assert list(first.outputs) == ["sub/a.txt"] and first.outputs["sub/a.txt"]["bytes"] == 5
    again, done = commit_stage(folder, {"a": 1}, {"base": "x"}, writes("never written"))
    assert not done and again == first
    _, done = commit_stage(folder, {"a": 2}, {"base": "x"}, writes("hello"))
    assert done
    changed, done = commit_stage(folder, {"a": 2}, {"base": "y"}, writes("hullo"))
    assert done and output_digest(changed) != output_digest(first)
    assert [p.name for p in tmp_path.iterdir()] == ["data"], "a draft was left"


def test_a_stage_with_a_missing_or_cut_file_does_not_stand(tmp_path):
    folder = tmp_path / "data"
    commit_stage(folder, {}, {}, writes("hello"))
    (folder / "sub" / "a.txt").write_text("hell")
    assert read_record(folder) is None
    _, done = commit_stage(folder, {}, {}, writes("hello"))
    assert done and read_record(folder) is not None
    (folder / "sub" / "a.txt").unlink()
    assert read_record(folder) is None


def test_a_damaged_record_is_said(tmp_path):
    commit_stage(tmp_path / "data", {}, {}, writes("hello"))
    (tmp_path / "data" / RECORD).write_text('{"stage": "da')
    with pytest.raises(ResumeError, match="is damaged") as caught:
        read_record(tmp_path / "data")
    assert "delete" in caught.value.fix and caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("counts", [], "counts"),
        ("outputs", {"a": {"bytes": 1}}, "outputs"),
        ("inputs", {"base": 1}, "inputs.base"),
        ("proofs", [{"name": "equal", "value": "text", "limit": 1, "positions": 2}], "proofs.0.value"),
        ("proofs", [{"value": 0}], "proofs.0.name"),
        ("stage", None, "stage"),
    ],
)
def test_a_record_with_other_values_is_damaged(tmp_path, field, value, said):
    commit_stage(tmp_path / "data", {}, {}, writes("hello"))
    record = tmp_path / "data" / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {field: value}))
    with pytest.raises(ResumeError, match=f"record.json is damaged: {said}"):
        read_record(tmp_path / "data")


@pytest.mark.parametrize("text", [b"[]", b"\xff", b"[" * 9000, b"1" * 5000, b""])
def test_nor_is_any_other_text_a_record(tmp_path, text):
    commit_stage(tmp_path / "data", {}, {}, writes("hello"))
    (tmp_path / "data" / RECORD).write_bytes(text)
    with pytest.raises(ResumeError, match="is damaged"):
        read_record(tmp_path / "data")


def test_a_folder_in_the_place_of_a_record_is_said(tmp_path):
    (tmp_path / "data" / RECORD).mkdir(parents=True)
    with pytest.raises(ResumeError, match="is damaged"):
        read_record(tmp_path / "data")


@pytest.mark.parametrize("name", [".lock", "recipe.yaml", "metrics.jsonl", "loss.png", "report.html", "manifest.json"])
def test_a_folder_where_a_file_belongs_is_refused_before_the_work(tmp_path, name):
    run = Run(tmp_path / "run")
    (run.path / name).mkdir(parents=True)
    with pytest.raises(ResumeError, match=f"{name} is not a file"), locked(run):
        pass
    (run.path / name).rmdir()
    run.checkpoints.write_text("the user's own")
    with pytest.raises(ResumeError, match="checkpoints is not a folder"), locked(run):
        pass


def replaces(target):
    """What stands may be replaced."""


def test_work_that_fails_leaves_what_stood(tmp_path):
    commit_folder(tmp_path / "data", writes("old"))

    def fails(draft):
        (draft / "half").write_text("new")
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        commit_folder(tmp_path / "data", fails, replaces)
    assert (tmp_path / "data" / "sub" / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


KILLED = """
    import os, pathlib, signal, sys, time
    from tunesmith.runs import commit_stage

    os.fsync = lambda descriptor: None  # a kill, unlike a power cut, loses nothing that was written; it takes long

    def work(draft):
        for index in range(10):
            (draft / f"{index}.bin").write_bytes(bytes(4096))
        return {}

    for number, delay_ms in enumerate(map(float, sys.argv[2:])):
        target = pathlib.Path(sys.argv[1]) / str(number) / "data"
        commit_stage(target, {"turn": 0}, {}, work)
        reader, writer = os.pipe()
        child = os.fork()  # importing once, not once for each kill
        turn = 0
        while not child:  # replaces the folder again and again until it is killed
            turn += 1
            commit_stage(target, {"turn": turn}, {}, work)
            os.write(writer, b".")
        os.read(reader, 1)
        time.sleep(delay_ms / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader), os.close(writer)
"""


def test_a_file_too_large_for_its_place_and_a_place_that_is_read_only(tmp_path, monkeypatch, capsys):
    too_large = pytest.raises(ResourceError, match=r"no file may be so large there .*: a\.gguf could not")
    with too_large, full_disk_named(tmp_path / "a.gguf"):
        raise OSError(errno.EFBIG, "File too large", "a.gguf")

    def read_only():
        raise OSError(errno.EROFS, "Read-only file system", "/input/run/.lock")

    monkeypatch.setattr(cli, "app", read_only)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 7 and "error: /input/run/.lock may not be written" in said and "--run-dir" in said


@pytest.mark.parametrize(("name", "stage"), [
    ("tokens.npy", "train"), ("adapter_model.safetensors", "merge"), ("adapter_config.json", "merge"),
    ("tokenizer.json", "export"), ("config.json", "export"),
])  # fmt: skip
def test_nothing_is_made_from_a_file_that_is_not_as_it_was_written(tmp_path, tiny_base, name, stage):
    recipe, run = read_recipe(write_project(tmp_path, tiny_base)), Run(tmp_path / "run")
    before = [earlier for earlier in STAGES[: STAGES.index(stage_of(stage))] if earlier.is_wanted(recipe)]
    run_stages(recipe, run, before)
    path = run.path / before[-1].folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(ResumeError, match=rf"{name} is not as it was written") as caught:
        run_stages(recipe, run, [stage_of(stage)])
    command = f"type `tunesmith {before[-1].verb} {run.path}`"
    if path.parent == run.data:  # other rows would end the training that has begun with these
        assert f"from a copy; or move {run.data} elsewhere and {command}" in caught.value.fix
        assert f"with tunesmith {__version__}" in caught.value.fix
    else:
        assert f"delete {path.parent}, {command}" in caught.value.fix
    assert not (run.path / stage_of(stage).folder).exists()
    path.write_bytes(whole)
    assert run_stages(recipe, run, [stage_of(stage)]).done


def test_killed_at_any_moment_the_folder_is_whole_old_or_new(tmp_path):
    delays_ms = [n * n / 10 for n in range(24)]  # 0 to 53: some rounds of it, most often in the first one
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), *map(str, delays_ms)]
    subprocess.run(command, check=True)
    places = [tmp_path / str(number) for number in range(len(delays_ms))]
    left = [sorted(path.name for path in place.iterdir()) for place in places]
    assert sum(names != ["data"] for names in left) >= 5, left  # some were killed in the middle of their work
    for place in places:
        sweep([place / "data"])
        assert [path.name for path in place.iterdir()] == ["data"]
        record = read_record(place / "data")
        assert record is not None and len(record.outputs) == 10
        assert record.outputs == digest_folder(place / "data")
        _, done = commit_stage(place / "data", {"turn": -1}, {}, writes("after"))
        assert done and [p.name for p in (place / "data").iterdir() if p.name != RECORD] == ["sub"]


def test_a_full_disk_is_named_and_what_stood_is_whole(tmp_path):
    """/dev/full gives the kernel's own "no space left" without a file system to fill."""
    commit_folder(tmp_path / "data", writes("old"))

    def fills(draft):
        (draft / "half").write_bytes(bytes(100))
        with open("/dev/full", "wb") as file:
            file.write(bytes(1 << 20))

    with pytest.raises(ResourceError, match="the disk is full") as caught:
        commit_folder(tmp_path / "data", fills, replaces)
    assert "--run-dir" in caught.value.fix and caught.value.exit_code == 7
    assert (tmp_path / "data" / "sub" / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


FULL = """
    import pathlib, sys
    from tunesmith.errors import ResourceError
    from tunesmith.files import commit_folder, write_file

    place, big = pathlib.Path(sys.argv[1]), bytes(3 << 20)
    for write in (
        lambda: commit_folder(place / "data", lambda draft: (draft / "a.bin").write_bytes(big), lambda _: None),
        lambda: write_file(place / "data" / "a.bin", big),
    ):
        try:
            write()
        except ResourceError as error:
            print(error.what)
"""


def test_a_file_system_of_two_megabytes_fills_and_what_stood_is_whole(tmp_path):
    mount = f"mount -t tmpfs -o size=2m tmpfs {tmp_path}"
    rest = f"mkdir {tmp_path}/data && echo old > {tmp_path}/data/a.bin && {sys.executable} -c '{textwrap.dedent(FULL)}'"
    shown = f"cat {tmp_path}/data/a.bin"
    # in a mount namespace of its own, which ends with the process and needs no root
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", f"{mount} && {rest} {tmp_path} && {shown}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "not permitted" in done.stderr or "denied" in done.stderr:
        pytest.skip("mounting is not allowed here; the test above has the same error from /dev/full")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the disk is full") == 2 and done.stdout.endswith("old\n")


def test_too_little_disk_is_said_before_the_work(tmp_path):
    need_disk(tmp_path / "not" / "yet", 1000, "merging")
    with pytest.raises(ResourceError, match=r"merging needs 1000000000\.0 GB"):
        need_disk(tmp_path, 10**18, "merging")


def test_a_file_is_replaced_whole(tmp_path):
    write_file(tmp_path / "a" / "recipe.yaml", "one")
    write_file(tmp_path / "a" / "recipe.yaml", b"two")
    assert [p.read_text() for p in (tmp_path / "a").iterdir()] == ["two"]


def test_the_manifest_has_every_file(tmp_path):
    run = Run(tmp_path)
    commit_stage(run.data, {}, {}, writes("hello"))
    commit_stage(run.gguf, {}, {}, writes("world"))
    write_file(run.recipe, "name: a\n")
    run.metrics.write_text("{}\n")
    write_manifest(run)
    files = json.loads(run.manifest.read_text())["files"]
    assert set(files) == {
        "data/record.json", "data/sub/a.txt", "gguf/record.json", "gguf/sub/a.txt", "metrics.jsonl", "recipe.yaml",
    }  # fmt: skip
    assert all(os.stat(tmp_path / name).st_size == entry["bytes"] for name, entry in files.items())


def test_fingerprints_depend_on_content_not_on_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
