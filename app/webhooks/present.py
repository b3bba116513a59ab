"""The outside view of webhooks."""

from __future__ import annotations

from app.webhooks.repository import EndpointRow
from app.webhooks.schemas import (
    CallbackKeyRead,
    CallbackKeySecret,
    DeliveryRead,
    EndpointRead,
    EndpointSecret,
)
from app.webhooks.signing import Secret, public_text
from app.webhooks.tables import WebhookDelivery, WebhookSecret


def present(row: EndpointRow) -> EndpointRead:
    """An endpoint as it is shown."""
    endpoint, public_key = row
    names = EndpointRead.model_fields.keys() - {"object", "public_key"}
    shown = {name: getattr(endpoint, name) for name in names}
    return EndpointRead.model_validate({**shown, "public_key": public_text(public_key)})


def with_secret(row: EndpointRow, secret: Secret) -> EndpointSecret:
    """An endpoint with its new secret."""
    return EndpointSecret(**present(row).model_dump(), secret=secret.shown)


def present_key(row: WebhookSecret) -> CallbackKeyRead:
    """A callback key as it is shown."""
    return CallbackKeyRead(public_key=public_text(row.public_key), created_at=row.created_at)


def key_with_secret(row: WebhookSecret, secret: Secret) -> CallbackKeySecret:
    """A callback key with its new secret."""
    return CallbackKeySecret(**present_key(row).model_dump(), secret=secret.shown)


def present_delivery(row: WebhookDelivery) -> DeliveryRead:
    """A delivery as it is shown."""
    names = DeliveryRead.model_fields.keys() - {"object", "endpoint", "subject"}
    shown = {name: getattr(row, name) for name in names}
    return DeliveryRead.model_validate({**shown, "endpoint": row.endpoint_id, "subject": row.subject_id})
