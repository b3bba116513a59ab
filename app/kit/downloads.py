"""Answers a stored blob: strong entity tag, ranges, conditional requests (RFC 9110)."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import FileResponse


def download(request: Request, path: Path, *, sha256: str, filename: str, media_type: str) -> Response:
    """The blob at `path`, whose digest is its entity tag; 304 when the client has it."""
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, no-cache"}
    if _matches(request.headers.get("if-none-match"), sha256):
        return Response(status_code=304, headers=headers)
    return FileResponse(path, filename=filename, media_type=media_type, headers=headers)


def _matches(condition: str | None, sha256: str) -> bool:
    # If-None-Match compares weakly, so W/ is dropped.
    tags = {tag.strip().removeprefix("W/") for tag in (condition or "").split(",")}
    return "*" in tags or f'"{sha256}"' in tags
