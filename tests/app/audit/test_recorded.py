"""What the web side records: every action, once, with whose key it was, and nothing that was in a record."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.adapters.tables import AdapterVersion
from app.auth.bootstrap import ensure_first_key
from app.auth.tables import ApiKey
from app.base_models.tables import BaseModelRow
from app.datasets.intake import salt_of, salted_digest
from app.jobs import transitions
from app.settings import Settings
from tests.app.audit.test_record import entries, findings
from tests.app.conftest import PEPPER, post_adapter, post_job, record, upload

MARKER = "zanzibar-quux-4711"


def recorded(engine: Engine, action: str) -> list[tuple[str, dict[str, Any]]]:
    """Subject and data of every entry of an action."""
    return [(entry.subject_id, entry.data) for entry in entries(engine) if entry.action == action]


def key_id(engine: Engine, tenant: str = "ten_ours") -> str:
    """The id of a tenant's key."""
    with Session(engine) as session:
        return session.scalars(select(ApiKey.id).where(ApiKey.tenant_id == tenant)).one()


async def test_a_key_is_recorded_by_its_id(client: httpx.AsyncClient, engine: Engine) -> None:
    (entry,) = entries(engine)
    assert (entry.action, entry.subject_type, entry.subject_id) == ("api_key.created", "api_key", key_id(engine))
    assert (entry.actor, entry.data) == ("system", {"scopes": ["admin"]})


def test_the_first_key_of_a_service_is_recorded_once(settings: Settings, engine: Engine) -> None:
    assert ensure_first_key(settings) is not None
    assert ensure_first_key(settings) is None
    with Session(engine) as session:
        key = session.scalars(select(ApiKey)).one()
    assert [entry.subject_id for entry in entries(engine, key.tenant_id)] == [key.id]


async def test_base_model_and_adapter_are_recorded_with_their_digests(
    client: httpx.AsyncClient, engine: Engine, adapter: str
) -> None:
    with Session(engine) as session:
        base = session.scalars(select(BaseModelRow)).one()
        version = session.scalars(select(AdapterVersion)).one()
    assert recorded(engine, "base_model.registered") == [
        (base.id, {"digest": base.digest, "parameters": base.parameters})
    ]
    data = {
        "base_model": base.id,
        "version": version.id,
        "number": 1,
        "weights_sha256": version.weights_sha256,
        "archive_sha256": version.archive_sha256,
    }
    assert recorded(engine, "adapter.registered") == [(version.adapter_id, data)]


async def test_a_dataset_is_recorded_by_a_digest_that_needs_the_salt(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    dataset = (await client.get(f"/datasets/{await upload(client, 'forget', record('Ada'))}")).json()
    ((subject, data),) = recorded(engine, "dataset.created")
    digest = salted_digest(dataset["sha256"], salt_of("ten_ours", PEPPER))
    assert subject == dataset["id"]
    assert data == {"purpose": "forget", "records": 1, "bytes": dataset["bytes"], "digest": digest}
    assert digest not in (dataset["sha256"], salted_digest(dataset["sha256"], salt_of("ten_theirs", PEPPER)))


async def test_a_purge_leaves_one_receipt_and_the_chain_whole(client: httpx.AsyncClient, engine: Engine) -> None:
    dataset = await upload(client, "forget", record("Ada"), record("Bob"))
    size = (await client.get(f"/datasets/{dataset}")).json()["bytes"]
    for _ in range(2):
        assert (await client.delete(f"/datasets/{dataset}")).status_code == 204
    assert recorded(engine, "dataset.purged") == [(dataset, {"purpose": "forget", "records": 2, "bytes": size})]
    assert entries(engine)[-1].actor == key_id(engine)
    assert findings(engine) == []


async def test_an_accepted_job_is_recorded_by_ids(client: httpx.AsyncClient, engine: Engine, adapter: str) -> None:
    job = (await post_job(client, seed=7, policy={"max_forget_probability": 0.01})).json()
    ((subject, data),) = recorded(engine, "job.accepted")
    with Session(engine) as session:
        adapter_id = session.scalars(select(AdapterVersion.adapter_id)).one()
    expected = {
        "run": job["run_id"],
        "adapter": adapter_id,
        "forget_set": job["forget_set"],
        "retain_set": job["retain_set"],
        "holdout_set": None,
        "control": None,
        "method": "blur",
        "policy": {"name": "default.tightened", "version": job["policy"]["version"]},
        "seed": 7,
    }
    assert subject == job["id"]
    assert data == expected
    assert [entry.action for entry in entries(engine)[-3:]] == ["dataset.created", "dataset.created", "job.accepted"]
    assert {entry.actor for entry in entries(engine)[-3:]} == {key_id(engine)}


async def test_cancelling_and_retrying_are_recorded_with_the_status(
    client: httpx.AsyncClient, engine: Engine, adapter: str
) -> None:
    job = (await post_job(client)).json()
    before = len(entries(engine))
    run = {"run": job["run_id"]}
    for call in ("cancel", "retry"):
        assert (await client.post(f"/unlearn-jobs/{job['id']}/{call}")).status_code == 202
    with Session(engine) as session, session.begin():
        assert session.scalars(transitions.claim(job["run_id"], "w", timedelta(seconds=60))).one()
        session.execute(transitions.follow(job["run_id"], "running")).all()
    assert (await client.post(f"/unlearn-jobs/{job['id']}/cancel")).status_code == 202
    assert (await client.post(f"/unlearn-jobs/{job['id']}/retry")).status_code == 409
    assert [(entry.action, entry.data) for entry in entries(engine)[before:]] == [
        ("job.cancel_requested", run),
        ("job.status", {"status": "cancelled"} | run),
        ("job.retried", run),
        ("job.status", {"status": "queued"} | run),
        ("job.cancel_requested", run),
    ]
    assert {entry.subject_id for entry in entries(engine)[before:]} == {job["id"]}
    assert {entry.actor for entry in entries(engine)[before:]} == {key_id(engine)}


async def test_a_request_that_fails_at_its_end_is_not_recorded(
    app: FastAPI, client: httpx.AsyncClient, engine: Engine, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(entries(engine))

    def fail(*_arguments: object) -> None:
        raise RuntimeError

    # The last thing that is done with a job that was stored.
    monkeypatch.setattr("app.jobs.endpoints.present", fail)
    assert (await post_job(client)).status_code == 500
    assert len(entries(engine)) == before


async def test_jobs_that_are_accepted_while_datasets_are_purged_do_not_block_each_other(
    client: httpx.AsyncClient, engine: Engine, adapter: str
) -> None:
    datasets = [await upload(client, "forget", record(f"Ada {number}")) for number in range(8)]
    calls = [client.delete(f"/datasets/{dataset}") for dataset in datasets]
    calls += [post_job(client, forget_set=dataset) for dataset in datasets]
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} <= {202, 204, 409, 422}
    assert findings(engine) == []
    done = [answer.status_code for answer in answers]
    assert len(recorded(engine, "dataset.purged")) == done.count(204)
    assert len(recorded(engine, "job.accepted")) == done.count(202)


async def test_nothing_that_a_caller_wrote_is_in_any_entry(
    client: httpx.AsyncClient, engine: Engine, adapter: str
) -> None:
    text = f"{MARKER} lives in Quell"
    marked = {"prompt": text, "completion": text, "id": MARKER, "subject": MARKER}
    assert (await post_adapter(client, name=MARKER)).status_code == 201
    await client.delete(f"/datasets/{await upload(client, 'forget', marked)}")
    job = await post_job(
        client,
        adapter=MARKER,
        forget_set={"records": [marked]},
        subject_request_id=MARKER,
        metadata={MARKER: MARKER},
    )
    assert job.status_code == 202
    await client.post(f"/unlearn-jobs/{job.json()['id']}/cancel")
    for path in ("/audit?limit=100", "/audit/export"):
        written = (await client.get(path)).text
        assert job.json()["id"] in written
        for word in (MARKER, "Quell", "support-bot", "acme", "test"):
            assert word not in written
