"""Sorting digests in constant memory, and finding those that two datasets share."""

from __future__ import annotations

import random
import tempfile
from hashlib import blake2b
from typing import BinaryIO, cast

import pytest

from app.datasets.fingerprints import IndexBuilder, overlap

SECRET = blake2b(b"0", digest_size=16).digest()


def scratch() -> BinaryIO:
    """A nameless file."""
    return cast(BinaryIO, tempfile.TemporaryFile())


def digest(number: int) -> bytes:
    """The digest of a record."""
    return blake2b(str(number).encode(), digest_size=16).digest()


def index(numbers: list[int], run: int = 100_000, piece: int = 0) -> tuple[list[bytes], int]:
    """The index of records that stand on lines 1, 2, ..., and how many were there before."""
    builder = IndexBuilder(scratch, run)
    for line, number in enumerate(numbers, 1):
        builder.add(digest(number), line)
    data = b"".join(builder.entries())
    builder.close()
    piece = piece or max(len(data), 1)
    return [data[start : start + piece] for start in range(0, len(data), piece)], builder.duplicates


@pytest.mark.parametrize("run", [100, 3000, 100_000])
def test_an_index_is_the_same_however_little_memory_it_takes(run: int) -> None:
    numbers = random.Random(3).choices(range(1500), k=3000)  # noqa: S311 - fixed numbers
    (data,), duplicates = index(numbers, run)
    first = {digest(number): line for line, number in reversed(list(enumerate(numbers, 1)))}
    entries = [(data[at : at + 16], int.from_bytes(data[at + 16 : at + 24], "big")) for at in range(0, len(data), 24)]
    assert entries == sorted(first.items())
    assert duplicates == len(numbers) - len(first)


def test_what_lies_in_the_scratch_file_is_encrypted() -> None:
    file = scratch()
    builder = IndexBuilder(lambda: file, 1)
    builder.add(SECRET, 1)
    file.seek(0)
    assert SECRET not in file.read()
    builder.close()
    assert file.closed


@pytest.mark.parametrize("piece", [24, 25, 1000, 0])
def test_shared_records_are_counted_once_with_their_first_lines(piece: int) -> None:
    draw = random.Random(11)  # noqa: S311 - fixed numbers
    ours = draw.choices(range(4000), k=1200)
    theirs = draw.choices(range(2000, 6000), k=3000)
    found = overlap(index(ours, piece=piece)[0], index(theirs, 500, piece=piece)[0])
    shared = set(ours) & set(theirs)
    assert found.records == len(shared) > 20
    assert found.lines == sorted(theirs.index(number) + 1 for number in shared)[:20]


def test_a_few_records_are_found_among_many() -> None:
    ours, theirs = [10, 5000, 20_000], list(range(10_000))
    found = overlap(index(ours)[0], index(theirs, 3000, piece=6000)[0])
    assert (found.records, found.lines) == (2, [11, 5001])
    back = overlap(index(theirs, 3000, piece=6000)[0], index(ours)[0])
    assert (back.records, back.lines) == (2, [1, 2])
    assert found.places() == "lines 11, 5001"


def test_sets_that_share_nothing_or_everything() -> None:
    numbers = list(range(3000))
    assert overlap(index(numbers)[0], index([n + 3000 for n in numbers])[0]).records == 0
    assert overlap(index([])[0], index(numbers)[0]).records == 0
    whole = overlap(index(numbers)[0], index(numbers[::-1])[0])
    assert (whole.records, whole.lines) == (3000, list(range(1, 21)))
    assert whole.places().endswith(", 20, ...")
