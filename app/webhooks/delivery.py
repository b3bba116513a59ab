"""The life of a delivery: claimed for one attempt, then ended or put off, as one guarded statement each.

Receivers are told at least once: who sends holds a lease, and when it dies another one sends the same message, with
the same id. Times are the database's.

    pending ──claim──> sent ──2xx──> succeeded
       ^                │ └──last try, or 410──> failed
       └────put off─────┘            succeeded | failed ──replay──> pending
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from secrets import SystemRandom
from typing import Any

from sqlalchemy import Delete, Select, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningUpdate, Update

from app.webhooks.tables import WebhookDelivery, WebhookEndpoint, WebhookSecret

# Waits between tries, in seconds, as the specification proposes them: 10 tries after the first within 3.2 days.
SCHEDULE = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER = 0.2
MAX_WAIT = 86_400.0
# Longer than a request may take (app.kit.addresses.Policy) with the statements around it.
LEASE = timedelta(seconds=60)
GONE, TOO_MANY_REQUESTS, UNAVAILABLE = 410, 429, 503
_random = SystemRandom()


def body_of(delivery: WebhookDelivery) -> bytes:
    """The thin payload, the same bytes in every attempt."""
    happened = delivery.created_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    event = {"type": delivery.type, "timestamp": happened, "data": {"id": delivery.subject_id}}
    return json.dumps(event, separators=(",", ":")).encode()


def wait_after(tries: int, status: int | None, headers: Mapping[str, str]) -> float | None:
    """Seconds until the next try, or None when there is none.

    Args:
        tries: those that were made.
        headers: of the answer; its Retry-After may ask for more time, never for less.
    """
    if status == GONE or tries > len(SCHEDULE):
        return None
    wait = SCHEDULE[tries - 1] * (1 + JITTER * _random.random())
    if status in (TOO_MANY_REQUESTS, UNAVAILABLE):
        wait = max(wait, min(_retry_after(headers.get("retry-after", "")), MAX_WAIT))
    return wait


def _retry_after(text: str) -> float:
    """Seconds that a Retry-After header asks for; 0 when it cannot be read."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        return 0.0
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def due() -> Any:  # noqa: ANN401 - a SQL condition
    """The condition that a delivery is to be sent now: nobody has it, and nothing is being sent on its lane."""
    other = aliased(WebhookDelivery)
    busy = exists().where(other.lane == WebhookDelivery.lane, other.lease_until > func.now())
    free = or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until < func.now())
    return and_(WebhookDelivery.status == "pending", WebhookDelivery.next_at <= func.now(), free, ~busy)


def claim() -> ReturningUpdate[WebhookDelivery]:
    """Take the delivery that has been due for longest; nothing comes back when none is."""
    oldest = (
        select(WebhookDelivery.id)
        .where(due())
        .order_by(WebhookDelivery.next_at, WebhookDelivery.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .correlate(None)
        .scalar_subquery()
    )
    return (
        update(WebhookDelivery)
        .where(WebhookDelivery.id == oldest)
        .values(
            lease_until=func.now() + LEASE, attempts=WebhookDelivery.attempts + 1, tries=WebhookDelivery.tries + 1
        )
        .returning(WebhookDelivery)
    )


def held(delivery: WebhookDelivery) -> Any:  # noqa: ANN401 - a SQL condition
    """The condition under which a sender may write: nobody claimed the delivery after it."""
    return and_(
        WebhookDelivery.id == delivery.id,
        WebhookDelivery.attempts == delivery.attempts,
        WebhookDelivery.status == "pending",
    )


def end(delivery: WebhookDelivery, status: str, **outcome: object) -> ReturningUpdate[str]:
    """Note that a delivery was taken, or is given up."""
    return (
        update(WebhookDelivery)
        .where(held(delivery))
        .values(status=status, next_at=None, lease_until=None, finished_at=func.now(), **outcome)
        .returning(WebhookDelivery.id)
    )


def put_off(delivery: WebhookDelivery, seconds: float, **outcome: object) -> ReturningUpdate[str]:
    """Note that an attempt failed, and when the next one is made."""
    return (
        update(WebhookDelivery)
        .where(held(delivery))
        .values(next_at=func.now() + timedelta(seconds=seconds), lease_until=None, **outcome)
        .returning(WebhookDelivery.id)
    )


def lock_endpoint(endpoint_id: str) -> Select[str]:
    """Keep others from changing an endpoint. Who locks deliveries too locks their endpoint before them."""
    mine = select(WebhookEndpoint.id).where(WebhookEndpoint.id == endpoint_id)
    return mine.with_for_update(key_share=True)


def note_success(endpoint_id: str) -> Update:
    """Note that an endpoint takes what it is sent."""
    return update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).values(last_success_at=func.now())


def disable(endpoint_id: str, reason: str, *, unless_success_since: datetime | None = None) -> ReturningUpdate[str]:
    """Tell an endpoint nothing any more; its id comes back when that changes something."""
    statement = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.enabled)
    if unless_success_since is not None:
        last = WebhookEndpoint.last_success_at
        statement = statement.where(or_(last.is_(None), last < unless_success_since))
    return statement.values(enabled=False, disabled_reason=reason).returning(WebhookEndpoint.id)


def give_up_pending(endpoint_id: str) -> Update:
    """End the deliveries that wait for an endpoint that is told nothing any more."""
    return (
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.status == "pending")
        .values(status="failed", error="endpoint_disabled", next_at=None, lease_until=None, finished_at=func.now())
    )


def forget_deliveries(retention: timedelta, most: int) -> Delete:
    """Remove deliveries that ended longer ago than `retention`, at most so many."""
    old = WebhookDelivery.finished_at < func.now() - retention
    oldest = select(WebhookDelivery.id).where(old).limit(most).with_for_update(skip_locked=True)
    return delete(WebhookDelivery).where(WebhookDelivery.id.in_(oldest))


def forget_secrets() -> Delete:
    """Remove secrets that sign no more."""
    return delete(WebhookSecret).where(WebhookSecret.expires_at < func.now())
