"""What the light worker does for the status callbacks of OpenDSR: see whom to tell, and write what they are told."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.kit.crypto import CryptoError
from app.opendsr import callbacks
from app.opendsr.answers import signature_headers
from app.opendsr.present import present_callback
from app.opendsr.repository import jobs_of
from app.opendsr.service import View
from app.opendsr.tables import OpenDsrCallback, OpenDsrRequest
from app.settings import get_settings
from app.webhooks.tables import WebhookDelivery
from worker.database import new_session


@dataclass(frozen=True)
class StatusMessage:
    """What a callback is told: a request as it was when the delivery was claimed."""

    view: View
    url: str

    def compose(self) -> tuple[bytes, dict[str, str]]:
        """Body and headers. Raises CryptoError where this process has nothing to sign with."""
        credentials = get_settings().opendsr
        if credentials is None:
            raise CryptoError("this process has no LETHE_OPENDSR_CREDENTIALS")
        body = present_callback(self.view, credentials.domain, self.url).model_dump_json().encode()
        return body, signature_headers(credentials, body)


def announce() -> None:
    """Write deliveries for the requests whose status has changed."""
    with new_session() as session, session.begin():
        session.execute(callbacks.announce())


def message_of(session: Session, delivery: WebhookDelivery) -> StatusMessage | None:
    """What a delivery has to say; None when it is no status callback."""
    callback = session.get(OpenDsrCallback, delivery.lane)
    if callback is None:
        return None
    request = session.get_one(OpenDsrRequest, callback.request_id)
    return StatusMessage(View(request, session.execute(jobs_of(callback.tenant_id, request.id)).all()), callback.url)
