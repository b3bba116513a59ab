"""Sends webhooks: the light worker's part of the delivery (app/webhooks/delivery.py).

Nothing is sent within a transaction: a delivery is claimed in one, and its outcome is written in another. One process
at a time sends, on several threads, so that receivers which take their time keep the worker's other processes free.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from typing import Protocol, cast

import structlog
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from app.audit.record import append
from app.jobs.tables import UnlearnJob
from app.kit.addresses import Refused
from app.kit.crypto import CryptoError
from app.kit.net import NoAnswer, post
from app.settings import get_settings
from app.webhooks import delivery as life
from app.webhooks.signing import Secret, Signature, context_of, signed_headers
from app.webhooks.tables import WebhookDelivery, WebhookEndpoint, WebhookSecret
from worker import opendsr_callbacks
from worker.database import engine, new_session

THREADS = 16
# Well within the time that a worker has to stop, the last request's own included.
SECONDS = 20.0
SWEPT_AT_ONCE = 1000
_ONLY_SENDER = 0x6C65746865  # "lethe": a lock's name in Postgres
# Its endpoint was disabled, or its job is gone, since the delivery was written.
NO_RECEIVER = "no_receiver"
# Two claims at the same moment would both see the lane of a receiver free.
_claiming = threading.Lock()
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt; `error` is one word of ours, None when it was taken."""

    status: int | None = None
    error: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Message(Protocol):
    """What is sent."""

    def compose(self) -> tuple[bytes, Mapping[str, str]]:
        """Body and headers of one attempt. Raises CryptoError where they cannot be signed."""


@dataclass(frozen=True)
class EventMessage:
    """A webhook's thin payload with the secrets that sign it."""

    delivery: WebhookDelivery
    kinds: tuple[Signature, ...]
    secrets: tuple[WebhookSecret, ...]

    def compose(self) -> tuple[bytes, Mapping[str, str]]:
        """Body and headers of one attempt. Raises CryptoError where a secret does not open."""
        secrets = [_unwrap(row) for row in self.secrets]
        body = life.body_of(self.delivery)
        return body, signed_headers(self.delivery.id, int(time.time()), body, secrets, self.kinds)


@dataclass(frozen=True)
class Parcel:
    """A claimed delivery with all that is needed to send it."""

    delivery: WebhookDelivery
    url: str | None
    message: Message


def deliver_due() -> int:
    """Send what is due, until nothing is. Answers how many attempts were made; none while another process sends."""
    with _alone() as alone:
        if not alone or not _anything_due():
            return 0
        end = time.monotonic() + SECONDS
        with ThreadPoolExecutor(THREADS, thread_name_prefix="webhook") as pool:
            return sum(pool.map(lambda _: _send_until(end), range(THREADS)))


def sweep() -> None:
    """Remove deliveries whose time is up and secrets that sign no more."""
    retention = timedelta(days=get_settings().webhook_log_days)
    with new_session() as session, session.begin():
        session.execute(life.forget_deliveries(retention, SWEPT_AT_ONCE))
        session.execute(life.forget_secrets())


def claim() -> Parcel | None:
    """Take a delivery that is due, with its receiver and secrets."""
    with _claiming, new_session() as session, session.begin():
        delivery = session.scalars(life.claim()).one_or_none()
        return None if delivery is None else _pack(session, delivery)


def attempt(parcel: Parcel) -> Outcome:
    """Send a claimed delivery once. Not within a transaction."""
    if parcel.url is None:
        return Outcome(error=NO_RECEIVER)
    try:
        body, signatures = parcel.message.compose()
        headers = {**signatures, "Content-Type": "application/json", "User-Agent": f"Lethe/{version('lethe')}"}
        answer = post(parcel.url, body, headers, get_settings().outbound)
    except CryptoError:
        return Outcome(error="secret_unreadable")
    except Refused:
        return Outcome(error="address_refused")
    except NoAnswer as failure:
        return Outcome(error=failure.reason)
    taken = 200 <= answer.status < 300
    return Outcome(answer.status, None if taken else "refused_by_receiver", answer.headers)


def settle(delivery: WebhookDelivery, outcome: Outcome) -> None:
    """Write what came of an attempt, unless somebody else has the delivery by now."""
    written = {"response_status": outcome.status, "error": outcome.error}
    wait = None if outcome.error == NO_RECEIVER else life.wait_after(delivery.tries, outcome.status, outcome.headers)
    with new_session() as session, session.begin():
        if delivery.endpoint_id:
            session.execute(life.lock_endpoint(delivery.endpoint_id))
        if outcome.error is None:
            ended = session.scalar(life.end(delivery, "succeeded", **written))
            if ended and delivery.endpoint_id:
                session.execute(life.note_success(delivery.endpoint_id))
        elif wait is not None:
            session.execute(life.put_off(delivery, wait, **written))
        elif session.scalar(life.end(delivery, "failed", **written)):
            _give_up(session, delivery, outcome)
    log.info("webhook sent", delivery=delivery.id, attempt=delivery.attempts, **written)


def _send_until(end: float) -> int:
    sent = 0
    while time.monotonic() < end:
        parcel = claim()
        if parcel is None:
            break
        settle(parcel.delivery, attempt(parcel))
        sent += 1
    return sent


@contextmanager
def _alone() -> Iterator[bool]:
    """Whether this process is the only one that sends. Postgres lets the lock go when the process dies."""
    # Committed at once, so that no transaction is open while others are waited for.
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield bool(connection.scalar(select(func.pg_try_advisory_lock(_ONLY_SENDER))))


def _anything_due() -> bool:
    with new_session() as session:
        return session.scalar(select(WebhookDelivery.id).where(life.due()).limit(1)) is not None


def _pack(session: Session, delivery: WebhookDelivery) -> Parcel:
    status = opendsr_callbacks.message_of(session, delivery)
    if status is not None:
        return Parcel(delivery, status.url, status)
    mine = WebhookSecret.endpoint_id.is_not_distinct_from(delivery.endpoint_id)
    valid = or_(WebhookSecret.expires_at.is_(None), WebhookSecret.expires_at > func.now())
    rows = select(WebhookSecret).where(WebhookSecret.tenant_id == delivery.tenant_id, mine, valid)
    # The newest first: receivers that look at one signature alone have the current secret.
    secrets = tuple(session.scalars(rows.order_by(WebhookSecret.created_at.desc())))
    if delivery.endpoint_id is None:
        job = select(UnlearnJob.callback_url).where(
            UnlearnJob.id == delivery.subject_id, UnlearnJob.tenant_id == delivery.tenant_id
        )
        return Parcel(delivery, session.scalar(job), EventMessage(delivery, ("v1", "v1a"), secrets))
    endpoint = session.get_one(WebhookEndpoint, delivery.endpoint_id)
    url = endpoint.url if endpoint.enabled else None
    kinds = cast("tuple[Signature, ...]", tuple(endpoint.signatures))
    return Parcel(delivery, url, EventMessage(delivery, kinds, secrets))


def _unwrap(row: WebhookSecret) -> Secret:
    context = context_of(row.tenant_id, row.id)
    return Secret.unwrap(get_settings().key_ring, row.key_id, row.wrapped_key, context)


def _give_up(session: Session, delivery: WebhookDelivery, outcome: Outcome) -> None:
    """Disable the endpoint of a delivery that ended without success, where it takes nothing any more."""
    endpoint_id = delivery.endpoint_id
    if endpoint_id is None:
        return
    gone = outcome.status == life.GONE
    reason, since = ("gone", None) if gone else ("failing", delivery.queued_at)
    if session.scalar(life.disable(endpoint_id, reason, unless_success_since=since)) is None:
        return
    session.execute(life.give_up_pending(endpoint_id))
    append(
        session,
        delivery.tenant_id,
        "webhook_endpoint.disabled",
        "webhook_endpoint",
        endpoint_id,
        {"reason": reason},
    )
