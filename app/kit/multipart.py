"""Reads one file out of a multipart body as it arrives.

Frameworks put such files into temporary files first, in clear; what is sent here must not touch the disk unencrypted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.kit.encodings import Stage
from app.kit.problems import BadRequest, invalid_field

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MALFORMED = "the multipart body is malformed"


class _Part:
    """Hands on what belongs to the wanted field; told by the parser's callbacks."""

    def __init__(self, field: str, sink: Stage) -> None:
        self._field = field.encode()
        self._sink = sink
        self._name = self._value = b""
        self._disposition = b""
        self._wanted = False
        self.found = self.ended = False

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
            self._sink.write(data[start:end])

    def on_end(self) -> None:
        self.ended = True


class FieldReader:
    """The stage that hands the bytes of the first part called `field` to `sink`; other parts are passed over."""

    def __init__(self, content_type: str, field: str, sink: Stage) -> None:
        """Raises BadRequest when the content type is not one of a multipart body."""
        self._field = field
        self._sink = sink
        self._part = _Part(field, sink)
        callbacks = {name: getattr(self._part, name) for name in dir(self._part) if name.startswith("on_")}
        try:
            _, options = parse_options_header(content_type)
            self._parser = MultipartParser(options.get(b"boundary", b""), cast("MultipartCallbacks", callbacks))
        except (MultipartParseError, UnicodeError):
            raise BadRequest(_MALFORMED) from None

    def write(self, data: bytes) -> None:
        """The next bytes of the body. Raises BadRequest when they are not what the content type says."""
        try:
            self._parser.write(data)
        except (MultipartParseError, UnicodeError):
            raise BadRequest(_MALFORMED) from None

    def close(self) -> None:
        """The end of the body.

        Raises:
            BadRequest: it ends before its last boundary.
            Invalid: there was no such part.
        """
        if not self._part.ended:
            raise BadRequest(f"{_MALFORMED}: it ends too early")
        if not self._part.found:
            raise invalid_field(f"/{self._field}", f"send the JSON Lines file as the form field '{self._field}'")
        self._sink.close()
