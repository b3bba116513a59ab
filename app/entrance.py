"""What happens around every request, whichever endpoint answers it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog
from fastapi import Request
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from psycopg import OperationalError as DriverError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kit import problems
from app.kit.storage import is_storage_away

PUBLIC = {"/livez", "/readyz", "/openapi.json", "/keys", "/problems"}
# Whoever verifies a signature of ours has no key.
PUBLIC |= {"/opendsr/v2/discovery", "/opendsr/v2/certificate.pem"}
PUBLIC_BELOW = ("/problems/", "/downloads/")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
log = structlog.get_logger("app.requests")


class Entrance:
    """ASGI middleware: gives every request an id, asks who calls, and gives every crash an answer.

    Plain ASGI: FastAPI's decorator for middleware runs each request in a task of its own and hands its answer on
    piece by piece, which takes longer than everything that is done here.
    """

    def __init__(self, app: ASGIApp, *, authenticate: Callable[[Request], Awaitable[None]]) -> None:
        """`authenticate` notes in the request's state who calls, or raises a Problem."""
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever comes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        answer = _Answer(request, send)
        try:
            _refuse_nul(scope)
            if not is_public(scope["path"]):
                await self._authenticate(request)
            await self._app(scope, receive, answer.send)
        except Exception as error:
            # Caught here and not by an exception handler: those let it through to the server, which prints it.
            await answer.fail(error, receive)


class _Answer:
    """The answer to one request on its way out."""

    def __init__(self, request: Request, send: Send) -> None:
        self._request = request
        self._send = send
        self._started = False

    async def send(self, message: Message) -> None:
        """Pass a message on; the first one gets the request's id and is logged."""
        if message["type"] == "http.response.start":
            self._started = True
            MutableHeaders(scope=message)["X-Request-Id"] = self._request.state.request_id
            if message["status"] == HTTPStatus.METHOD_NOT_ALLOWED:
                # The framework names the methods of the first route with this path alone.
                MutableHeaders(scope=message)["Allow"] = ", ".join(allowed_methods(self._request))
            self._log(int(message["status"]))
        await self._send(message)

    async def fail(self, error: Exception, receive: Receive) -> None:
        """Answer with a problem. An answer that has begun is left unfinished, which the server makes known."""
        response = _problem_of(self._request, error)
        if not self._started:
            await response(self._request.scope, receive, self.send)

    def _log(self, status: int) -> None:
        scope = self._request.scope
        if not is_public(scope["path"]):
            log.info(
                "request",
                method=scope["method"],
                # The pattern, not the path: what a caller puts into a path may be anything.
                route=getattr(scope.get("route"), "path", "none"),
                status=status,
                request_id=self._request.state.request_id,
            )


def _problem_of(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, problems.Problem):
        return problems.render(request, error)
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout | DriverError):
        log.warning("database away", error=type(error).__name__, request_id=request.state.request_id)
        away = problems.Unavailable("the database cannot be reached; try again", headers={"Retry-After": "5"})
        return problems.render(request, away)
    if is_storage_away(error):
        log.warning("storage away", error=type(error).__name__, request_id=request.state.request_id)
        away = problems.Unavailable("the storage is full or cannot be used; try again", headers={"Retry-After": "60"})
        return problems.render(request, away)
    if isinstance(error, ClientDisconnect):
        return problems.render(request, problems.BadRequest("the client went away"))
    return problems.on_crash(request, error)


def allowed_methods(request: Request) -> list[str]:
    """Every method of the path that a request names: of the first route that has it, and of those written alike."""
    path = request.scope["path"]
    routes = [route for route in iter_route_contexts(request.app.routes) if route.path]
    first = next((route.path for route in routes if route.path and compile_path(route.path)[0].match(path)), None)
    return sorted({method for route in routes if route.path == first for method in route.methods or ()})


def is_public(path: str) -> bool:
    """Whether a path is answered without a key."""
    return path in PUBLIC or path.startswith(PUBLIC_BELOW)


def _refuse_nul(scope: Scope) -> None:
    """Postgres holds no NUL character, so that nothing can be found by one."""
    if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
        raise problems.Invalid("the URL must not hold a NUL character")
