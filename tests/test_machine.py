"""What the machine has left: limits of containers count, in both forms that Linux states them."""

import pytest

from tunesmith import machine

GB = 10**9


def limited(folder, limit, used, cache, version):
    """A control group as Linux shows it."""
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    total = "total_" if version == 1 else ""  # of the group with those in it
    halves = f"{total}inactive_file {cache // 2}\n{total}active_file {cache // 2}\n"
    (folder / "memory.stat").write_text(f"anon 5\nactive_file {1 if version == 1 else cache // 2}\n{halves}slab 7\n")
    return folder, *names


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_counts_without_what_the_cache_gives_back(tmp_path, monkeypatch, version):
    (tmp_path / "inner").mkdir()
    groups = [limited(tmp_path / "inner", "max", 5, 0, version), limited(tmp_path, 4 * GB, 3 * GB, 2 * GB, version)]
    monkeypatch.setattr(machine, "_cgroup_files", lambda: groups)
    monkeypatch.setattr(machine, "_machine_free_bytes", lambda: 64 * GB)
    assert machine.free_memory_bytes() == 3 * GB  # 4 - (3 - 2)
    limited(tmp_path, 4 * GB, 6 * GB, 0, version)
    assert machine.free_memory_bytes() == 0
    limited(tmp_path, 1 << 62, 0, 0, version)
    assert machine.free_memory_bytes() == 64 * GB


def test_the_groups_of_this_process_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    for folder, _, _ in machine._cgroup_files():
        assert folder.is_relative_to(tmp_path)
    assert 0 < machine._machine_free_bytes() < 1 << 50


def test_peak_memory_is_in_bytes():
    before = machine.peak_memory_bytes()
    block = bytearray(300_000_000)
    block[::4096] = b"x" * len(block[::4096])  # every page is touched
    assert 20_000_000 < before <= machine.peak_memory_bytes() < 100 * GB
    assert machine.peak_memory_bytes() >= len(block)


def test_cores_are_those_that_this_process_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(machine, "_cgroup_files", lambda: [(tmp_path / "inner", "", ""), (tmp_path, "", "")])
    assert machine.usable_cores() == 8
    for share, cores in (("max 100000", 8), ("250000 100000", 3), ("20000 100000", 1), ("900000 100000", 8)):
        (tmp_path / "cpu.max").write_text(f"{share}\n")
        assert machine.usable_cores() == cores
