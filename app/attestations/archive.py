"""Reads the archive of a release as a stream, without unpacking it, and refuses whatever does not belong there.

`tarfile` forgives much: it stops at a broken header, skips the padding between files and does not look behind the
end. Here every byte of the tar stream is either one of the expected files or what tar needs around it.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from app.attestations.statement import ATTESTATION_FILE, SUBJECTS, WEIGHTS_FILE

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1024**2
_FILES = (*SUBJECTS, ATTESTATION_FILE)
# The size field of a plain header ends here; a larger file needs an extended one, which no release has.
_MOST_WEIGHTS = 8 * 1024**3 - 1
_MOST_OTHERS = 16 * 1024**2
# tar fills its last record up with zeros.
_MOST_TRAILING = 1024**2


class ArchiveError(Exception):
    """The archive is not that of a release; the text says why."""


@dataclass(frozen=True)
class Contents:
    """The sha256 (hex) of every attested file by name, and the attestation itself."""

    digests: dict[str, str]
    attestation: bytes


def read_contents(archive: BinaryIO) -> Contents:
    """Read a tar.gz that holds exactly the files of a release, each once, as plain files at its top.

    Args:
        archive: positioned at its start.

    Raises:
        ArchiveError: it is damaged, too large, or holds anything else or less.
    """
    digests: dict[str, str] = {}
    attestation = b""
    with _damage(), gzip.GzipFile(fileobj=archive, mode="rb") as stream:
        while (entry := _next_entry(stream)) is not None:
            if entry.name in digests:
                raise ArchiveError(f"the archive holds {entry.name} twice")
            digest = hashlib.sha256()
            for chunk in _content(stream, entry):
                digest.update(chunk)
                if entry.name == ATTESTATION_FILE:
                    attestation += chunk
            digests[entry.name] = digest.hexdigest()
        _require_end(stream)
    missing = [name for name in _FILES if name not in digests]
    if missing:
        raise ArchiveError(f"the archive lacks {' and '.join(missing)}")
    del digests[ATTESTATION_FILE]
    return Contents(digests, attestation)


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise ArchiveError("the archive is damaged or no .tar.gz file") from None


def _next_entry(stream: BinaryIO | gzip.GzipFile) -> tarfile.TarInfo | None:
    """The next header, checked; None at the end."""
    header = _exactly(stream, _BLOCK)
    if not any(header):
        return None
    try:
        entry = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        raise ArchiveError("the archive is damaged: a file's header is broken") from None
    if entry.type != tarfile.REGTYPE:
        raise ArchiveError(f"the archive holds {entry.name!r:.100}, which is not a plain file")
    if entry.name not in _FILES:
        raise ArchiveError(f"the archive holds {entry.name!r:.100}, which does not belong into it")
    if entry.size > (_MOST_WEIGHTS if entry.name == WEIGHTS_FILE else _MOST_OTHERS):
        raise ArchiveError(f"{entry.name} is too large")
    return entry


def _content(stream: BinaryIO | gzip.GzipFile, entry: tarfile.TarInfo) -> Iterator[bytes]:
    left = entry.size
    while left:
        chunk = _exactly(stream, min(left, _CHUNK))
        left -= len(chunk)
        yield chunk
    if any(_exactly(stream, -entry.size % _BLOCK)):
        raise ArchiveError(f"the archive hides bytes behind {entry.name}")


def _require_end(stream: BinaryIO | gzip.GzipFile) -> None:
    rest = stream.read(_MOST_TRAILING + 1)
    if len(rest) > _MOST_TRAILING or any(rest):
        raise ArchiveError("the archive hides bytes behind its end")


def _exactly(stream: BinaryIO | gzip.GzipFile, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data
