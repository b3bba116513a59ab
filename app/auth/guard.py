"""Which scopes a route takes: checked before anything of its request is read, and told in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.params import Depends
from fastapi.routing import APIRoute, RouteContext

from app.auth.scopes import Scope, allows
from app.kit.problems import Forbidden, responses

SCHEME = "ApiKey"


class Guard:
    """A dependency that lets through who has one of its scopes."""

    def __init__(self, *scopes: Scope) -> None:
        self.scopes = scopes

    async def __call__(self, request: Request) -> None:
        """Raise Forbidden, as RFC 6750 words it, for a caller who has none of the scopes."""
        if not allows(request.state.scopes, self.scopes):
            named = " ".join(self.scopes)
            challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{named}"'}
            raise Forbidden(f"this call takes the scope {' or '.join(self.scopes)}", headers=challenge)


class GuardedRoute(APIRoute):
    """A route whose guard is asked before its body is read. FastAPI asks dependencies after that."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind the guard."""
        guard = guard_of(self.dependencies)
        if guard is None:
            return super().get_route_handler()
        # Asked once is enough.
        self.dependant.dependencies = [each for each in self.dependant.dependencies if each.call is not guard]
        return _behind(guard, super().get_route_handler())


def _behind(
    guard: Guard, handler: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def guarded(request: Request) -> Response:
        await guard(request)
        return await handler(request)

    return guarded


def guard_of(dependencies: Iterable[Depends]) -> Guard | None:
    """The guard among the dependencies of a route."""
    return next((each.dependency for each in dependencies if isinstance(each.dependency, Guard)), None)


def describe(document: dict[str, Any], routes: Iterable[RouteContext]) -> None:
    """Write the scopes of every route into the OpenAPI document. Where several are named, each suffices."""
    document["components"]["securitySchemes"] = {
        SCHEME: {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, `Authorization: Bearer lethe_...`, or a token of the identity provider.",
        }
    }
    for route in routes:
        guard = guard_of(getattr(route.original_route, "dependencies", ()))
        for method in route.methods or () if guard else ():
            operation = document["paths"].get(route.path_format, {}).get(method.lower())
            if operation is not None and guard is not None:
                operation["security"] = [{SCHEME: [scope]} for scope in guard.scopes]
                for status, answer in responses(HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS).items():
                    operation["responses"].setdefault(str(status), answer)
