"""Reads one file out of a multipart body as it arrives.

Frameworks put such files into temporary files first, in clear; what is sent here must not touch the disk unencrypted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.kit.problems import BadRequest, invalid_field

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


class _Part:
    """Collects what belongs to the wanted field; told by the parser's callbacks."""

    def __init__(self, field: str) -> None:
        self._field = field.encode()
        self._name = self._value = b""
        self._disposition = b""
        self._wanted = False
        self.found = False
        self.data: list[bytes] = []

    def on_part_begin(self) -> None:
        self._disposition, self._wanted = b"", False

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._wanted = options.get(b"name") == self._field and not self.found
        self.found |= self._wanted

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self.data.append(data[start:end])


async def stream_field(content_type: str, body: AsyncIterator[bytes], field: str) -> AsyncIterator[bytes]:
    """The bytes of the first part called `field`, as they come; other parts are passed over.

    Raises:
        BadRequest: the body is not what its content type says.
        Invalid: there is no such part.
    """
    part = _Part(field)
    callbacks = {name: getattr(part, name) for name in dir(part) if name.startswith("on_")}
    try:
        _, options = parse_options_header(content_type)
        parser = MultipartParser(options.get(b"boundary", b""), cast("MultipartCallbacks", callbacks))
        async for data in body:
            parser.write(data)
            while part.data:
                yield part.data.pop(0)
        parser.finalize()
    except (MultipartParseError, UnicodeError):
        raise BadRequest("the multipart body is malformed") from None
    if not part.found:
        raise invalid_field(f"/{field}", f"send the JSON Lines file as the form field '{field}'")
