"""Unpacking compressed bodies piece by piece."""

from __future__ import annotations

import gzip
import itertools
import os
import zlib

import pytest
import zstandard

from app.kit.encodings import PIECE, Bounds, Sniffed, decoder
from app.kit.problems import Invalid, Problem, TooLarge, UnsupportedMediaType

BOUNDS = Bounds(bytes=4_000_000, ratio=200)
PLAIN = b"".join(f"line {number} of {number * 7919 % 1013}\n".encode() for number in range(20_000))
PACKED = {"gzip": gzip.compress(PLAIN), "zstd": zstandard.ZstdCompressor().compress(PLAIN), "": PLAIN}
CODED = ("gzip", "zstd")


def unpack(coding: str, body: bytes, step: int = 1000, bounds: Bounds = BOUNDS) -> bytes:
    """A body that arrives in pieces of `step` bytes, unpacked."""
    out: list[bytes] = []
    stage = decoder(coding, out.append, bounds)
    for start in range(0, len(body), step):
        stage.write(body[start : start + step])
    stage.close()
    return b"".join(out)


@pytest.mark.parametrize("coding", PACKED)
@pytest.mark.parametrize("step", [7, 999, 10**9])
def test_what_was_packed_comes_out_however_it_is_cut(coding: str, step: int) -> None:
    assert unpack(coding, PACKED[coding], step) == PLAIN


def pack(coding: str, data: bytes) -> bytes:
    """A compressed body."""
    if coding == "gzip":
        return gzip.compress(data)
    return zstandard.ZstdCompressor().compress(data) if coding == "zstd" else data


@pytest.mark.parametrize("coding", CODED)
def test_several_members_in_a_row_are_one_body(coding: str) -> None:
    assert unpack(coding, pack(coding, b"one\n") + pack(coding, b"") + pack(coding, b"two\n"), 3) == b"one\ntwo\n"


def test_the_padding_after_a_gzip_member_is_passed_over() -> None:
    assert unpack("gzip", pack("gzip", b"one\n") + bytes(700), 100) == b"one\n"


@pytest.mark.parametrize("coding", CODED)
def test_a_body_that_ends_too_early_is_refused_wherever_it_ends(coding: str) -> None:
    # Bytes that do not compress, so that a cut falls into blocks that are handed on as they are.
    packed = pack(coding, os.urandom(300)) + pack(coding, PLAIN[:2000])
    first = len(pack(coding, os.urandom(300)))
    for end in itertools.chain(range(first), range(first + 1, len(packed))):
        with pytest.raises(Invalid, match="too early"):
            unpack(coding, packed[:end])


@pytest.mark.parametrize("coding", CODED)
def test_a_body_that_is_no_such_thing_is_refused(coding: str) -> None:
    with pytest.raises(Invalid, match=f"not valid {coding}"):
        unpack(coding, PLAIN)
    with pytest.raises(Invalid, match=f"not valid {coding}|too early"):
        unpack(coding, PACKED[coding] + b"and more")


@pytest.mark.parametrize("coding", CODED)
def test_a_bomb_is_stopped_before_it_unfolds(coding: str) -> None:
    bomb = pack(coding, bytes(50_000_000))
    seen: list[int] = []
    stage = decoder(coding, lambda data: seen.append(len(data)), Bounds(bytes=10**9, ratio=200))
    with pytest.raises(Invalid, match="more than 200 times"):
        stage.write(bomb)
    assert sum(seen) <= max(200 * len(bomb), 1024**2)
    assert max(seen) <= PIECE


@pytest.mark.parametrize("coding", CODED)
def test_more_bytes_than_may_be_unpacked_are_refused(coding: str) -> None:
    with pytest.raises(TooLarge, match="1000 bytes"):
        unpack(coding, PACKED[coding], bounds=Bounds(bytes=1000, ratio=200))


def test_a_short_body_may_be_as_uniform_as_it_likes() -> None:
    assert unpack("gzip", gzip.compress(bytes(900_000))) == bytes(900_000)


def test_a_zstd_window_that_takes_much_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(Invalid, match="window exceeds 8 MiB"):
        unpack("zstd", packer.compress(PLAIN) + packer.flush())


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, zstd", "gzip, gzip"])
def test_other_codings_are_refused_with_those_that_are_known(coding: str) -> None:
    with pytest.raises(UnsupportedMediaType) as raised:
        decoder(coding, len, BOUNDS)
    assert raised.value.headers == {"Accept-Encoding": "gzip, zstd"}


@pytest.mark.parametrize("coding", PACKED)
@pytest.mark.parametrize("step", [1, 10**9])
def test_a_file_is_unpacked_by_its_first_bytes(coding: str, step: int) -> None:
    out: list[bytes] = []
    stage = Sniffed(out.append, BOUNDS)
    body = pack(coding, PLAIN[:500])
    for start in range(0, len(body), step):
        stage.write(body[start : start + step])
    stage.close()
    assert b"".join(out) == PLAIN[:500]


@pytest.mark.parametrize("body", [b"", b"{}", b"\x1f", b"\x1f\x8b"])
def test_a_file_of_a_few_bytes_is_what_it_is(body: bytes) -> None:
    out: list[bytes] = []
    stage = Sniffed(out.append, BOUNDS)
    stage.write(body)
    if body == b"\x1f\x8b":
        with pytest.raises(Problem, match="too early"):
            stage.close()
    else:
        stage.close()
        assert b"".join(out) == body


def test_a_refusal_by_the_reader_behind_it_comes_through() -> None:
    def refuse(_data: bytes) -> None:
        raise TooLarge("line 3 is too long")

    for coding in CODED:
        with pytest.raises(TooLarge, match="line 3"):
            decoder(coding, refuse, BOUNDS).write(PACKED[coding])


def test_raw_deflate_does_not_pass_for_gzip() -> None:
    with pytest.raises(Invalid):
        unpack("gzip", zlib.compress(PLAIN))
