"""Temporary folders that tell whether their owner still lives.

A process that is killed leaves its folder behind. Each holds a lock that the kernel gives back with the process, so
that whoever can take it may remove the folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW, _PREFIX, _LOCK = ".lethe-new-", "lethe-", ".owner"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is removed with the block."""
    # Under its name only once it is locked: nobody may take it for abandoned before.
    new = Path(tempfile.mkdtemp(prefix=_NEW))
    with (new / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = new.rename(new.with_name(new.name.replace(_NEW, _PREFIX, 1)))
        content = folder / "content"  # beside the lock, which is nothing that anybody packs
        content.mkdir()
        try:
            yield content
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def abandoned_folders() -> list[Path]:
    """Folders of this user on this machine whose owner is gone, sorted."""
    found = Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}")
    return sorted(path.parent for path in found if _is_ours(path.parent) and _is_free(path))


def remove(folder: Path) -> None:
    """Remove a folder that was abandoned."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> int:
    """Remove all of them. Answers how many there were."""
    folders = abandoned_folders()
    for folder in folders:
        remove(folder)
    return len(folders)


def _is_ours(folder: Path) -> bool:
    return not folder.is_symlink() and folder.stat().st_uid == os.geteuid()


def _is_free(path: Path) -> bool:
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is held, or was removed just now
        return False
    return True
