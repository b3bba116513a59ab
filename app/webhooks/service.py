"""Keeping endpoints and their secrets."""

from __future__ import annotations

from datetime import timedelta

from app.kit.addresses import Refused, check_url
from app.kit.ids import new_id
from app.kit.problems import Conflict, NotFound, invalid_field
from app.settings import Settings
from app.webhooks.events import TEST
from app.webhooks.repository import EndpointRow, WebhookRepository
from app.webhooks.schemas import EndpointCreate, EndpointUpdate
from app.webhooks.signing import Secret, context_of
from app.webhooks.tables import WebhookDelivery, WebhookEndpoint, WebhookSecret

OVERLAP = timedelta(hours=24)
MAX_ENDPOINTS = 50


class WebhookService:
    """Webhooks of one tenant."""

    def __init__(self, webhooks: WebhookRepository, settings: Settings, tenant_id: str) -> None:
        self._webhooks = webhooks
        self._settings = settings
        self._tenant_id = tenant_id

    async def create(self, request: EndpointCreate) -> tuple[EndpointRow, Secret]:
        """A new endpoint and its secret.

        Raises:
            Invalid: the URL is none to which requests are sent.
            Conflict: the tenant has as many as it may have.
        """
        check_callback(request.url, "/url", self._settings)
        if await self._webhooks.count() >= MAX_ENDPOINTS:
            raise Conflict(f"there are {MAX_ENDPOINTS} endpoints already; delete one first")
        endpoint = WebhookEndpoint(id=new_id("we"), tenant_id=self._tenant_id, **request.model_dump())
        secret = Secret.generate()
        await self._webhooks.add(endpoint, self._row(secret, endpoint.id))
        data = {"events": endpoint.events, "signatures": endpoint.signatures}
        self._webhooks.record("webhook_endpoint.created", "webhook_endpoint", endpoint.id, **data)
        return await self.get(endpoint.id), secret

    async def get(self, endpoint_id: str, *, lock: bool = False) -> EndpointRow:
        """An endpoint with its public key. Raises NotFound."""
        row = await self._webhooks.endpoint(endpoint_id, lock=lock)
        if row is None:
            raise NotFound("there is no webhook endpoint with this id; GET /webhook-endpoints lists them")
        return row

    async def change(self, endpoint_id: str, request: EndpointUpdate) -> EndpointRow:
        """Change what is given. Enabling one clears the reason for which it was disabled.

        Raises:
            NotFound: no such endpoint.
            Invalid: the URL is none to which requests are sent.
        """
        row = await self.get(endpoint_id, lock=True)
        endpoint, _ = row
        given = request.model_dump(exclude_none=True)
        if request.url is not None:
            check_callback(request.url, "/url", self._settings)
        if request.enabled is not None and request.enabled != endpoint.enabled:
            endpoint.disabled_reason = None if request.enabled else "caller"
            if not request.enabled:
                await self._webhooks.give_up_pending(endpoint.id)
        for name, value in given.items():
            setattr(endpoint, name, value)
        await self._webhooks.refresh(endpoint)
        if given:
            fields = {"fields": sorted(given)}
            self._webhooks.record("webhook_endpoint.changed", "webhook_endpoint", endpoint.id, **fields)
        return row

    async def delete(self, endpoint_id: str) -> None:
        """Remove an endpoint with its delivery log. Raises NotFound."""
        endpoint, _ = await self.get(endpoint_id)
        await self._webhooks.delete(endpoint)
        self._webhooks.record("webhook_endpoint.deleted", "webhook_endpoint", endpoint.id)

    async def rotate(self, endpoint_id: str) -> tuple[EndpointRow, Secret]:
        """Give an endpoint a new secret; the one before signs along for a day. Raises NotFound."""
        endpoint, _ = await self.get(endpoint_id, lock=True)
        secret = Secret.generate()
        await self._webhooks.replace_secret(self._row(secret, endpoint.id), OVERLAP)
        self._webhooks.record("webhook_endpoint.secret_rotated", "webhook_endpoint", endpoint.id)
        return await self.get(endpoint.id), secret

    async def accept(self, url: str, pointer: str) -> None:
        """Check the callback URL of a job, at `pointer` in its request, and see that there is a key to sign with.

        Raises:
            Invalid: it is none to which requests are sent.
        """
        check_callback(url, pointer, self._settings)
        await self.callback_key()

    async def callback_key(self) -> WebhookSecret:
        """What signs for the callback URLs of this tenant's jobs; made when it is first asked for."""
        key = await self._webhooks.callback_key()
        if key is None:
            await self._webhooks.ensure_callback_key(self._row(Secret.generate(), None))
            key = await self._webhooks.callback_key()
        assert key is not None  # noqa: S101 - stored above, by this request or by another one
        return key

    async def rotate_callback_key(self) -> tuple[WebhookSecret, Secret]:
        """Make a new callback key; the one before signs along for a day."""
        await self.callback_key()
        secret = Secret.generate()
        row = self._row(secret, None)
        await self._webhooks.replace_secret(row, OVERLAP)
        self._webhooks.record("webhook_callback_key.rotated", "webhook_callback_key", row.id)
        return row, secret

    async def test(self, endpoint_id: str) -> WebhookDelivery:
        """Send an endpoint an event that says nothing.

        Raises:
            NotFound: no such endpoint.
            Conflict: it is disabled.
        """
        endpoint, _ = await self.get(endpoint_id)
        _require_enabled(endpoint)
        delivery = WebhookDelivery(
            id=new_id("msg"),
            tenant_id=self._tenant_id,
            endpoint_id=endpoint.id,
            lane=endpoint.id,
            type=TEST,
            subject_id=endpoint.id,
        )
        await self._webhooks.add_delivery(delivery)
        return delivery

    async def replay(self, delivery_id: str) -> WebhookDelivery:
        """Send an ended delivery again, under the same id.

        Raises:
            NotFound: no such delivery.
            Conflict: it has not ended, or its endpoint is disabled.
        """
        delivery = await self._webhooks.delivery(delivery_id)
        if delivery is None:
            raise NotFound("there is no webhook delivery with this id; GET /webhook-deliveries lists them")
        if delivery.status == "pending":
            raise Conflict("the delivery has not ended; it is sent again by itself")
        if delivery.endpoint_id is not None:
            endpoint, _ = await self.get(delivery.endpoint_id)
            _require_enabled(endpoint)
        await self._webhooks.queue_again(delivery)
        return delivery

    def _row(self, secret: Secret, endpoint_id: str | None) -> WebhookSecret:
        secret_id = new_id("whs")
        wrapped = secret.wrap(self._settings.key_ring, context_of(self._tenant_id, secret_id))
        return WebhookSecret(
            id=secret_id,
            tenant_id=self._tenant_id,
            endpoint_id=endpoint_id,
            key_id=wrapped.key_id,
            wrapped_key=wrapped.ciphertext,
            public_key=secret.public_key,
        )


def check_callback(url: str, pointer: str, settings: Settings) -> None:
    """Refuse a URL to which no request would ever be sent. Raises Invalid, which points at it without quoting it."""
    try:
        check_url(url, settings.outbound)
    except Refused as refusal:
        raise invalid_field(pointer, str(refusal)) from None


def _require_enabled(endpoint: WebhookEndpoint) -> None:
    if not endpoint.enabled:
        raise Conflict('the endpoint is disabled; enable it with PATCH and {"enabled": true} first')
