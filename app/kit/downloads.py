"""Answers a stored blob: strong entity tag, digest, one range, conditional requests (RFC 9110, RFC 9530)."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from anyio import to_thread
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.kit.problems import Gone, RangeNotSatisfiable, responses
from app.kit.storage import Reader, Storage

CHUNK = 256 * 1024  # bytes that a download holds in memory, whatever the blob's size is
PRIVATE = {"Cache-Control": "private, no-cache"}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)
_HEADERS = {
    "ETag": "Strong: the sha256 in quotes.",
    "Repr-Digest": "sha-256 of the whole, in base64 (RFC 9530).",
    "Accept-Ranges": "bytes",
    "Content-Disposition": "A name for the file.",
}
# A list of entity tags; what stands between the quotes may hold commas.
_TAGS = re.compile(r'(?:W/)?("[^"]*")')


@dataclass(frozen=True)
class Blob:
    """What is handed out.

    Attributes:
        key: where it lies in the storage.
        sha256: hex; its strong entity tag.
        filename: name under which a browser saves it; letters, digits, dots and dashes.
        cache: headers that say who may keep it.
    """

    key: str
    sha256: str
    filename: str
    media_type: str
    cache: Mapping[str, str] = field(default_factory=lambda: PRIVATE)


def download_responses(description: str, media_type: str) -> dict[int | str, dict[str, Any]]:
    """Every answer that `download` gives, for the OpenAPI document."""
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()}
    body = {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}, "headers": headers}
    return {
        200: {"description": description, **body},
        206: {"description": "The range of bytes that was asked for.", **body},
        304: {"description": "The caller has it: `If-None-Match` names its ETag."},
        **responses(HTTPStatus.GONE, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE),
    }


async def download(request: Request, storage: Storage, blob: Blob) -> Response:
    """The blob, or the range of it that was asked for; 304 when the caller has it.

    HEAD is answered with the headers of a GET without a range, as RFC 9110 wants it.

    Raises:
        Gone: the storage does not hold it.
        RangeNotSatisfiable: nothing of the range is there.
    """
    try:
        size = await to_thread.run_sync(storage.size, blob.key)
        if _has_it(request, blob.sha256):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": _tag(blob), **blob.cache})
        part = _part(request, size, _tag(blob))
        content = range(size) if part is None else part
        headers = _headers(blob, len(content))
        if request.method == "HEAD":
            return Response(headers=headers)
        reader = await to_thread.run_sync(storage.open_range, blob.key, content.start, len(content))
    except FileNotFoundError:
        raise Gone("the bytes are no longer held") from None
    if part is None:
        return _Stream(reader, HTTPStatus.OK, headers)
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    return _Stream(reader, HTTPStatus.PARTIAL_CONTENT, headers)


class _Stream(StreamingResponse):
    """Reads in a thread, a piece at a time, and stops when the caller goes away."""

    def __init__(self, reader: Reader, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        super().__init__(_pieces(reader), status, headers)
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Here and not in the generator, which never starts when the headers cannot be sent.
            self._reader.close()


async def _pieces(reader: Reader) -> AsyncIterator[bytes]:
    while piece := await to_thread.run_sync(reader.read, CHUNK):
        yield piece


def _headers(blob: Blob, length: int) -> dict[str, str]:
    """Headers of the whole or of a part.

    `Repr-Digest` is that of the whole, in both. There is no `Content-Digest`: of a part it is not known, and of the
    answer to HEAD, which has no content, it would be another one than that of GET.
    """
    digest = base64.b64encode(bytes.fromhex(blob.sha256)).decode()
    return {
        "Content-Type": blob.media_type,
        "Content-Length": str(length),
        "Content-Disposition": f'attachment; filename="{blob.filename}"',
        "Accept-Ranges": "bytes",
        "ETag": _tag(blob),
        "Repr-Digest": f"sha-256=:{digest}:",
        **blob.cache,
    }


def _tag(blob: Blob) -> str:
    return f'"{blob.sha256}"'


def _has_it(request: Request, sha256: str) -> bool:
    """Whether If-None-Match names the blob. It compares weakly, so W/ makes no difference."""
    condition = ",".join(request.headers.getlist("if-none-match"))
    return condition.strip() == "*" or f'"{sha256}"' in _TAGS.findall(condition)


def _part(request: Request, size: int, tag: str) -> range | None:
    """The bytes that a GET asks for; None for all of them.

    What is no single range of bytes is ignored, as RFC 9110 (14.2) allows: several ranges of an archive are nothing
    that a client needs. So is a range of something else than what is there (If-Range, compared strongly).

    Raises:
        RangeNotSatisfiable: nothing of the range is there.
    """
    wanted = request.headers.get("range")
    if wanted is None or request.method != "GET" or request.headers.get("if-range", tag).strip() != tag:
        return None
    match = _RANGE.fullmatch(wanted.strip())
    if match is None or not (match[1] or match[2]) or (match[1] and match[2] and int(match[1]) > int(match[2])):
        return None
    first, last = _bounds(match[1], match[2], size)
    if first >= size or last < first:
        raise RangeNotSatisfiable(f"there are {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return range(first, last + 1)


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """First and last byte of ``first-last``, ``first-`` or ``-length``."""
    if not first:
        return max(size - int(last), 0), size - 1 if int(last) else -1
    return int(first), min(int(last), size - 1) if last else size - 1
