"""Requests that happen once: idempotency keys, and one job per person's request and adapter."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from app.idempotency.repository import sweep
from app.idempotency.tables import AcceptedRequest
from app.jobs import transitions
from app.jobs.quota import JobQuota
from app.jobs.tables import Run, UnlearnJob
from tests.app.conftest import caller, make_key, post_job, record, upload

pytestmark = pytest.mark.usefixtures("adapter")
MARKER = "Zanzibar-Quux-4711"


async def body_of(client: httpx.AsyncClient) -> dict[str, Any]:
    """A request by ids of datasets."""
    forget, retain = await upload(client, "forget", record("Ada")), await upload(client, "retain", record("Bob"))
    return {"adapter": "support-bot", "forget_set": forget, "retain_set": retain}


def jobs_stored(engine: Engine) -> int:
    """How many jobs there are."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(UnlearnJob)) or 0


def expire(engine: Engine) -> None:
    """Let the time of every key be over."""
    with Session(engine) as session, session.begin():
        session.execute(text("UPDATE accepted_requests SET expires_at = now() - interval '1 second'"))


async def test_fifty_equal_requests_at_once_make_one_job(client: httpx.AsyncClient, engine: Engine) -> None:
    body, headers = await body_of(client), {"Idempotency-Key": '"k-1"'}
    answers = await asyncio.gather(*(client.post("/unlearn-jobs", json=body, headers=headers) for _ in range(50)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} <= {"idempotency_key_in_use"}
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 409)
    again = await client.post("/unlearn-jobs", json=body, headers=headers)
    assert {answer.text for answer in answers if answer.status_code == 202} == {again.text}
    assert jobs_stored(engine) == 1


async def test_a_repeated_request_gets_the_first_answer_whatever_happened_since(client: httpx.AsyncClient) -> None:
    body = await body_of(client)
    first = await client.post("/unlearn-jobs", json=body, headers={"Idempotency-Key": '"a \\"b\\""'})
    assert "idempotency-replayed" not in first.headers
    assert first.headers["retry-after"]
    await client.post(f"{first.headers['location']}/cancel")
    # The bare form names the same key.
    again = await client.post("/unlearn-jobs", json=body, headers={"Idempotency-Key": 'a "b"'})
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"


async def test_a_key_that_comes_with_another_request_is_refused(client: httpx.AsyncClient, engine: Engine) -> None:
    body, headers = await body_of(client), {"Idempotency-Key": "k"}
    await client.post("/unlearn-jobs", json=body, headers=headers)
    other = await client.post("/unlearn-jobs", json={**body, "seed": 1}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert other.json()["errors"][0]["pointer"] == "/header/Idempotency-Key"
    assert jobs_stored(engine) == 1


async def test_a_request_in_flight_is_not_waited_for(client: httpx.AsyncClient, engine: Engine) -> None:
    body, headers = await body_of(client), {"Idempotency-Key": "k"}
    with engine.connect() as other:
        # Somebody else holds every key of this service.
        sent = (
            "SELECT pg_advisory_lock(7648, hashtext('ten_ours' || encode(key_digest, 'hex'))) FROM accepted_requests"
        )
        assert (await client.post("/unlearn-jobs", json=body, headers=headers)).status_code == 202
        other.execute(text(sent))
        with Session(engine) as session, session.begin():
            session.execute(text("DELETE FROM accepted_requests"))
        response = await client.post("/unlearn-jobs", json=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (409, "idempotency_key_in_use")
    engine.dispose()


async def test_keys_of_other_tenants_are_other_keys(client: httpx.AsyncClient, foreign: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k"}
    await client.post("/unlearn-jobs", json=await body_of(client), headers=headers)
    theirs = await foreign.post("/unlearn-jobs", json=await body_of(foreign), headers=headers)
    assert theirs.json()["errors"][0]["pointer"] == "/adapter"


async def test_a_key_is_forgotten_after_its_time(client: httpx.AsyncClient, engine: Engine) -> None:
    body, headers = await body_of(client), {"Idempotency-Key": "k"}
    first = await client.post("/unlearn-jobs", json=body, headers=headers)
    expire(engine)
    second = await client.post("/unlearn-jobs", json={**body, "seed": 1}, headers=headers)
    assert second.status_code == 202
    assert second.json()["id"] != first.json()["id"]
    with Session(engine) as session, session.begin():
        assert sweep(session, 10) == 0
    expire(engine)
    with Session(engine) as session, session.begin():
        assert sweep(session, 10) == 1


async def test_neither_records_nor_the_key_are_kept_in_clear(client: httpx.AsyncClient, engine: Engine) -> None:
    body = {"adapter": "support-bot", "forget_set": {"records": [record(MARKER)]}}
    body["retain_set"] = {"records": [record("Bob")]}
    response = await client.post("/unlearn-jobs", json=body, headers={"Idempotency-Key": MARKER})
    assert response.status_code == 202
    with Session(engine) as session:
        assert MARKER not in repr([vars(row) for row in session.scalars(select(AcceptedRequest))])


@pytest.mark.parametrize("header", ['"', '"a', '"a"b', '"\\a"', '""', "x" * 257, '"' + "x" * 257 + '"'])
async def test_a_key_that_is_none_is_refused(client: httpx.AsyncClient, header: str) -> None:
    response = await client.post("/unlearn-jobs", json=await body_of(client), headers={"Idempotency-Key": header})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/header/Idempotency-Key"


async def test_a_persons_request_has_one_job_per_adapter(client: httpx.AsyncClient, engine: Engine) -> None:
    answers = await asyncio.gather(*(post_job(client, subject_request_id="sr-1") for _ in range(8)))
    (first,) = (answer for answer in answers if answer.status_code == 202)
    refused = [answer for answer in answers if answer.status_code != 202]
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(409, "duplicate_request")}
    again = await post_job(client, subject_request_id="sr-1")
    assert again.headers["location"] == first.headers["location"]
    assert first.json()["id"] in again.json()["detail"]
    assert jobs_stored(engine) == 1


@pytest.mark.parametrize(("status", "code"), [("succeeded", 409), ("gate_failed", 202), ("failed", 202)])
async def test_a_request_may_be_sent_anew_once_its_job_has_ended_without_success(
    client: httpx.AsyncClient, engine: Engine, status: str, code: int
) -> None:
    job = (await post_job(client, subject_request_id="sr-1")).json()
    with Session(engine) as session, session.begin():
        session.get_one(Run, job["run_id"]).status = status
        session.execute(transitions.follow(job["run_id"], status)).all()
    assert (await post_job(client, subject_request_id="sr-1")).status_code == code


async def test_a_job_whose_request_was_sent_anew_cannot_be_retried(client: httpx.AsyncClient) -> None:
    job = (await post_job(client, subject_request_id="sr-1")).json()
    await client.post(f"/unlearn-jobs/{job['id']}/cancel")
    second = await post_job(client, subject_request_id="sr-1")
    response = await client.post(f"/unlearn-jobs/{job['id']}/retry")
    assert (response.status_code, response.json()["code"]) == (409, "duplicate_request")
    assert response.headers["location"] == second.headers["location"]


async def test_another_key_of_the_tenant_gets_the_first_answer_too(
    client: httpx.AsyncClient, engine: Engine, app: Any
) -> None:
    body, headers = await body_of(client), {"Idempotency-Key": "k"}
    first = await client.post("/unlearn-jobs", json=body, headers=headers)
    async with caller(app, make_key(engine, "ours")) as colleague:
        assert (await colleague.post("/unlearn-jobs", json=body, headers=headers)).content == first.content


async def test_a_full_tenant_gets_its_first_answers_again(client: httpx.AsyncClient, app: Any) -> None:
    body, headers = {**await body_of(client), "subject_request_id": "sr-1"}, {"Idempotency-Key": "k"}
    first = await client.post("/unlearn-jobs", json=body, headers=headers)
    app.state.job_quota = JobQuota(1)
    again = await client.post("/unlearn-jobs", json=body, headers=headers)
    assert (again.status_code, again.content) == (202, first.content)
    same = await client.post("/unlearn-jobs", json=body)
    assert (same.status_code, same.json()["code"]) == (409, "duplicate_request")
    assert same.headers["location"] == first.headers["location"]
    other = await client.post("/unlearn-jobs", json={**body, "subject_request_id": "sr-2"})
    assert (other.status_code, other.json()["code"]) == (429, "quota_exceeded")
