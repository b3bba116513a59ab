"""Webhooks from the change of a job to the receiver, over real sockets, verified as receivers do."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import func, select, text, update
from standardwebhooks import Webhook, WebhookVerificationError

from app.audit.tables import AuditEntry
from app.jobs import transitions
from app.jobs.tables import UnlearnJob
from app.kit.ids import new_id
from app.settings import get_settings
from app.webhooks import delivery as life
from app.webhooks.delivery import JITTER, SCHEDULE, wait_after
from app.webhooks.events import EventType, emit
from app.webhooks.signing import Secret, context_of, public_text
from app.webhooks.tables import WebhookDelivery, WebhookEndpoint, WebhookSecret
from tests.app.kit.receivers import Received, Receiver, receiving
from tests.conftest import forget_settings
from tests.worker.rows import TENANT, add_adapter, add_job
from worker import webhooks
from worker.database import engine, new_session
from worker.housekeeping import announce_deadlines, reap_runs
from worker.lease import Lease, claim
from worker.webhooks import Outcome, deliver_due, settle, sweep

pytestmark = pytest.mark.usefixtures("service")
PAST = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _reachable(service: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers on this machine may be told."""
    monkeypatch.setenv("LETHE_WEBHOOK_ALLOW_PRIVATE", "127.0.0.0/8")
    forget_settings()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that takes everything."""
    with receiving() as server:
        yield server


@pytest.fixture
def job_id() -> str:
    """A queued job."""
    return add_job(add_adapter()).id


def add_secret(endpoint_id: str | None, **columns: Any) -> Secret:
    """A new secret, stored."""
    secret, secret_id = Secret.generate(), new_id("whs")
    wrapped = secret.wrap(get_settings().key_ring, context_of(TENANT, secret_id))
    row = WebhookSecret(
        id=secret_id, tenant_id=TENANT, endpoint_id=endpoint_id, key_id=wrapped.key_id,
        wrapped_key=wrapped.ciphertext, public_key=secret.public_key, **columns,
    )  # fmt: skip
    with new_session() as session, session.begin():
        session.add(row)
    return secret


def add_endpoint(url: str, *signatures: str) -> tuple[str, Secret]:
    """An endpoint that is told of everything, and its secret."""
    endpoint = WebhookEndpoint(
        id=new_id("we"), tenant_id=TENANT, url=url, events=[], signatures=list(signatures or ("v1",))
    )
    with new_session() as session, session.begin():
        session.add(endpoint)
    return endpoint.id, add_secret(endpoint.id)


def tell(job_id: str, event: EventType = "unlearn_job.failed") -> None:
    """Emit an event."""
    with new_session() as session, session.begin():
        session.execute(emit(event, job_id))


def deliveries() -> list[WebhookDelivery]:
    """All of them, oldest first."""
    with new_session() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.queued_at, WebhookDelivery.id)))


def only() -> WebhookDelivery:
    """The one delivery that there is."""
    (delivery,) = deliveries()
    return delivery


def change(**values: Any) -> None:
    """Change all deliveries behind everybody's back."""
    with new_session() as session, session.begin():
        session.execute(update(WebhookDelivery).values(**values))


def endpoint_of(endpoint_id: str) -> WebhookEndpoint:
    """An endpoint as it is now."""
    with new_session() as session:
        return session.get_one(WebhookEndpoint, endpoint_id)


def verify_v1a(request: Received, public_key: str) -> None:
    """As the specification says it, with nothing of ours. Raises InvalidSignature."""
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key.removeprefix("whpk_")))
    message = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    (given,) = [part for part in request.headers["webhook-signature"].split() if part.startswith("v1a,")]
    key.verify(base64.b64decode(given.removeprefix("v1a,")), message)


def test_the_packages_own_reader_verifies_what_arrives(receiver: Receiver, job_id: str) -> None:
    endpoint, secret = add_endpoint(receiver.url)
    tell(job_id)
    assert deliver_due() == 1
    (request,) = receiver.requests
    event = Webhook(secret.shown).verify(request.body, request.headers)
    delivery = only()
    happened = delivery.created_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert event == {"type": "unlearn_job.failed", "timestamp": happened, "data": {"id": job_id}}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == delivery.id
    assert (delivery.status, delivery.attempts, delivery.response_status) == ("succeeded", 1, 200)
    assert (delivery.lease_until, delivery.next_at, delivery.error) == (None, None, None)
    assert endpoint_of(endpoint).last_success_at is not None
    with pytest.raises(WebhookVerificationError):
        Webhook(Secret.generate().shown).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret.shown).verify(request.body + b" ", request.headers)
    assert deliver_due() == 0


def test_both_signatures_verify_where_both_are_asked_for(receiver: Receiver, job_id: str) -> None:
    _, secret = add_endpoint(receiver.url, "v1", "v1a")
    tell(job_id)
    deliver_due()
    (request,) = receiver.requests
    Webhook(secret.shown).verify(request.body, request.headers)
    verify_v1a(request, public_text(secret.public_key))
    with pytest.raises(InvalidSignature):
        verify_v1a(Received("", request.headers, request.body + b" "), public_text(secret.public_key))


def test_ed25519_alone_where_that_is_asked_for(receiver: Receiver, job_id: str) -> None:
    add_endpoint(receiver.url, "v1a")
    tell(job_id)
    deliver_due()
    assert receiver.requests[0].headers["webhook-signature"].startswith("v1a,")
    assert " " not in receiver.requests[0].headers["webhook-signature"]


def test_the_secret_before_signs_along_until_it_expires(receiver: Receiver, job_id: str) -> None:
    endpoint, secret = add_endpoint(receiver.url)
    soon = datetime.now(UTC) + timedelta(hours=1)
    before, expired = add_secret(endpoint, expires_at=soon), add_secret(endpoint, expires_at=PAST)
    tell(job_id)
    deliver_due()
    (request,) = receiver.requests
    for valid in (secret, before):
        Webhook(valid.shown).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(expired.shown).verify(request.body, request.headers)
    sweep()
    with new_session() as session:
        assert session.scalar(select(func.count()).select_from(WebhookSecret)) == 2


def test_a_callback_of_a_job_is_signed_with_the_tenants_own_key(receiver: Receiver) -> None:
    job = add_job(add_adapter(), callback_url=receiver.url)
    secret = add_secret(None)
    held = claim(job.run_id, "w", timedelta(seconds=60))
    assert held is not None
    Lease(held, timedelta(seconds=60), 10).end("gate_failed", "too little forgotten", verdict="failed")
    deliver_due()
    (request,) = receiver.requests
    event = Webhook(secret.shown).verify(request.body, request.headers)
    verify_v1a(request, public_text(secret.public_key))
    assert (event["type"], event["data"]) == ("unlearn_job.gate_failed", {"id": job.id})


def test_a_job_that_waits_for_approval_is_told_of(receiver: Receiver, job_id: str) -> None:
    _, secret = add_endpoint(receiver.url)
    with new_session() as session, session.begin():
        run_id = session.scalar(text("SELECT run_id FROM unlearn_jobs"))
        session.execute(transitions.follow(run_id, "awaiting_approval")).all()
    assert deliver_due() == 1
    (request,) = receiver.requests
    event = Webhook(secret.shown).verify(request.body, request.headers)
    assert (event["type"], event["data"]) == ("unlearn_job.awaiting_approval", {"id": job_id})


@pytest.mark.parametrize(("days", "event"), [(3, "unlearn_job.due_soon"), (-1, "unlearn_job.overdue")])
def test_a_deadline_is_told_of_once(receiver: Receiver, job_id: str, days: int, event: str) -> None:
    _, secret = add_endpoint(receiver.url)
    with new_session() as session, session.begin():
        session.execute(update(UnlearnJob).values(due_at=datetime.now(UTC) + timedelta(days=days)))
    for _ in range(2):
        announce_deadlines()
        deliver_due()
    (request,) = receiver.requests
    told = Webhook(secret.shown).verify(request.body, request.headers)
    assert (told["type"], told["data"]) == (event, {"id": job_id})


@pytest.mark.parametrize("status", ["succeeded", "gate_failed", "failed", "cancelled"])
def test_every_end_of_a_job_is_told_and_nothing_else(job_id: str, status: transitions.FinalStatus) -> None:
    add_endpoint("https://dsr.example.com/")
    with new_session() as session:
        run_id = session.scalar(text("SELECT run_id FROM unlearn_jobs"))
    held = claim(run_id, "w", timedelta(seconds=60))
    assert held is not None
    assert deliveries() == []
    Lease(held, timedelta(seconds=60), 10).end(status, "ended")
    delivery = only()
    assert (delivery.type, delivery.subject_id, delivery.status) == (f"unlearn_job.{status}", job_id, "pending")


def test_a_run_that_is_given_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_MAX_LOST_WORKERS", "0")
    forget_settings()
    job = add_job(add_adapter())
    add_endpoint("https://dsr.example.com/")
    claim(job.run_id, "w", timedelta(seconds=-1))
    reap_runs()
    assert only().type == "unlearn_job.failed"


def test_a_failure_is_tried_again_with_the_same_id_and_a_new_time(receiver: Receiver, job_id: str) -> None:
    _, secret = add_endpoint(receiver.url)
    receiver.statuses = [500, 302, 200]
    tell(job_id)
    for status, wait in ((500, SCHEDULE[0]), (302, SCHEDULE[1])):
        assert deliver_due() == 1
        delivery = only()
        assert (delivery.status, delivery.response_status) == ("pending", status)
        assert delivery.error == "refused_by_receiver"
        with engine().connect() as connection:
            left = connection.scalar(text("SELECT extract(epoch FROM next_at - now()) FROM webhook_deliveries"))
        assert wait - 5 < left <= wait * (1 + JITTER)
        assert deliver_due() == 0
        change(next_at=PAST)
    assert deliver_due() == 1
    assert (only().status, only().attempts) == ("succeeded", 3)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert len({request.body for request in receiver.requests}) == 1
    for request in receiver.requests:
        Webhook(secret.shown).verify(request.body, request.headers)


def test_the_schedule_is_that_of_the_specification_with_jitter() -> None:
    for tries, wait in enumerate(SCHEDULE, start=1):
        waits = {wait_after(tries, 500, {}) for _ in range(20)}
        assert all(each is not None and wait <= each <= wait * (1 + JITTER) for each in waits)
        assert len(waits) > 1
    assert wait_after(len(SCHEDULE) + 1, 500, {}) is None
    assert wait_after(1, 410, {}) is None
    assert sum(SCHEDULE) > 3 * 86_400


def test_a_receiver_may_ask_for_more_time_but_not_for_less() -> None:
    def wait(status: int, asked: str) -> float:
        seconds = wait_after(1, status, {"retry-after": asked})
        assert seconds is not None
        return seconds

    assert wait(429, "120") == 120
    assert wait(503, "120") == 120
    assert wait(429, "1") >= 5
    assert wait(429, "99999999999999999999") == 86_400
    later = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True)
    assert 500 < wait(429, later) <= 600
    for nothing in ("", "soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", "Mon, 99 Foo 2015 99:99:99 GMT", "\u0661"):
        assert 5 <= wait(429, nothing) <= 6
    assert wait(500, "120") <= 6


def test_gone_disables_the_endpoint_at_once(receiver: Receiver, job_id: str) -> None:
    endpoint, _ = add_endpoint(receiver.url)
    receiver.statuses = [410]
    tell(job_id)
    tell(job_id, "unlearn_job.overdue")
    deliver_due()
    row = endpoint_of(endpoint)
    assert (row.enabled, row.disabled_reason) == (False, "gone")
    assert sorted((d.status, d.error) for d in deliveries()) == [
        ("failed", "endpoint_disabled"),
        ("failed", "refused_by_receiver"),
    ]
    assert len(receiver.requests) == 1
    tell(job_id)
    assert len(deliveries()) == 2
    with new_session() as session:
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "webhook_endpoint.disabled")).one()
    assert (entry.subject_id, entry.data, entry.actor) == (endpoint, {"reason": "gone"}, "worker")


@pytest.mark.parametrize("success", [None, PAST, datetime(2999, 1, 1, tzinfo=UTC)])
def test_an_endpoint_that_fails_to_the_end_is_disabled_unless_it_took_another(
    receiver: Receiver, job_id: str, success: datetime | None
) -> None:
    endpoint, _ = add_endpoint(receiver.url)
    receiver.statuses = [500]
    tell(job_id)
    change(tries=len(SCHEDULE))
    with new_session() as session, session.begin():
        session.execute(update(WebhookEndpoint).values(last_success_at=success))
    deliver_due()
    delivery = only()
    assert (delivery.status, delivery.next_at, delivery.lease_until) == ("failed", None, None)
    alive = success is not None and success > delivery.queued_at
    row = endpoint_of(endpoint)
    assert (row.enabled, row.disabled_reason) == (alive, None if alive else "failing")


def test_a_sender_that_was_killed_loses_nothing(receiver: Receiver, job_id: str) -> None:
    add_endpoint(receiver.url)
    tell(job_id)
    killed = webhooks.claim()
    assert killed is not None
    assert deliver_due() == 0
    change(lease_until=PAST)
    assert deliver_due() == 1
    assert (only().status, only().attempts) == ("succeeded", 2)
    settle(killed.delivery, Outcome(500, "refused_by_receiver"))
    assert only().status == "succeeded"


def test_a_sender_that_slept_changes_nothing_of_its_successors(receiver: Receiver, job_id: str) -> None:
    add_endpoint(receiver.url)
    tell(job_id)
    slept = webhooks.claim()
    change(lease_until=PAST)
    successor = webhooks.claim()
    assert slept is not None
    assert successor is not None
    settle(slept.delivery, Outcome(200))
    assert (only().status, only().attempts) == ("pending", 2)
    settle(successor.delivery, Outcome(200))
    assert only().status == "succeeded"


def test_only_one_process_sends_and_one_request_per_receiver_is_under_way(receiver: Receiver, job_id: str) -> None:
    add_endpoint(receiver.url)
    tell(job_id)
    tell(job_id)
    with webhooks._alone() as first, webhooks._alone() as second:
        assert (first, second) == (True, False)
        assert deliver_due() == 0
    assert webhooks.claim() is not None
    assert webhooks.claim() is None
    change(lease_until=None)
    assert deliver_due() == 2


def test_what_leads_inside_by_now_is_not_sent(
    receiver: Receiver, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_endpoint(receiver.url)
    monkeypatch.delenv("LETHE_WEBHOOK_ALLOW_PRIVATE")
    forget_settings()
    tell(job_id)
    deliver_due()
    assert (only().status, only().error, receiver.requests) == ("pending", "address_refused", [])


def test_a_receiver_that_is_away_is_tried_again(receiver: Receiver, job_id: str) -> None:
    add_endpoint("http://127.0.0.1:1/")
    tell(job_id)
    deliver_due()
    assert (only().status, only().error, only().response_status) == ("pending", "connection_failed", None)


def test_a_secret_that_no_key_opens_sends_nothing_unsigned(receiver: Receiver, job_id: str) -> None:
    add_endpoint(receiver.url)
    tell(job_id)
    with new_session() as session, session.begin():
        session.execute(update(WebhookSecret).values(key_id="lost"))
    deliver_due()
    assert (only().status, only().error, receiver.requests) == ("pending", "secret_unreadable", [])


def test_an_endpoint_disabled_meanwhile_is_not_told(receiver: Receiver, job_id: str) -> None:
    add_endpoint(receiver.url)
    tell(job_id)
    with new_session() as session, session.begin():
        session.execute(update(WebhookEndpoint).values(enabled=False))
    deliver_due()
    assert (only().status, only().error, receiver.requests) == ("failed", "no_receiver", [])


def test_nothing_of_an_answer_is_kept_but_its_status(
    receiver: Receiver, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.body, receiver.statuses = b"jane.doe@example.org", [400]
    add_endpoint(receiver.url)
    tell(job_id)
    deliver_due()
    with engine().connect() as connection:
        row = connection.execute(text("SELECT row_to_json(d)::text FROM webhook_deliveries d")).scalar_one()
    assert json.loads(row)["response_status"] == 400
    assert "jane" not in row + capsys.readouterr().out


def test_ended_deliveries_are_forgotten_when_their_time_is_up(job_id: str) -> None:
    add_endpoint("https://dsr.example.com/")
    for _ in range(3):
        tell(job_id)
    old, recent, waiting = deliveries()
    with new_session() as session, session.begin():
        for delivery, days in ((old, 31), (recent, 29)):
            session.execute(life.end(delivery, "succeeded"))
            ended = func.now() - timedelta(days=days)
            statement = update(WebhookDelivery).where(WebhookDelivery.id == delivery.id)
            session.execute(statement.values(finished_at=ended))
    sweep()
    assert {delivery.id for delivery in deliveries()} == {recent.id, waiting.id}
