"""Erasure requests of privacy platforms."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from app.audit.tables import AuditEntry
from app.datasets.tables import Dataset
from app.identities import purging
from app.identities.tables import IdentityEntry
from app.jobs.tables import UnlearnJob
from app.opendsr.status import overall
from app.opendsr.tables import OpenDsrCallback
from app.settings import Settings
from tests.app.conftest import caller, make_key, post_adapter, record, upload
from tests.app.identities.indexes import email, everything_in, line, send_index, upload_index
from tests.app.opendsr.requests import UUID, post_request, request_body, status_of, verify
from tests.app.test_datasets import open_dataset

ADA, BOB = "ada.quill@example.org", "bob.larkin@example.org"
NUMBER = {"identity_type": "controller_customer_id", "identity_value": "C-4711"}
LINES = [
    line(email(ADA), NUMBER, records=[record("Ada"), {"text": "Ada Quill pays late."}]),
    line(email(ADA, "sha256"), records=[record("Ada"), {"text": "Ada Quill has a boat."}]),
    line(email(BOB), records=[record("Bob")]),
]


@pytest.fixture
async def index(client: httpx.AsyncClient, adapter: str) -> str:
    """An index of the adapter, whose jobs keep Cleo's and Dov's records."""
    retain_set = await upload(client, "retain", record("Cleo"), record("Dov"))
    return await upload_index(client, *LINES, retain_set=retain_set)


async def jobs(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """Every job."""
    found: list[dict[str, Any]] = (await client.get("/unlearn-jobs")).json()["data"]
    return found


def set_status(engine: Engine, *statuses: str) -> None:
    """Give the jobs these statuses, as workers would."""
    with Session(engine) as session, session.begin():
        ids = session.scalars(select(UnlearnJob.id).order_by(UnlearnJob.id)).all()
        for job_id, status in zip(ids, statuses, strict=True):
            session.execute(update(UnlearnJob).where(UnlearnJob.id == job_id).values(status=status))


def texts(settings: Settings, engine: Engine, dataset_id: str) -> set[str]:
    """The texts of a dataset's records."""
    return {json.dumps(one, sort_keys=True) for one in open_dataset(settings, engine, dataset_id)}


async def test_a_person_is_found_and_exactly_their_records_are_to_be_forgotten(
    client: httpx.AsyncClient, settings: Settings, engine: Engine, index: str
) -> None:
    response = await post_request(client, email(ADA))
    assert response.status_code == 201, response.text
    answer = response.json()
    assert answer["controller_id"] == "ten_ours"
    assert answer["subject_request_id"] == UUID
    assert json.loads(base64.b64decode(answer["encoded_request"])) == request_body(email(ADA))
    assert answer["expected_completion_time"] == "2026-02-28T12:00:00Z"
    [job] = await jobs(client)
    assert (job["adapter"], job["subject_request_id"], job["status"]) == ("support-bot", UUID, "queued")
    assert (job["requested_at"], job["due_at"]) == ("2026-01-31T12:00:00Z", "2026-02-28T12:00:00Z")
    wanted = [record("Ada"), {"text": "Ada Quill pays late."}, {"text": "Ada Quill has a boat."}]
    assert texts(settings, engine, job["forget_set"]) == {json.dumps(one, sort_keys=True) for one in wanted}
    found = await status_of(client)
    assert (found["request_status"], found["results_count"], found["results_url"]) == ("pending", 3, None)
    assert found["extensions"] == {
        "lethe.test": {"jobs": [{"id": job["id"], "adapter": "support-bot", "status": "queued"}]}
    }


@pytest.mark.parametrize("how", ["sha256", "sha1", "md5"])
async def test_a_person_is_found_by_a_digest_of_their_address(
    client: httpx.AsyncClient, index: str, how: str
) -> None:
    await post_request(client, email(BOB, how))
    assert (await status_of(client))["results_count"] == 1


async def test_every_answer_is_signed_under_the_certificate_that_discovery_names(
    client: httpx.AsyncClient, anonymous: httpx.AsyncClient, index: str
) -> None:
    discovery = await anonymous.get("/opendsr/v2/discovery")
    document = discovery.json()
    assert document["supported_subject_request_types"] == ["erasure"]
    assert {"identity_type": "email", "identity_format": "sha256"} in document["supported_identities"]
    assert document["processor_certificate"] == "https://lethe.test/opendsr/v2/certificate.pem"
    certificate = (await anonymous.get("/opendsr/v2/certificate.pem")).content
    assert b"PRIVATE" not in certificate
    created = await post_request(client, email(ADA))
    status = await client.get(f"/opendsr/v2/requests/{UUID}")
    cancelled = await client.delete(f"/opendsr/v2/requests/{UUID}")
    for response in (discovery, created, status, cancelled):
        verify(response.headers, response.content, certificate)
        assert response.headers["cache-control"] == "no-store"


async def test_a_person_whom_nobody_knows_is_done_at_once(client: httpx.AsyncClient, index: str) -> None:
    assert (await post_request(client, email("eve@example.org"))).status_code == 201
    found = await status_of(client)
    assert (found["request_status"], found["results_count"]) == ("completed", 0)
    assert found["expected_completion_time"] == "2026-02-28T12:00:00Z"
    assert await jobs(client) == []


async def test_a_person_in_two_adapters_gets_a_job_for_each(
    client: httpx.AsyncClient, engine: Engine, index: str
) -> None:
    await post_adapter(client, name="sales-bot")
    retain_set = await upload(client, "retain", record("Cleo"))
    for _ in range(2):  # two indexes of one adapter make one job
        await upload_index(client, LINES[0], adapter="sales-bot", retain_set=retain_set)
    await post_request(client, email(ADA))
    assert sorted(job["adapter"] for job in await jobs(client)) == ["sales-bot", "support-bot"]
    found = await status_of(client)
    assert (found["request_status"], found["results_count"]) == ("pending", 5)
    for statuses, expected in ((("running", "queued"), "in_progress"), (("succeeded", "succeeded"), "completed")):
        set_status(engine, *statuses)
        assert (await status_of(client))["request_status"] == expected


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], "completed"),
        (["queued"], "pending"),
        (["queued", "awaiting_approval"], "pending"),
        (["running", "queued"], "in_progress"),
        (["succeeded", "queued"], "in_progress"),
        (["succeeded", "failed"], "in_progress"),
        (["gate_failed", "cancelled"], "in_progress"),
        (["succeeded", "cancelled"], "cancelled"),
        (["succeeded", "succeeded"], "completed"),
    ],
)
def test_the_jobs_of_a_request_come_to_one_word(statuses: list[str], expected: str) -> None:
    assert overall(statuses) == expected


async def test_the_same_request_is_taken_once_however_often_it_is_sent(client: httpx.AsyncClient, index: str) -> None:
    answers = await asyncio.gather(*(post_request(client, email(ADA)) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert len(await jobs(client)) == 1


async def test_another_request_under_the_same_id_is_refused(client: httpx.AsyncClient, index: str) -> None:
    await post_request(client, email(ADA))
    for other in (request_body(email(BOB)), request_body(email(ADA), regulation="ccpa")):
        response = await client.post("/opendsr/v2/requests", json=other)
        assert response.status_code == 400
        assert "another request" in response.json()["error"]["message"]
    assert len(await jobs(client)) == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"subject_request_type": "access"}, "/subject_request_type"),
    ({"subject_request_type": "portability"}, "/subject_request_type"),
    ({"regulation": "hipaa"}, "/regulation"),
    ({"subject_request_id": "ada.quill"}, "/subject_request_id"),
    ({"subject_request_id": UUID.upper()}, "/subject_request_id"),
    ({"submitted_time": "2026-01-31T12:00:00"}, "/submitted_time"),
    ({"submitted_time": 1769860800}, "/submitted_time"),
    ({"submitted_time": "2999-01-01T00:00:00Z"}, "/submitted_time"),
    ({"subject_identities": []}, "/subject_identities"),
    ({"subject_identities": [{"identity_type": "email", "identity_value": ADA}]}, "/subject_identities/0"),
    ({"subject_identities": [email(ADA) | {"identity_type": "shoe"}]}, "/subject_identities/0/identity_type"),
    ({"api_version": "1.0"}, "/api_version"),
    ({"status_callback_urls": ["https://x.example", "ftp://ada.quill.example.org"]}, "/status_callback_urls/1"),
    ({"status_callback_urls": ["https://10.0.0.1/ada.quill"]}, "/status_callback_urls/0"),
    ({"ada.quill": 1}, ""),
]


async def test_what_cannot_be_carried_out_is_a_400_in_the_specifications_shape_and_quotes_nothing(
    client: httpx.AsyncClient, index: str
) -> None:
    for change, pointer in REFUSED:
        response = await client.post("/opendsr/v2/requests", json=request_body(email(ADA)) | change)
        assert response.status_code == 400, (change, response.text)
        error = response.json()["error"]
        assert (error["code"], error["errors"][0]["domain"]) == (400, "Validation")
        assert response.json()["errors"][0]["pointer"].startswith(pointer), (change, response.text)
        assert "quill" not in response.text.lower(), (change, response.text)
    broken = await client.post("/opendsr/v2/requests", content=b'{"regulation": ada.quill')
    assert (broken.status_code, "quill" in broken.text) == (400, False)
    assert await jobs(client) == []


async def test_callbacks_are_kept_once_for_a_request_that_is_sent_twice(
    client: httpx.AsyncClient, engine: Engine, index: str
) -> None:
    urls = ["https://platform.example/a", "https://platform.example/b", "https://platform.example/a"]
    for _ in range(2):
        assert (await post_request(client, email(ADA), status_callback_urls=urls)).status_code == 201
    with Session(engine) as session:
        kept = session.execute(select(OpenDsrCallback.url, OpenDsrCallback.told, OpenDsrCallback.tenant_id)).all()
    assert sorted(kept) == [(url, "pending", "ten_ours") for url in urls[:2]]


async def test_only_a_pending_request_can_be_cancelled(client: httpx.AsyncClient, engine: Engine, index: str) -> None:
    await post_request(client, email(ADA))
    set_status(engine, "running")
    assert (await client.delete(f"/opendsr/v2/requests/{UUID}")).status_code == 400
    set_status(engine, "queued")
    response = await client.delete(f"/opendsr/v2/requests/{UUID}")
    assert (response.status_code, response.json()["subject_request_id"]) == (202, UUID)
    assert [job["status"] for job in await jobs(client)] == ["cancelled"]
    assert (await status_of(client))["request_status"] == "cancelled"
    again = await client.delete(f"/opendsr/v2/requests/{UUID}")
    assert (again.status_code, again.json()["error"]["code"]) == (400, 400)
    with Session(engine) as session:
        actions = session.scalars(select(AuditEntry.action).where(AuditEntry.subject_type == "opendsr_request")).all()
    assert sorted(actions) == ["opendsr_request.accepted", "opendsr_request.cancelled"]


async def test_records_of_the_person_in_the_retain_set_are_left_out_of_it(
    client: httpx.AsyncClient, settings: Settings, engine: Engine, adapter: str
) -> None:
    retain_set = await upload(client, "retain", record("Ada"), record("Cleo"))
    await upload_index(client, LINES[0], retain_set=retain_set)
    assert (await post_request(client, email(ADA))).status_code == 201
    [job] = await jobs(client)
    assert job["retain_set"] != retain_set
    assert texts(settings, engine, job["retain_set"]) == {json.dumps(record("Cleo"), sort_keys=True)}


async def test_what_was_erased_is_found_no_more(client: httpx.AsyncClient, engine: Engine, index: str) -> None:
    await post_request(client, email(ADA))
    [job] = await jobs(client)
    with Session(engine) as session, session.begin():
        purging.shred_claimed(session, job["run_id"])
    with Session(engine) as session:
        assert [entry.number for entry in session.scalars(select(IdentityEntry))] == [3]
        receipt = session.scalars(
            select(AuditEntry).where(AuditEntry.action == "identity_index.entries_purged")
        ).one()
    assert (receipt.subject_id, receipt.data) == (index, {"run": job["run_id"], "entries": 2, "records": 4})
    assert (await client.get(f"/identity-indexes/{index}")).json()["remaining"] == 1
    # By the address, and by the number that stood on the same line.
    for identity in (email(ADA), NUMBER | {"identity_format": "raw"}):
        other = str(uuid4())
        await post_request(client, identity, request_id=other)
        assert (await status_of(client, other))["results_count"] == 0


async def test_two_tenants_know_nothing_of_each_others_people_and_requests(
    client: httpx.AsyncClient, foreign: httpx.AsyncClient, index: str
) -> None:
    await post_request(client, email(ADA))
    assert (await foreign.get(f"/opendsr/v2/requests/{UUID}")).status_code == 404
    assert (await foreign.delete(f"/opendsr/v2/requests/{UUID}")).status_code == 404
    # The same id is another request there, and the same person a stranger.
    assert (await post_request(foreign, email(ADA))).json()["controller_id"] == "ten_theirs"
    assert (await status_of(foreign))["results_count"] == 0
    assert (await status_of(client))["results_count"] == 3


async def test_who_asked_stands_nowhere(
    client: httpx.AsyncClient, settings: Settings, engine: Engine, index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await post_request(client, email(ADA), NUMBER | {"identity_format": "raw"})
    await post_request(client, email("eve.stranger@example.org"), request_id=str(uuid4()))
    await client.post("/opendsr/v2/requests", json=request_body(email(ADA)) | {"regulation": ADA})
    dump = everything_in(engine)
    assert UUID.encode() in dump
    printed = capsys.readouterr()
    stored = b"".join(path.read_bytes() for path in settings.storage_dir.rglob("*") if path.is_file())
    hashed = email(ADA, "sha256")["identity_value"]
    for secret in (ADA, "ada.quill", "eve.stranger", "C-4711", hashed, "Ada Quill"):
        assert secret.encode() not in dump + stored
        assert hashlib.sha256(secret.encode()).digest() not in dump
        assert secret not in printed.out + printed.err


async def test_a_key_that_may_only_read_cannot_ask_for_an_erasure(
    app: FastAPI, client: httpx.AsyncClient, engine: Engine, index: str
) -> None:
    await post_request(client, email(ADA))
    async with caller(app, make_key(engine, "ours", "jobs:read")) as reader:
        assert (await post_request(reader, email(BOB), request_id=str(uuid4()))).status_code == 403
        assert (await reader.delete(f"/opendsr/v2/requests/{UUID}")).status_code == 403
        assert (await status_of(reader))["request_status"] == "pending"


async def test_a_request_that_fails_leaves_nothing(
    client: httpx.AsyncClient, settings: Settings, engine: Engine, adapter: str
) -> None:
    retain_set = await upload(client, "retain", record("Cleo"))
    await send_index(client, LINES[2], retain_set=retain_set)
    with Session(engine) as session, session.begin():  # the clock is faster than the index
        session.execute(
            update(Dataset).where(Dataset.id == retain_set).values(wrapped_key=None, purged_at=func.now())
        )
    before = sum(1 for path in settings.storage_dir.rglob("*") if path.is_file())
    response = await post_request(client, email(BOB))
    assert (response.status_code, "purged" in response.json()["error"]["message"]) == (400, True)
    assert sum(1 for path in settings.storage_dir.rglob("*") if path.is_file()) == before
    assert (await client.get(f"/opendsr/v2/requests/{UUID}")).status_code == 404


async def test_without_credentials_opendsr_is_off(
    app: FastAPI, client: httpx.AsyncClient, settings: Settings
) -> None:
    app.state.settings = settings.model_copy(update={"opendsr_credentials": None})
    for response in (await client.get("/opendsr/v2/discovery"), await post_request(client, email(ADA))):
        assert response.status_code == 404
        assert "LETHE_OPENDSR_CREDENTIALS" in response.json()["detail"]
