"""Uploading and purging identity indexes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.audit.tables import AuditEntry
from app.identities.tables import IdentityEntry, IdentityIndex
from app.jobs.tables import OutboxMessage
from app.settings import Settings
from tests.app.conftest import record, upload
from tests.app.identities.indexes import JSONL, email, everything_in, line, send_index, upload_index

ADA, BOB = email("ada.marker@example.org"), email("bob.marker@example.org", "sha256")
LINES = [line(ADA, records=[record("Ada"), {"text": "Ada-Marker-4711"}]), line(BOB, records=[record("Bob")])]


@pytest.fixture
async def retain_set(client: httpx.AsyncClient, adapter: str) -> str:
    """What the jobs of an index keep."""
    return await upload(client, "retain", record("Cleo"), record("Dov"))


def stored_files(settings: Settings) -> list[Path]:
    """The blobs of indexes."""
    return [path for path in settings.storage_dir.rglob("identity-indexes/*") if path.is_file()]


async def test_an_index_tells_counts_and_when_it_will_be_purged(
    client: httpx.AsyncClient, engine: Engine, retain_set: str
) -> None:
    found = (await send_index(client, *LINES, retain_set=retain_set)).json()
    assert (found["object"], found["adapter"], found["retain_set"]) == ("identity_index", "support-bot", retain_set)
    assert (found["entries"], found["remaining"], found["records"], found["purged_at"]) == (2, 2, 3, None)
    assert (await client.get(f"/identity-indexes/{found['id']}")).json() == found
    assert (await client.get("/identity-indexes")).json()["data"] == [found]
    with Session(engine) as session:
        index = session.get_one(IdentityIndex, found["id"])
        entries = session.scalars(select(AuditEntry).where(AuditEntry.subject_id == index.id)).all()
    assert index.purge_at - index.created_at == timedelta(days=90)
    assert [entry.action for entry in entries] == ["identity_index.created"]
    assert entries[0].data["records"] == 3


async def test_lines_that_arrive_in_pieces_are_put_together(client: httpx.AsyncClient, retain_set: str) -> None:
    body = "".join(json.dumps(one) + "\r\n\n" for one in LINES).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    query = {"adapter": "support-bot", "retain_set": retain_set}
    response = await client.post("/identity-indexes", content=pieces(), headers=JSONL, params=query)
    assert response.status_code == 201, response.text
    assert (response.json()["entries"], response.json()["bytes"]) == (2, len(body))


async def test_nothing_of_an_identity_or_record_lies_in_storage_or_database_in_clear(
    client: httpx.AsyncClient, settings: Settings, engine: Engine, retain_set: str
) -> None:
    await upload_index(client, *LINES, retain_set=retain_set)
    blobs = b"".join(path.read_bytes() for path in stored_files(settings))
    dump = everything_in(engine)
    for secret in ("marker", "Marker-4711", BOB["identity_value"]):
        assert secret.encode() not in blobs
        assert secret.encode() not in dump


BAD_LINES = [
    ("{", "not valid JSON"),
    ("[]", "not a JSON object"),
    ('{"identities": [], "records": []}', "identities: List should have at least 1 item"),
    (json.dumps(line(email("x@example.org"), records=[])), "records: List should have at least 1 item"),
    (json.dumps(line(email("x@example.org"), records=[{"prompt": "ada.marker"}])), "completion: Field required"),
    (json.dumps(line({"identity_type": "shoe", "identity_value": "ada.marker"}, records=["x"])), "identity_type"),
    (json.dumps(line(ADA | {"identity_format": "md5"}, records=["x"])), "must be 32 hexadecimal digits"),
    (json.dumps(line(ADA, records=[{"text": "x"}]) | {"ada.marker": 1}), "unknown field"),
]


async def test_bad_lines_are_named_and_quote_nothing_and_nothing_is_kept(
    client: httpx.AsyncClient, settings: Settings, retain_set: str
) -> None:
    query = {"adapter": "support-bot", "retain_set": retain_set}
    body = "\n".join([json.dumps(LINES[0]), *(bad for bad, _ in BAD_LINES)])
    response = await client.post("/identity-indexes", content=body, headers=JSONL, params=query)
    assert response.status_code == 422, response.text
    errors = response.json()["errors"]
    assert [error["pointer"] for error in errors] == [f"/lines/{number + 2}" for number in range(len(BAD_LINES))]
    assert [says for error, (_, says) in zip(errors, BAD_LINES, strict=True) if says not in error["detail"]] == []
    assert "ada.marker" not in response.text
    assert stored_files(settings) == []
    assert (await client.get("/identity-indexes")).json()["data"] == []


async def test_an_index_that_could_serve_no_job_is_refused(
    client: httpx.AsyncClient, settings: Settings, retain_set: str
) -> None:
    assert "empty" in (await send_index(client, retain_set=retain_set)).json()["detail"]
    unknown = await send_index(client, *LINES, adapter="nobody", retain_set=retain_set)
    assert unknown.json()["errors"][0]["pointer"] == "/query/adapter"
    for given in ({"retain_set": "ds_nowhere"}, {}):
        response = await send_index(client, *LINES, **given)
        assert response.status_code == 422
        assert response.json()["errors"][0]["pointer"] == "/query/retain_set"
    assert stored_files(settings) == []


async def test_too_many_records_too_long_lines_and_other_types_are_refused(
    client: httpx.AsyncClient, settings: Settings, retain_set: str
) -> None:
    for count, size in ((51, 10), (1, 5000)):
        lines = [line(ADA, records=[{"text": "x" * size}])] * count
        assert (await send_index(client, *lines, retain_set=retain_set)).status_code == 413
    assert (await client.post("/identity-indexes?adapter=support-bot", json={})).status_code == 415
    assert stored_files(settings) == []


async def test_purging_destroys_every_key_and_queues_the_blob_for_removal(
    client: httpx.AsyncClient, engine: Engine, retain_set: str
) -> None:
    index_id = await upload_index(client, *LINES, retain_set=retain_set)
    for _ in range(2):
        assert (await client.delete(f"/identity-indexes/{index_id}")).status_code == 204
    found = (await client.get(f"/identity-indexes/{index_id}")).json()
    assert found["purged_at"] is not None
    assert found["remaining"] == 0
    with Session(engine) as session:
        assert session.get_one(IdentityIndex, index_id).wrapped_key is None
        assert session.scalars(select(IdentityEntry)).all() == []
        assert session.scalars(select(OutboxMessage.argument)).all() == [index_id]
        receipts = session.scalars(select(AuditEntry).where(AuditEntry.action == "identity_index.purged")).all()
    assert [(receipt.subject_id, receipt.data["entries"]) for receipt in receipts] == [(index_id, 2)]


async def test_the_retain_set_of_an_index_stays_until_that_is_purged(
    client: httpx.AsyncClient, retain_set: str
) -> None:
    index_id = await upload_index(client, *LINES, retain_set=retain_set)
    refused = await client.delete(f"/datasets/{retain_set}")
    assert refused.status_code == 409
    assert index_id in refused.json()["detail"]
    await client.delete(f"/identity-indexes/{index_id}")
    assert (await client.delete(f"/datasets/{retain_set}")).status_code == 204
