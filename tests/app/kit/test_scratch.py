"""Temporary folders of processes that were killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from app.kit.scratch import abandoned_folders, remove_abandoned, scratch_folder

WAIT = """
import time
from app.kit.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "adapter").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_folder_goes_with_its_block(tmp_path: Path) -> None:
    with scratch_folder() as folder:
        assert list(folder.iterdir()) == []
        (folder / "x").write_bytes(b"x")
        assert folder.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_found_and_those_of_live_ones_and_of_others_are_not(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip()).parent
    (tmp_path / "lethe-of-somebody-else").mkdir()
    with scratch_folder() as mine:
        assert abandoned_folders() == []
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert abandoned_folders() == [folder]
        assert remove_abandoned() == 1
        assert mine.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["lethe-of-somebody-else"]


def test_a_link_is_never_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / ".owner").touch()
    (tmp_path / "lethe-link").symlink_to(other)
    assert remove_abandoned() == 0
    assert (other / ".owner").exists()
