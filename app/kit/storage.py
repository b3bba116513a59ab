"""Where blobs lie. Keys are made by the service from ids, never by a client."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

_WRITING = ".writing-"
_KEY = re.compile(r"[a-z0-9_-]+(/[A-Za-z0-9_.-]+)*")


# No space, a quota, a limit on files; a disk or a mount that is gone, or may only be read.
_AWAY = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENOTCONN,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT,
}  # fmt: skip
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def is_storage_away(error: BaseException) -> bool:
    """Whether an error says that the disk is full or gone, which time or a person may change; causes count, too."""
    cause = error.__cause__ or error.__context__
    if isinstance(error, OSError):
        number = error.errno
    else:  # libraries in Rust tell it in words alone
        told = _OS_ERROR.search(str(error))
        number = int(told[1]) if told else None
    if number in _AWAY:
        return True
    return cause is not None and is_storage_away(cause)


class Reader(Protocol):
    """Bytes that come one piece after the other."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        ...

    def close(self) -> None:
        """Give back what reading holds open."""
        ...


class Storage(Protocol):
    """A flat store of blobs.

    Nothing here asks for a file of this machine, and an S3-compatible store has an answer to each call: a multipart
    upload that is completed or aborted, GetObject with and without a range, HeadObject, DeleteObject, ListObjectsV2.
    """

    def create(self, key: str) -> AbstractContextManager[BinaryIO]:
        """A writer whose bytes appear under `key` when the block ends, and not at all when it raises.

        A blob that is there already is replaced at that moment.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """The blob for reading. Raises FileNotFoundError."""
        ...

    def fetch(self, key: str, target: Path) -> None:
        """Copy a blob into a local file. Raises FileNotFoundError."""
        ...

    def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is no error."""
        ...

    def keys(self, prefix: str) -> list[str]:
        """Every key that begins with ``prefix/``, sorted."""
        ...

    def delete_all(self, prefix: str) -> None:
        """Remove every blob whose key begins with ``prefix/``."""
        ...

    def size(self, key: str) -> int:
        """Length of a blob in bytes. Raises FileNotFoundError."""
        ...

    def age(self, key: str) -> float:
        """Seconds since a blob was written. Raises FileNotFoundError."""
        ...

    def unfinished(self, age: float) -> list[str]:
        """Names of what writers began at least so many seconds ago and neither ended nor took back, sorted."""
        ...

    def discard(self, name: str) -> None:
        """Remove what a writer began, by its name among the unfinished."""
        ...

    def open_range(self, key: str, start: int, length: int) -> Reader:
        """`length` bytes of a blob from byte `start` on, for reading. Raises FileNotFoundError.

        What it answers can be read to its end whatever happens to the key meanwhile.
        """
        ...

    def scratch(self) -> BinaryIO:
        """A nameless local file for what does not fit into memory; it is gone once it is closed."""
        ...

    def check(self) -> None:
        """Raise OSError when nothing could be written now."""
        ...


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _FileRange:
    """A part of an open file, which it closes."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file = file
        self._left = length
        file.seek(start)

    def read(self, size: int, /) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()


class LocalStorage:
    """Blobs as files below one folder, written aside and moved into place."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        """Write a blob; it appears under its key only when the block ends without an exception."""
        path = self._path(key)
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One by one: with `parents=True` only the last folder gets the mode.
        for folder in reversed([path.parent, *path.parent.parents]):
            if folder.is_relative_to(self._root):
                folder.mkdir(exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_WRITING)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
            _sync_folder(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def open(self, key: str) -> BinaryIO:
        """The blob for reading. Raises FileNotFoundError."""
        return self._path(key).open("rb")

    def fetch(self, key: str, target: Path) -> None:
        """Copy a blob into a local file. Raises FileNotFoundError."""
        with self.open(key) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)

    def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is no error."""
        self._path(key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> list[str]:
        """Every key that begins with ``prefix/``, sorted. What is being written is none yet."""
        files = (path for path in self._path(prefix).rglob("*") if not path.name.startswith(_WRITING))
        return sorted(path.relative_to(self._root).as_posix() for path in files if path.is_file())

    def delete_all(self, prefix: str) -> None:
        """Remove every blob whose key begins with ``prefix/``, and what a writer that was killed left there."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._path(prefix))

    def size(self, key: str) -> int:
        """Length of a blob in bytes. Raises FileNotFoundError."""
        path = self._path(key)
        if not path.is_file():
            raise FileNotFoundError(key)
        return path.stat().st_size

    def age(self, key: str) -> float:
        """Seconds since a blob was written. Raises FileNotFoundError."""
        return time.time() - self._path(key).stat().st_mtime

    def unfinished(self, age: float) -> list[str]:
        """Files that nobody has written to for so long and that have no key yet, by their place below the root."""
        long_ago, found = time.time() - age, []
        for path in self._root.rglob(f"{_WRITING}*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime <= long_ago:
                    found.append(path.relative_to(self._root).as_posix())
        return sorted(found)

    def discard(self, name: str) -> None:
        """Remove one of them."""
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root) or not path.name.startswith(_WRITING):
            raise ValueError("not an unfinished blob")
        path.unlink(missing_ok=True)

    def open_range(self, key: str, start: int, length: int) -> Reader:
        """`length` bytes from byte `start` on. The open file outlives its name. Raises FileNotFoundError."""
        return _FileRange(self.open(key), start, length)

    def scratch(self) -> BinaryIO:
        """A nameless file on the storage's own disk, since a temporary folder may lie in memory."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self._root))

    def check(self) -> None:
        """Raise OSError when nothing could be written now."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=self._root) as probe:
            probe.write(b"\0")

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key) or ".." in key:
            raise ValueError("not a storage key")
        return self._root / key
