"""From the body of an upload to its JSON Lines: what it is wrapped in, by its headers."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers

from app.kit.encodings import Bounds, Plain, Sniffed, Stage, decoder
from app.kit.multipart import FieldReader
from app.kit.problems import UnsupportedMediaType

JSON_LINES = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
Reader = Callable[[Callable[[bytes], object]], Stage]


def reader_of(headers: Headers, bounds: Bounds) -> Reader:
    """What makes the first stage of a chain that ends in a sink of JSON Lines.

    A body may be compressed as a whole (`Content-Encoding`), and so may be the file in a multipart body: tools send
    that as application/octet-stream, so that its first bytes say more than its type.

    Raises:
        UnsupportedMediaType: a content type or coding that is not taken.
    """
    content_type = headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (*JSON_LINES, "multipart/form-data"):
        raise UnsupportedMediaType("send application/jsonl, or multipart/form-data with a field 'file'")
    coding = ",".join(headers.getlist("content-encoding"))
    decoder(coding, len, bounds)  # refused before anything is written

    def read(sink: Callable[[bytes], object]) -> Stage:
        stage: Stage = Plain(sink)
        if kind == "multipart/form-data":
            stage = FieldReader(content_type, "file", Sniffed(sink, bounds))
        return _Chain(decoder(coding, stage.write, bounds), stage)

    return read


class _Chain:
    """Two stages in a row: what the first makes of its input goes into the second."""

    def __init__(self, first: Stage, second: Stage) -> None:
        self.write = first.write
        self._stages = first, second

    def close(self) -> None:
        """Close them in this order, so that what the first still held reaches the second."""
        for stage in self._stages:
            stage.close()
