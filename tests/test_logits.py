"""Logits of whole sequences by llama.cpp's C functions: equal to transformers and the server, or refused."""

import ctypes
import resource
import signal

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.errors import ResourceError
from tunesmith.gguf.write import About, write_gguf
from tunesmith.inference import logits as module
from tunesmith.inference.child import Child
from tunesmith.inference.engine import Engine
from tunesmith.inference.logits import B11549, LAYOUTS, Layout, Library, Unavailable, sequence_logits
from tunesmith.recipe import ChatConfig

SEQUENCES = [([5, 6, 7, 8, 9, 300, 301], [1, 2, 6]), ([9, 8, 7], [0, 1, 2]), (list(range(3, 303)), [0, 150, 299])]


@pytest.fixture(scope="module")
def tiny_gguf(tiny_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_base, path, "F16", About("tiny", "tiny", None, ChatConfig()))
    return path


def test_whole_sequences_are_as_transformers_and_the_server_have_them(tiny_gguf, tiny_base, tmp_path):
    pieces = list(sequence_logits(tiny_gguf, SEQUENCES, threads=1, window=tmp_path / "window"))
    assert [len(piece) for piece in pieces] == [3, 3, 3] and all(piece.dtype == np.float32 for piece in pieces)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    for (ids, places), piece in zip(SEQUENCES, pieces, strict=True):
        with torch.no_grad():
            wanted = model(torch.tensor([ids])).logits[0, places]
        np.testing.assert_allclose(piece, wanted.numpy(), atol=0.01)
    with Engine(tiny_gguf, threads=1, context=512) as engine:
        theirs = engine.next_token_logprobs(SEQUENCES[0][0][:3])
    np.testing.assert_allclose(torch.from_numpy(pieces[0][1]).log_softmax(0).numpy(), theirs, atol=1e-3)


def test_a_window_that_finds_no_room_is_a_full_disk(tiny_gguf, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # 3 places of 512 words take 6,144 bytes
    try:
        with pytest.raises(ResourceError, match="window could not be written") as caught:
            list(sequence_logits(tiny_gguf, SEQUENCES, threads=1, window=tmp_path / "window"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "no file may be so large" in caught.value.what and caught.value.where == str(tmp_path)


def test_a_sequence_in_pieces_is_the_sequence(tiny_gguf, monkeypatch):
    whole, parts = Library().load(str(tiny_gguf), 300, 1), []
    monkeypatch.setattr(module, "PIECE_BYTES", 4 * 512 * 64)  # 64 of 300 tokens
    pieces = Library().load(str(tiny_gguf), 300, 1)
    for ids, places in SEQUENCES[::-1]:  # and nothing of the one before is left
        (wanted,) = [logits.copy() for logits in whole.logits(ids, places)]
        parts = [logits.copy() for logits in pieces.logits(ids, places)]
        assert all(len(part) < 4 for part in parts)
        np.testing.assert_allclose(np.concatenate(parts), wanted, atol=2e-3)
    assert len([*pieces.logits(*SEQUENCES[2])]) == 3  # 0, 150 and 299 lie in three pieces


def moved(struct, name, **change):
    """A struct's declaration with another default for a field, or one field more before it."""
    fields = []
    for called, kind, default in struct:
        here = change if called == name else {}
        fields += [here["before"]] if "before" in here else []
        fields.append((called, kind, here.get("default", default)))
    return tuple(fields)


WRONG = {
    "a default is another": (Layout(B11549.model, moved(B11549.context, "n_batch", default=512)), "n_batch 2048 where"),
    "a field is missing": (Layout(tuple(f for f in B11549.model if f[0] != "lazy_mode"), B11549.context), "where"),
    "a field more": (
        Layout(B11549.model, moved(B11549.context, "samplers", before=("new", ctypes.c_void_p, None))),
        "writes other bytes|ctx_other",  # what lies behind the struct
    ),
    "the last field is gone": (Layout(B11549.model, B11549.context[:-1]), "writes other bytes"),
    "all flags are gone": (Layout(B11549.model[:-6], B11549.context), "writes other bytes"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_layout_that_is_not_the_librarys_is_refused(monkeypatch, fault):
    layout, reason = WRONG[fault]
    monkeypatch.setitem(LAYOUTS, "2026.10.11549", layout)
    with pytest.raises(Unavailable, match=reason):
        Library()


def test_a_version_that_is_not_known_is_refused_by_name():
    with pytest.raises(Unavailable, match=r"structs of xllamacpp 2031\.1 lie in memory is not known \(known: 2026"):
        Library(version="2031.1")


def test_a_file_that_cannot_be_loaded_is_a_reason_and_no_crash(tmp_path):
    (tmp_path / "none.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(Unavailable, match=r"llama\.cpp cannot load none\.gguf"):
        list(sequence_logits(tmp_path / "none.gguf", SEQUENCES, threads=1, window=tmp_path / "window"))


@pytest.fixture
def crashes(monkeypatch):
    """From then on what reads from the child finds that it has crashed."""
    read = Child.read

    def crash(child):
        child._process.send_signal(signal.SIGSEGV)
        child._process.wait()
        return read(child)

    return lambda: monkeypatch.setattr(Child, "read", crash)


def test_a_crash_at_the_start_is_a_reason_for_another_way(tiny_gguf, tmp_path, crashes):
    crashes()
    with pytest.raises(Unavailable, match=r"code -11: llama\.cpp crashed"):
        next(sequence_logits(tiny_gguf, SEQUENCES, threads=1, window=tmp_path / "window"))


def test_a_later_crash_is_an_error_with_its_cause(tiny_gguf, tmp_path, crashes):
    pieces = sequence_logits(tiny_gguf, SEQUENCES, threads=1, window=tmp_path / "window")
    next(pieces)
    crashes()
    with pytest.raises(ResourceError, match=r"answers with tiny\.gguf ended with code -11: llama\.cpp crashed"):
        list(pieces)
