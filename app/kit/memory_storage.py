"""A storage that is forgotten: for what must not outlive a request."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.kit.storage import Reader


class MemoryStorage:
    """Blobs in memory (app.kit.storage.Storage)."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        """Write a blob; it appears under its key only when the block ends without an exception."""
        sink = io.BytesIO()
        yield sink
        self._blobs[key] = sink.getvalue()

    def open(self, key: str) -> BinaryIO:
        """The blob for reading. Raises FileNotFoundError."""
        return io.BytesIO(self._blob(key))

    def fetch(self, key: str, target: Path) -> None:
        """Copy a blob into a local file. Raises FileNotFoundError."""
        target.write_bytes(self._blob(key))

    def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is no error."""
        self._blobs.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        """Every key that begins with ``prefix/``, sorted."""
        return sorted(key for key in self._blobs if key.startswith(f"{prefix}/"))

    def delete_all(self, prefix: str) -> None:
        """Remove every blob whose key begins with ``prefix/``."""
        for key in self.keys(prefix):
            self.delete(key)

    def size(self, key: str) -> int:
        """Length of a blob in bytes. Raises FileNotFoundError."""
        return len(self._blob(key))

    def age(self, key: str) -> float:
        """No blob here grows old. Raises FileNotFoundError."""
        self._blob(key)
        return 0.0

    def unfinished(self, age: float) -> list[str]:
        """What a writer leaves is gone with it."""
        del age
        return []

    def discard(self, name: str) -> None:
        """There is nothing to remove."""

    def open_range(self, key: str, start: int, length: int) -> Reader:
        """`length` bytes from byte `start` on. Raises FileNotFoundError."""
        return io.BytesIO(self._blob(key)[start : start + length])

    def scratch(self) -> BinaryIO:
        """A file in memory."""
        return io.BytesIO()

    def check(self) -> None:
        """It can always be written to."""

    def _blob(self, key: str) -> bytes:
        if key not in self._blobs:
            raise FileNotFoundError(key)
        return self._blobs[key]
