"""Checkpoints as bytes and as files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from worker.unlearning.checkpoint import MAGIC, Checkpoint, CheckpointError

SCALARS = {"step": 7, "stop_rule": {"history": [{"retain_ratio": 0.1 + 0.2}], "best": None}}


def made() -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "factors": torch.randn(50, generator=generator),
        "first_moment": torch.randn(50, generator=generator)[::2],  # not contiguous
        "random": generator.get_state(),
    }
    return Checkpoint("f" * 64, tensors, SCALARS)


DATA = made().to_bytes()


def assert_is_the_made_one(read: Checkpoint) -> None:
    expected = made()
    assert (read.fingerprint, read.scalars) == (expected.fingerprint, expected.scalars)
    assert read.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(read.tensors[name], tensor)
        assert read.tensors[name].dtype == tensor.dtype


def test_checkpoint_survives_as_bytes() -> None:
    assert_is_the_made_one(Checkpoint.from_bytes(DATA))


@settings(deadline=None, max_examples=200)
@given(length=st.integers(0, len(DATA) - 1))
def test_cut_checkpoint_is_refused(length: int) -> None:
    with pytest.raises(CheckpointError, match="torn"):
        Checkpoint.from_bytes(DATA[:length])


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7))
def test_flipped_bit_is_refused(position: int, bit: int) -> None:
    changed = bytearray(DATA)
    changed[position] ^= 1 << bit
    with pytest.raises(CheckpointError, match="torn"):
        Checkpoint.from_bytes(bytes(changed))


@pytest.mark.parametrize("data", [b"", b"no checkpoint", MAGIC, DATA + b"\0"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint.from_bytes(data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no safetensors",
        save({"factors": torch.ones(3)}),
        save({"factors": torch.ones(3)}, metadata={"fingerprint": "f"}),
        save({"factors": torch.ones(3)}, metadata={"fingerprint": "f", "scalars": "{"}),
        (2).to_bytes(8, "little") + b"[]",
    ],
)
def test_whole_file_of_another_version_is_refused(body: bytes) -> None:
    with pytest.raises(CheckpointError, match="another version"):
        Checkpoint.from_bytes(MAGIC + hashlib.sha256(body).digest() + body)


def test_checkpoint_survives_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(b"what was there before")
    made().write(path)
    assert_is_the_made_one(Checkpoint.read(path))
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o077 == 0, "it tells of the records: nobody else may read it"


@pytest.mark.parametrize("fails", ["fsync", "replace", "to_bytes"])
def test_failure_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "checkpoint"
    made().write(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr({"fsync": os, "replace": Path, "to_bytes": Checkpoint}[fails], fails, fail)
    with pytest.raises(OSError, match="No space"):
        made().write(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "nothing is left lying about"


def test_torn_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    made().write(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        Checkpoint.read(path)


def test_missing_file_is_no_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Checkpoint.read(tmp_path / "none")
