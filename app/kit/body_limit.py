"""Refuses bodies that are too large, before or while they arrive."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kit.problems import TooLarge, render


class BodyLimit:
    """ASGI middleware. A body over its limit ends in 413, whether or not it announced its length.

    The limit depends on the path alone: what a client says of its content type is no reason to read more.
    """

    def __init__(self, app: ASGIApp, *, usual: int, uploads: dict[str, int]) -> None:
        """`uploads` gives the limits of paths that take files; `usual` is that of all others. In bytes."""
        self._app = app
        self._usual = usual
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a receiver that counts."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._uploads.get(scope["path"], self._usual)
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced[:20]) > limit:
            await render(Request(scope), _too_large(limit))(scope, receive, send)
            return
        await self._app(scope, _counting(receive, limit), send)


def _counting(receive: Receive, limit: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body exceeds {limit} bytes; split it, or upload a dataset")
