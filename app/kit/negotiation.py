"""Whether a caller would rather have something else than JSON (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from starlette.requests import Request

HTML, JSON, EVENT_STREAM = "text/html", "application/json", "text/event-stream"
# RFC 9110: 0 to 1 with at most three decimals.
_QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


def wants(request: Request, media_type: str) -> bool:
    """Whether a request's `Accept` says that `media_type` is wanted more than JSON."""
    return prefers(media_type, ",".join(request.headers.getlist("accept")))


def prefers(media_type: str, accept: str) -> bool:
    """Whether a media type is wanted more than JSON.

    JSON is what programs get that do not say, that take anything, or that take neither: the answer never was 406.

    Args:
        accept: the header's value, several headers joined by commas, empty without one.
    """
    ranges = list(_ranges(accept))
    return _quality(media_type, ranges) > _quality(JSON, ranges)


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    """Media ranges with their quality. One whose quality cannot be read is left out."""
    for part in accept.lower().split(","):
        media_range, *parameters = (piece.strip() for piece in part.split(";"))
        weights = [text[2:].strip() for text in parameters if text.startswith("q=")]
        weight = weights[0] if weights else "1"
        if media_range and _QUALITY.fullmatch(weight):
            yield media_range, float(weight)


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """Of the most specific range that covers the type; 0 where none does."""
    for covering in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        found = [quality for media_range, quality in ranges if media_range == covering]
        if found:
            return max(found)
    return 0.0
