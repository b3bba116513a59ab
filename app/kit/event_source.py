"""The reading side of Server-Sent Events (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# These three alone end a line; others that Python knows may stand in a text.
_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Message:
    """One message. `id` is the last that was given, here or before; None where none was."""

    id: str | None
    event: str
    data: str


def messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    """The messages of a stream, as they come. One that the stream ends within is left out."""
    last: str | None = None
    fields: dict[str, list[str]] = {}
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        if name:
            fields.setdefault(name, []).append(value.removeprefix(" "))
        elif not line:
            last = fields.get("id", [last])[-1]
            if "data" in fields:
                yield Message(last, fields.get("event", ["message"])[-1], "\n".join(fields["data"]))
            fields = {}


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    left = b""
    for chunk in chunks:
        come = left + chunk
        # A carriage return at the end may be the first half of what ends a line.
        *whole, left = _END.split(come.removesuffix(b"\r"))
        left += b"\r" if come.endswith(b"\r") else b""
        for line in whole:
            yield line.decode(errors="replace")
    if left.endswith(b"\r"):
        yield left[:-1].decode(errors="replace")
