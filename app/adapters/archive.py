"""The archive that is handed out: a tar.gz whose bytes depend on its contents alone."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class ArchiveDigest:
    """sha256 (hex) and size in bytes of an archive."""

    sha256: str
    bytes: int


class _Hashing:
    """A sink that counts and digests what goes through it."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._bytes += len(data)
        return self._sink.write(data)

    def flush(self) -> None:
        self._sink.flush()

    def digest(self) -> ArchiveDigest:
        return ArchiveDigest(self._hash.hexdigest(), self._bytes)


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_archive(files: Sequence[Path], sink: BinaryIO) -> ArchiveDigest:
    """Write files as a tar.gz: sorted by name, no times, owners or places, so that equal files give equal bytes."""
    hashing = _Hashing(sink)
    # Level 1: weights hardly compress, and a higher level costs minutes on large adapters.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=hashing, mtime=0, compresslevel=1) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in sorted(files, key=lambda path: path.name):
            entry = tarfile.TarInfo(file.name)
            entry.size, entry.mtime, entry.mode = file.stat().st_size, 0, 0o644
            with file.open("rb") as opened:
                archive.addfile(entry, opened)
    return hashing.digest()
