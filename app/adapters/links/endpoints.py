"""Short-lived links for machines that hold no API key: ``.../versions/{number}/links`` and ``/downloads``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Path, Request, Response

from app.adapters.endpoints import ARCHIVE, ServiceDep, archive_response
from app.adapters.links import token as tokens
from app.adapters.links.schemas import LinkCreate, LinkRead
from app.adapters.links.token import Link
from app.adapters.references import VersionReference
from app.adapters.repository import AdapterRepository
from app.adapters.service import check_ready
from app.auth.guard import GuardedRoute
from app.dependencies import SettingsDep, StorageDep, TenantDep, requires
from app.kit.problems import Gone, NotFound, Problem, responses

router = APIRouter(tags=["adapters"], route_class=GuardedRoute)
Token = Annotated[str, Path(description="What follows /downloads/ in the link's URL.")]
# The URL is the secret: nobody in between keeps the answer, and no page that it leads to is told of it.
HEADERS = {"Cache-Control": "private, no-store", "Referrer-Policy": "no-referrer"}


@router.post(
    "/adapters/{name}/versions/{number}/links",
    dependencies=[requires("adapters:read")],
    status_code=HTTPStatus.CREATED,
    operation_id="create_download_link",
    responses=responses(
        HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.UNPROCESSABLE_ENTITY
    ),
)
async def create(
    name: str,
    number: VersionReference,
    request: Request,
    response: Response,
    service: ServiceDep,
    tenant: TenantDep,
    settings: SettingsDep,
    body: Annotated[LinkCreate | None, Body()] = None,
) -> LinkRead:
    """Make a link that downloads this version without an API key until it expires."""
    version = await service.downloadable(name, number)
    seconds = (body or LinkCreate()).expires_in
    link = Link(tenant, version.id, version.archive_sha256, int(time.time()) + seconds)
    service.record_link(version, seconds)
    response.headers.update(HEADERS)
    return LinkRead(
        adapter=name,
        version=version.number,
        url=f"{request.base_url}downloads/{tokens.sign(link, settings.pepper)}",
        expires_at=datetime.fromtimestamp(link.expires, UTC),
        sha256=version.archive_sha256,
        bytes=version.archive_bytes,
    )


# Without an API key: the token says whose archive it is, and until when.
@router.get(
    "/downloads/{token}",
    operation_id="download_by_link",
    response_class=Response,
    responses={**ARCHIVE, **responses(HTTPStatus.NOT_FOUND)},
)
@router.head("/downloads/{token}", include_in_schema=False)
async def download(token: Token, request: Request, settings: SettingsDep, storage: StorageDep) -> Response:
    """The archive that a link leads to. 410 once it has expired, or its version was superseded."""
    with _private():
        link = _opened(tokens.read(token, settings.pepper))
        # No session of a tenant: nobody is known here but by the token, and nothing is written.
        async with request.app.state.sessions() as session:
            found = await AdapterRepository(session, link.tenant_id).named(link.version_id)
        if found is None or found[1].archive_sha256 != link.sha256:
            raise Gone("what this link led to is no longer there")
        name, version = found
        check_ready(version)
        return await archive_response(request, storage, name, version, HEADERS)


def _opened(link: Link | None) -> Link:
    if link is None:
        raise NotFound("there is no such link; it may have been cut off")
    if link.expires <= time.time():
        raise Gone("this link has expired; ask for a new one")
    return link


@contextmanager
def _private() -> Iterator[None]:
    """Refusals are kept by nobody either."""
    try:
        yield
    except Problem as problem:
        problem.headers |= HEADERS
        raise
