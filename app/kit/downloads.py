"""Answers a stored blob: strong entity tag, ranges, conditional requests (RFC 9110)."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import FileResponse

from app.kit.problems import RangeNotSatisfiable


def download(request: Request, path: Path, *, sha256: str, filename: str, media_type: str) -> Response:
    """The blob at `path`, whose digest is its entity tag; 304 when the client has it."""
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, no-cache"}
    if _matches(request.headers.get("if-none-match"), sha256):
        return Response(status_code=304, headers=headers)
    _check_range(request, path.stat().st_size)
    return FileResponse(path, filename=filename, media_type=media_type, headers=headers)


def _check_range(request: Request, size: int) -> None:
    """Drop a range that is not one plain range of bytes, as RFC 9110 allows; refuse one that lies outside.

    Raises:
        RangeNotSatisfiable: nothing of the range is there.
    """
    wanted = request.headers.get("range")
    if wanted is None:
        return
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", wanted.strip())
    if match is None or not (match[1] or match[2]) or (match[1] and match[2] and int(match[1]) > int(match[2])):
        request.scope["headers"] = [header for header in request.scope["headers"] if header[0] != b"range"]
    elif (int(match[1]) >= size) if match[1] else (int(match[2]) == 0):
        raise RangeNotSatisfiable(f"there are {size} bytes", headers={"Content-Range": f"bytes */{size}"})


def _matches(condition: str | None, sha256: str) -> bool:
    # If-None-Match compares weakly, so W/ is dropped.
    tags = {tag.strip().removeprefix("W/") for tag in (condition or "").split(",")}
    return "*" in tags or f'"{sha256}"' in tags
