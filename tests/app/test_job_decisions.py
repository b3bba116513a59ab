"""What people decide about a job: approval, and an extension of its deadline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from app.audit.tables import AuditEntry
from app.jobs import transitions
from app.jobs.tables import OutboxMessage, UnlearnJob
from app.kit.calendar import months_after
from app.main import create_app
from app.settings import Settings
from tests.app.conftest import caller, make_key, post_job

pytestmark = pytest.mark.usefixtures("adapter")
REASON = "Jane from legal said so"


@pytest.fixture
async def colleague(app: FastAPI, engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """Another key of our tenant."""
    async with caller(app, make_key(engine, "ours")) as other:
        yield other


async def waiting(client: httpx.AsyncClient) -> dict[str, Any]:
    """A job that waits for approval."""
    response = await post_job(client, policy={"requires_approval": True})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def messages(engine: Engine) -> int:
    """How many messages to workers there are."""
    with Session(engine) as session:
        return len(session.scalars(select(OutboxMessage)).all())


async def test_a_job_that_waits_for_approval_is_not_run(client: httpx.AsyncClient, engine: Engine) -> None:
    job = await waiting(client)
    assert (job["status"], job["approval"]["status"], job["progress"]["queue_position"]) == (
        "awaiting_approval",
        "pending",
        None,
    )
    assert messages(engine) == 0
    with Session(engine) as session, session.begin():
        assert session.scalars(transitions.claim(job["run_id"], "w", timedelta(seconds=60))).all() == []
    answer = await client.get(f"/unlearn-jobs/{job['id']}")
    assert answer.headers["retry-after"] == "60"
    assert (await client.delete(f"/datasets/{job['forget_set']}")).status_code == 409


async def test_another_key_approves(client: httpx.AsyncClient, colleague: httpx.AsyncClient, engine: Engine) -> None:
    job = await waiting(client)
    url = f"/unlearn-jobs/{job['id']}"
    own = await client.post(f"{url}/approve")
    assert (own.status_code, own.json()["code"]) == (403, "own_request")
    approved = (await colleague.post(f"{url}/approve", json={"reason": REASON})).json()
    assert (approved["status"], approved["approval"]["status"]) == ("queued", "approved")
    assert approved["approval"]["reason"] == REASON
    assert approved["approval"]["decided_by"] not in (None, approved["submitted_by"])
    assert messages(engine) == 1
    assert (await colleague.post(f"{url}/approve")).status_code == 409
    assert (await colleague.post(f"{url}/deny")).status_code == 409
    with Session(engine) as session:
        actions = session.scalars(select(AuditEntry.action).order_by(AuditEntry.sequence)).all()
        entries = repr(session.execute(select(AuditEntry.data, AuditEntry.action)).all())
    assert actions[-2:] == ["job.approved", "job.status"]
    events = (await client.get(f"{url}/events")).text
    assert "Jane" not in entries + events
    # What was approved once may be retried.
    await client.post(f"{url}/cancel")
    assert (await client.post(f"{url}/retry")).json()["status"] == "queued"


async def test_what_was_denied_ends_and_asks_again_when_it_is_retried(
    client: httpx.AsyncClient, colleague: httpx.AsyncClient, engine: Engine
) -> None:
    job = await waiting(client)
    url = f"/unlearn-jobs/{job['id']}"
    assert (await client.post(f"{url}/deny")).status_code == 403
    denied = (await colleague.post(f"{url}/deny")).json()
    assert (denied["status"], denied["error"]["code"], denied["approval"]["status"]) == (
        "cancelled",
        "denied",
        "denied",
    )
    assert denied["finished_at"] is not None
    again = (await client.post(f"{url}/retry")).json()
    assert (again["status"], again["error"], again["approval"]["status"]) == ("awaiting_approval", None, "pending")
    assert messages(engine) == 0
    assert (await client.post(f"{url}/cancel")).json()["status"] == "cancelled"


async def test_an_operator_can_have_every_job_approved(
    client: httpx.AsyncClient, settings: Settings, engine: Engine
) -> None:
    strict = create_app(settings.model_copy(update={"require_approval": True}))
    async with strict.router.lifespan_context(strict), caller(strict, make_key(engine, "ours")) as strictly:
        for policy in ("fast", {"requires_approval": False}):
            assert (await post_job(strictly, policy=policy)).json()["status"] == "awaiting_approval"
    assert (await post_job(client)).json()["approval"] is None


async def test_a_deadline_is_extended_once_by_two_months(client: httpx.AsyncClient, engine: Engine) -> None:
    asked = datetime.now(UTC) - timedelta(days=1)
    job = (await post_job(client, requested_at=asked.isoformat())).json()
    url = f"/unlearn-jobs/{job['id']}/extend"
    assert (await client.post(url, json={})).status_code == 422
    answer = await client.post(url, json={"reason": REASON})
    assert answer.status_code == 200, answer.text
    extended = answer.json()
    assert extended["original_due_at"] == job["due_at"]
    assert datetime.fromisoformat(extended["due_at"]) == months_after(datetime.fromisoformat(job["due_at"]), 2)
    assert (extended["extension_reason"], extended["extended_at"] is None) == (REASON, False)
    assert (await client.post(url, json={"reason": REASON})).status_code == 409
    with Session(engine) as session:
        entry = session.scalars(select(AuditEntry).order_by(AuditEntry.sequence.desc())).first()
    assert entry is not None
    assert (entry.action, entry.data["months"]) == ("job.extended", 2)


async def test_a_deadline_that_has_passed_is_not_extended(client: httpx.AsyncClient, engine: Engine) -> None:
    late = (await post_job(client, requested_at="2026-01-31T12:00:00Z")).json()
    assert (await client.post(f"/unlearn-jobs/{late['id']}/extend", json={"reason": "x"})).status_code == 409
    ended = (await post_job(client)).json()
    with Session(engine) as session, session.begin():
        session.execute(update(UnlearnJob).where(UnlearnJob.id == ended["id"]).values(status="succeeded"))
    assert (await client.post(f"/unlearn-jobs/{ended['id']}/extend", json={"reason": "x"})).status_code == 409
