"""The digests of a dataset's records, sorted: equal records are found in constant memory, however many there are.

An index is a sequence of entries, 16 bytes of salted digest and 8 of line number each, sorted, a digest once.
"""

from __future__ import annotations

import heapq
import os
import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.kit.crypto import new_data_key

_ENTRY = struct.Struct(">16sQ")
_RUN = 100_000  # entries; about 8 MB of memory
_PARTS = 256  # by the first byte of a digest
_SHOWN = 20
_NONCE = 12


class IndexBuilder:
    """Sorts entries that come in any order. What does not fit into memory lies in a scratch file, encrypted."""

    def __init__(self, scratch: Callable[[], BinaryIO], run: int = _RUN) -> None:
        """`scratch` opens a file that is gone once it is closed; `run` entries are held in memory."""
        self._scratch = scratch
        self._run_length = run
        self._run: list[bytes] = []
        self._file: BinaryIO | None = None
        self._cipher = AESGCM(new_data_key())
        # Where each run's parts begin in the file, one after the other, and where the last one ends.
        self._starts = array("Q", [0])
        self.duplicates = 0

    def add(self, digest: bytes, line: int) -> None:
        """Add a record's digest and line."""
        self._run.append(_ENTRY.pack(digest, line))
        if len(self._run) == self._run_length:
            self._spill()

    def entries(self) -> Iterator[bytes]:
        """The index, in pieces. From then on `duplicates` says how many entries had the digest of an earlier line."""
        last = b""
        for part in self._parts():
            part.sort()
            befores = [last, *part]
            first = [entry for entry, before in zip(part, befores, strict=False) if entry[:16] != before[:16]]
            self.duplicates += len(part) - len(first)
            last = befores[-1]
            yield b"".join(first)

    def close(self) -> None:
        """Give the scratch file back."""
        if self._file is not None:
            self._file.close()

    def _parts(self) -> Iterator[list[bytes]]:
        if self._file is None:
            yield self._run
            return
        self._spill()
        runs = len(self._starts) // _PARTS
        for number in range(_PARTS):
            # Each run's part is sorted already, which the sort to come makes use of.
            yield [entry for run in range(runs) for entry in self._read(run * _PARTS + number)]

    def _spill(self) -> None:
        self._file = self._file or self._scratch()
        self._run.sort()
        bounds = [bisect_left(self._run, bytes([number])) for number in range(_PARTS)] + [len(self._run)]
        for begin, end in pairwise(bounds):
            nonce = os.urandom(_NONCE)
            self._file.write(nonce + self._cipher.encrypt(nonce, b"".join(self._run[begin:end]), None))
            self._starts.append(self._file.tell())
        self._run = []

    def _read(self, piece: int) -> list[bytes]:
        assert self._file is not None  # noqa: S101 - the caller has looked
        start, end = self._starts[piece], self._starts[piece + 1]
        self._file.seek(start)
        sealed = self._file.read(end - start)
        plain = self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], None)
        return [plain[at : at + _ENTRY.size] for at in range(0, len(plain), _ENTRY.size)]


@dataclass(frozen=True)
class Overlap:
    """Records that two datasets share: how many, and the first of their lines in the second one."""

    records: int
    lines: list[int]

    def places(self, word: str = "line") -> str:
        """Where they are, in words."""
        more = ", ..." if self.records > len(self.lines) else ""
        return f"{word}{'s' if self.records > 1 else ''} {', '.join(map(str, self.lines))}{more}"


def overlap(one: Iterable[bytes], other: Iterable[bytes]) -> Overlap:
    """What two indexes share, in one pass over both."""
    records, lines = 0, list[int]()
    for line in _shared(_blocks(one), _blocks(other)):
        records += 1
        lines.append(line)
        if len(lines) > 1000:
            lines = heapq.nsmallest(_SHOWN, lines)
    return Overlap(records, heapq.nsmallest(_SHOWN, lines))


def _shared(ones: Iterator[dict[bytes, int]], others: Iterator[dict[bytes, int]]) -> Iterator[int]:
    one, other = next(ones, None), next(others, None)
    while one is not None and other is not None:
        for digest in one.keys() & other.keys():
            yield other[digest]
        # The block that ends first has nothing more to meet.
        if next(reversed(one)) <= next(reversed(other)):
            one = next(ones, None)
        else:
            other = next(others, None)


def _blocks(index: Iterable[bytes]) -> Iterator[dict[bytes, int]]:
    """Digest to line, a piece of the index at a time."""
    rest = b""
    for piece in index:
        data = rest + piece
        whole = len(data) - len(data) % _ENTRY.size
        rest = data[whole:]
        if whole:
            yield dict(_ENTRY.iter_unpack(memoryview(data)[:whole]))
