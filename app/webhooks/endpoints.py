"""``/webhook-endpoints`` and ``/webhook-deliveries``."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from app.auth.guard import GuardedRoute
from app.dependencies import SessionDep, SettingsDep, TenantDep, requires
from app.kit.pagination import Cursor, Limit, Page, encode_cursor
from app.kit.problems import responses
from app.kit.text import Text
from app.webhooks.present import key_with_secret, present, present_delivery, present_key, with_secret
from app.webhooks.repository import WebhookRepository
from app.webhooks.schemas import (
    CallbackKeyRead,
    CallbackKeySecret,
    DeliveryRead,
    DeliveryStatus,
    EndpointCreate,
    EndpointRead,
    EndpointSecret,
    EndpointUpdate,
)
from app.webhooks.service import WebhookService
from app.webhooks.tables import WebhookDelivery

router = APIRouter(tags=["webhooks"], route_class=GuardedRoute)
_LIST = responses(HTTPStatus.UNAUTHORIZED)
_READ = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND)
_CHANGE = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
Given = Annotated[Text | None, Query(min_length=1, max_length=64)]


async def webhook_service(session: SessionDep, tenant: TenantDep, settings: SettingsDep) -> WebhookService:
    """The service for the caller's tenant."""
    return WebhookService(WebhookRepository(session, tenant), settings, tenant)


ServiceDep = Annotated[WebhookService, Depends(webhook_service)]


@router.post(
    "/webhook-endpoints",
    dependencies=[requires("admin")],
    status_code=HTTPStatus.CREATED,
    operation_id="create_webhook_endpoint",
    responses=responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def create(body: EndpointCreate, response: Response, service: ServiceDep) -> EndpointSecret:
    """Add a receiver. Its secret is in this answer and in no other."""
    row, secret = await service.create(body)
    response.headers["Location"] = f"/webhook-endpoints/{row[0].id}"
    return with_secret(row, secret)


@router.get(
    "/webhook-endpoints",
    dependencies=[requires("admin")],
    operation_id="list_webhook_endpoints",
    responses=_LIST,
)
async def list_all(
    session: SessionDep, tenant: TenantDep, limit: Limit = 20, cursor: Cursor = None
) -> Page[EndpointRead]:
    """Receivers, newest first."""
    rows, more = await WebhookRepository(session, tenant).page(limit, cursor)
    following = encode_cursor(rows[-1][0].created_at, rows[-1][0].id) if more else None
    return Page(data=[present(row) for row in rows], has_more=more, next_cursor=following)


# Before the calls that take an id, which would catch these.
@router.get(
    "/webhook-endpoints/callback-key",
    dependencies=[requires("admin")],
    operation_id="get_webhook_callback_key",
    responses=_LIST,
)
async def callback_key(service: ServiceDep) -> CallbackKeyRead:
    """The public key that verifies requests to the `callback_url` of jobs."""
    return present_key(await service.callback_key())


@router.post(
    "/webhook-endpoints/callback-key/rotate-secret",
    dependencies=[requires("admin")],
    operation_id="rotate_webhook_callback_key",
    responses=_LIST,
)
async def rotate_callback_key(service: ServiceDep) -> CallbackKeySecret:
    """A new key for callbacks, with its secret; the one before signs along for 24 hours."""
    return key_with_secret(*await service.rotate_callback_key())


@router.get(
    "/webhook-endpoints/{endpoint_id}",
    dependencies=[requires("admin")],
    operation_id="get_webhook_endpoint",
    responses=_READ,
)
async def get(endpoint_id: str, service: ServiceDep) -> EndpointRead:
    """One receiver."""
    return present(await service.get(endpoint_id))


@router.patch(
    "/webhook-endpoints/{endpoint_id}",
    dependencies=[requires("admin")],
    operation_id="update_webhook_endpoint",
    responses=responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def update(
    endpoint_id: str,
    service: ServiceDep,
    body: EndpointUpdate = EndpointUpdate(),  # noqa: B008 - never changed
) -> EndpointRead:
    """Change a receiver, or switch it off and on."""
    return present(await service.change(endpoint_id, body))


@router.delete(
    "/webhook-endpoints/{endpoint_id}",
    dependencies=[requires("admin")],
    status_code=HTTPStatus.NO_CONTENT,
    operation_id="delete_webhook_endpoint",
    responses=_READ,
)
async def delete(endpoint_id: str, service: ServiceDep) -> None:
    """Remove a receiver and its delivery log."""
    await service.delete(endpoint_id)


@router.post(
    "/webhook-endpoints/{endpoint_id}/rotate-secret",
    dependencies=[requires("admin")],
    operation_id="rotate_webhook_endpoint_secret",
    responses=_READ,
)
async def rotate(endpoint_id: str, service: ServiceDep) -> EndpointSecret:
    """A new secret; the one before signs along for 24 hours."""
    return with_secret(*await service.rotate(endpoint_id))


@router.post(
    "/webhook-endpoints/{endpoint_id}/test",
    dependencies=[requires("admin")],
    status_code=HTTPStatus.ACCEPTED,
    operation_id="test_webhook_endpoint",
    responses=_CHANGE,
)
async def test(endpoint_id: str, service: ServiceDep) -> DeliveryRead:
    """Send the event `webhook_endpoint.test`."""
    return present_delivery(await service.test(endpoint_id))


@router.get(
    "/webhook-endpoints/{endpoint_id}/deliveries",
    dependencies=[requires("admin")],
    operation_id="list_webhook_endpoint_deliveries",
    responses=_READ,
)
async def deliveries_of(
    endpoint_id: str,
    service: ServiceDep,
    session: SessionDep,
    tenant: TenantDep,
    status: Annotated[DeliveryStatus | None, Query()] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[DeliveryRead]:
    """What a receiver was sent, newest first."""
    await service.get(endpoint_id)
    filters = {"endpoint_id": endpoint_id, "status": status}
    return _page(*await WebhookRepository(session, tenant).deliveries(limit, cursor, _given(filters)))


@router.get(
    "/webhook-deliveries",
    dependencies=[requires("admin")],
    operation_id="list_webhook_deliveries",
    responses=_LIST,
)
async def deliveries(
    session: SessionDep,
    tenant: TenantDep,
    status: Annotated[DeliveryStatus | None, Query()] = None,
    subject: Given = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[DeliveryRead]:
    """What was sent to whomever, callbacks of jobs included, newest first."""
    filters = {"status": status, "subject_id": subject}
    return _page(*await WebhookRepository(session, tenant).deliveries(limit, cursor, _given(filters)))


@router.post(
    "/webhook-deliveries/{delivery_id}/replay",
    dependencies=[requires("admin")],
    status_code=HTTPStatus.ACCEPTED,
    operation_id="replay_webhook_delivery",
    responses=_CHANGE,
)
async def replay(delivery_id: str, service: ServiceDep) -> DeliveryRead:
    """Send an ended delivery again, under the same `webhook-id`."""
    return present_delivery(await service.replay(delivery_id))


def _given(filters: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in filters.items() if value is not None}


def _page(rows: Sequence[WebhookDelivery], more: bool) -> Page[DeliveryRead]:
    following = encode_cursor(rows[-1].created_at, rows[-1].id) if more else None
    return Page(data=[present_delivery(row) for row in rows], has_more=more, next_cursor=following)
