"""Status callbacks of OpenDSR from the change of a job to the platform, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, combinations
from typing import Any, get_args

import pytest
from sqlalchemy import String, column, select, update, values

from app.jobs.schemas import Status
from app.jobs.tables import UnlearnJob
from app.kit.certificates import Credentials, self_signed
from app.kit.ids import new_id
from app.opendsr.status import overall, overall_of
from app.opendsr.tables import OpenDsrCallback, OpenDsrJob, OpenDsrRequest
from app.webhooks.tables import WebhookDelivery
from tests.app.kit.receivers import Received, Receiver, receiving
from tests.app.opendsr.requests import UUID, verify
from tests.conftest import forget_settings
from tests.worker.rows import TENANT, add_adapter, add_job, change
from worker.database import new_session
from worker.opendsr_callbacks import announce
from worker.webhooks import deliver_due

pytestmark = pytest.mark.usefixtures("service")
CREDENTIALS = self_signed("lethe.test", 2048)
CERTIFICATE = Credentials.parse(CREDENTIALS).chain_pem.encode()
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _speaking(service: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The light worker may sign, and may tell receivers on this machine."""
    monkeypatch.setenv("LETHE_WEBHOOK_ALLOW_PRIVATE", "127.0.0.0/8")
    monkeypatch.setenv("LETHE_OPENDSR_CREDENTIALS", CREDENTIALS)
    forget_settings()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A platform that takes everything."""
    with receiving() as server:
        yield server


@pytest.fixture
def jobs() -> list[UnlearnJob]:
    """Two queued jobs, on two adapters."""
    return [add_job(add_adapter(name)) for name in ("one", "two")]


def add_request(jobs: list[UnlearnJob], *urls: str) -> str:
    """A request on which these jobs work, with its callbacks."""
    request = OpenDsrRequest(
        id=new_id("dsr"), tenant_id=TENANT, subject_request_id=UUID, digest=b"", regulation="gdpr",
        api_version="2.0", results_count=3, submitted_at=NOW, due_at=NOW,
    )  # fmt: skip
    with new_session() as session, session.begin():
        session.add(request)
        session.flush()
        session.add_all(OpenDsrJob(request_id=request.id, job_id=job.id, tenant_id=TENANT) for job in jobs)
        for url in urls:
            session.add(OpenDsrCallback(id=new_id("dsc"), tenant_id=TENANT, request_id=request.id, url=url))
    return request.id


def told(receiver: Receiver) -> list[dict[str, Any]]:
    """The documents that came since the last look, each verified as platforms do."""
    documents = [document(request) for request in receiver.requests]
    receiver.requests.clear()
    return documents


def document(request: Received) -> dict[str, Any]:
    """The body of a callback whose signature holds."""
    headers = {name.title(): value for name, value in request.headers.items()}
    verify({name.replace("Opendsr", "OpenDSR"): value for name, value in headers.items()}, request.body, CERTIFICATE)
    read: dict[str, Any] = json.loads(request.body)
    return read


def deliveries() -> list[WebhookDelivery]:
    """All of them, oldest first."""
    with new_session() as session:
        return list(session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.created_at)))


def look() -> None:
    """What the light worker does every few seconds."""
    announce()
    deliver_due()


def test_both_ways_to_sum_up_jobs_agree_on_every_set_of_statuses() -> None:
    statuses = get_args(Status)
    sets = list(chain.from_iterable(combinations(statuses, size) for size in range(len(statuses) + 1)))
    rows = [(number, status) for number, found in enumerate(sets) for status in found or (None,)]
    table = values(column("number"), column("status", String), name="statuses").data(rows)
    with new_session() as session:
        summed = session.execute(select(table.c.number, overall_of(table.c.status)).group_by(table.c.number))
        found = {number: status for number, status in summed}  # noqa: C416 - typed, unlike dict(rows)
    assert found == {number: overall(found) for number, found in enumerate(sets)}
    assert set(found.values()) == {"pending", "in_progress", "completed", "cancelled"}


def test_every_callback_is_told_once_of_every_change(receiver: Receiver, jobs: list[UnlearnJob]) -> None:
    urls = [f"{receiver.url}?{number}" for number in range(2)]
    request_id = add_request(jobs, *urls)
    look()
    assert told(receiver) == []  # the receipt said that it is pending

    change(UnlearnJob, jobs[0].id, status="running")
    for _ in range(2):
        look()
    documents = told(receiver)
    assert sorted(one["status_callback_url"] for one in documents) == urls
    assert {one["request_status"] for one in documents} == {"in_progress"}
    change(UnlearnJob, jobs[0].id, status="succeeded")
    look()
    assert told(receiver) == []  # still in progress

    change(UnlearnJob, jobs[1].id, status="succeeded")
    for _ in range(2):
        look()
    documents = told(receiver)
    assert sorted(one["status_callback_url"] for one in documents) == urls
    shown = [
        {"id": job.id, "adapter": name, "status": "succeeded"} for job, name in zip(jobs, ("one", "two"), strict=True)
    ]
    for one in documents:
        assert one["extensions"] == {"lethe.test": {"jobs": shown}}
        assert (one["controller_id"], one["subject_request_id"], one["results_count"]) == (TENANT, UUID, 3)
        assert (one["request_status"], one["results_url"], one["api_version"]) == ("completed", None, "2.0")
    assert {(row.type, row.subject_id) for row in deliveries()} == {
        ("opendsr_request.in_progress", request_id), ("opendsr_request.completed", request_id)
    }  # fmt: skip


def test_a_request_about_a_person_whom_nobody_knows_is_done_at_once(receiver: Receiver) -> None:
    add_adapter()
    add_request([], receiver.url)
    look()
    assert [one["request_status"] for one in told(receiver)] == ["completed"]


def test_what_is_told_late_is_how_things_stand_then(receiver: Receiver, jobs: list[UnlearnJob]) -> None:
    receiver.statuses = [500, 200]
    add_request(jobs[:1], receiver.url)
    change(UnlearnJob, jobs[0].id, status="cancelled")
    look()
    assert [one["request_status"] for one in told(receiver)] == ["cancelled"]
    change(UnlearnJob, jobs[0].id, status="queued")
    with new_session() as session, session.begin():
        session.execute(update(WebhookDelivery).values(next_at=NOW))
    deliver_due()
    assert [one["request_status"] for one in told(receiver)] == ["pending"]


def test_a_worker_that_cannot_sign_loses_nothing(
    receiver: Receiver, jobs: list[UnlearnJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_request(jobs[:1], receiver.url)
    change(UnlearnJob, jobs[0].id, status="succeeded")
    monkeypatch.delenv("LETHE_OPENDSR_CREDENTIALS")
    forget_settings()
    look()
    [delivery] = deliveries()
    assert (delivery.status, delivery.error, receiver.requests) == ("pending", "secret_unreadable", [])
