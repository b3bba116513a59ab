"""Bodies that come compressed, unpacked as they arrive and never more than one piece at a time.

A stage takes bytes and hands on what it makes of them at once, so that a chain of stages holds next to nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Protocol, cast

import zstandard

from app.kit.problems import Invalid, TooLarge, UnsupportedMediaType

PIECE = 128 * 1024
MAX_WINDOW = 8 * 1024**2  # what RFC 8878 has every reader support
CODINGS = ("gzip", "zstd")
# Short bodies may unpack to many times their size and do no harm.
_FREE_BYTES = 1024**2
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_SENTINEL = b"\n"


class Stage(Protocol):
    """Takes a stream of bytes."""

    def write(self, data: bytes) -> None:
        """The next bytes. Raises a Problem when they cannot be taken."""
        ...

    def close(self) -> None:
        """There are no more. Raises a Problem when some are missing."""
        ...


@dataclass(frozen=True)
class Bounds:
    """The most that may be unpacked: bytes in all, and bytes for each byte that was sent."""

    bytes: int
    ratio: int


class Plain:
    """The stage that hands on what it gets."""

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink

    def write(self, data: bytes) -> None:
        """The next bytes."""
        self._sink(data)

    def close(self) -> None:
        """Nothing is missing."""


class _Unpacked:
    """What comes out of a decoder, as long as it stays within bounds."""

    def __init__(self, sink: Callable[[bytes], object], bounds: Bounds) -> None:
        self._sink = sink
        self._bounds = bounds
        self.taken = self._given = 0

    def write(self, data: bytes) -> int:
        self._given += len(data)
        if self._given > self._bounds.bytes:
            raise TooLarge(f"the body unpacks to more than {self._bounds.bytes} bytes; split it")
        if self._given > max(_FREE_BYTES, self._bounds.ratio * self.taken):
            raise Invalid(f"the body unpacks to more than {self._bounds.ratio} times its size; send it uncompressed")
        if data:
            self._sink(data)
        return len(data)


class _Gzip:
    """RFC 1952, several members in a row included."""

    def __init__(self, out: _Unpacked) -> None:
        self._out = out
        self._member = zlib.decompressobj(wbits=31)

    def write(self, data: bytes) -> None:
        self._out.taken += len(data)
        try:
            self._unpack(data)
        except zlib.error:
            raise Invalid("the body is not valid gzip") from None

    def close(self) -> None:
        # At most the end of one match: all else was handed on.
        self._out.write(self._member.flush())
        if not self._member.eof:
            raise Invalid("the gzip body ends too early")

    def _unpack(self, data: bytes) -> None:
        while data:
            if self._member.eof:
                data = data.lstrip(b"\0")  # padding, as tapes leave it
                if not data:
                    return
                self._member = zlib.decompressobj(wbits=31)
            self._out.write(self._member.decompress(data, PIECE))
            data = self._member.unconsumed_tail or self._member.unused_data


class _Zstd:
    """RFC 8878, several frames in a row included."""

    def __init__(self, out: _Unpacked) -> None:
        self._out = out
        self._tail: bytes | None = None
        # Its writer, and not its decompressobj, which returns all that a few bytes unpack to in one piece.
        decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._frames = decoder.stream_writer(cast(IO[bytes], _Into(self._take)), write_size=PIECE, closefd=False)
        self._empty = True

    def write(self, data: bytes) -> None:
        self._out.taken += len(data)
        self._empty &= not data
        self._feed(data)

    def close(self) -> None:
        """The library does not tell whether a frame is complete. A frame that is appended opens only if it is."""
        self._tail = b""
        if not self._empty:
            # Byte by byte: what comes whole behind half a header is taken for a frame of its own.
            for byte in zstandard.ZstdCompressor().compress(_SENTINEL):
                self._feed(bytes([byte]), "the zstd body ends too early")
        if self._tail != _SENTINEL:
            raise Invalid("the zstd body ends too early")

    def _take(self, data: bytes) -> int:
        if self._tail is None:
            return self._out.write(data)
        self._tail += data
        return len(data)

    def _feed(self, data: bytes, failure: str = "the body is not valid zstd, or its window exceeds 8 MiB") -> None:
        try:
            self._frames.write(data)
        except zstandard.ZstdError:
            raise Invalid(failure) from None


class _Into:
    """The part of a file that the library's writer needs."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self.write = write


class Sniffed:
    """Unpacks a file by its first bytes. JSON begins with none of those that are looked for."""

    def __init__(self, sink: Callable[[bytes], object], bounds: Bounds) -> None:
        self._sink = sink
        self._bounds = bounds
        self._head = b""
        self._stage: Stage | None = None

    def write(self, data: bytes) -> None:
        """The next bytes of the file."""
        if self._stage is not None:
            self._stage.write(data)
            return
        self._head += data
        if len(self._head) >= max(map(len, _MAGIC)):
            self._start()

    def close(self) -> None:
        """The end of the file."""
        if self._stage is None:
            self._start()
        if self._stage is not None:
            self._stage.close()

    def _start(self) -> None:
        coding = next((name for magic, name in _MAGIC.items() if self._head.startswith(magic)), "")
        self._stage = decoder(coding, self._sink, self._bounds)
        self._stage.write(self._head)


def decoder(coding: str, sink: Callable[[bytes], object], bounds: Bounds) -> Stage:
    """The stage that undoes a content coding ("" and "identity": none) and hands the result to `sink` in pieces.

    Raises:
        UnsupportedMediaType: another coding than gzip and zstd, or several.
    """
    match coding.strip().lower():
        case "" | "identity":
            return Plain(sink)
        case "gzip" | "x-gzip":
            return _Gzip(_Unpacked(sink, bounds))
        case "zstd":
            return _Zstd(_Unpacked(sink, bounds))
    known = ", ".join(CODINGS)
    # RFC 9110, 15.5.16: the answer names what would have been taken.
    raise UnsupportedMediaType(f"send the body plain, or in one of {known}", headers={"Accept-Encoding": known})
