"""Uploading, finding and purging datasets."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import zstandard
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from app.audit.tables import AuditEntry
from app.datasets.records import digest, validate_record
from app.datasets.schemas import Purpose
from app.datasets.tables import Dataset
from app.datasets.vault import Vault
from app.jobs.tables import OutboxMessage
from app.kit.crypto import CryptoError
from app.kit.storage import LocalStorage
from app.main import create_app
from app.settings import Settings
from tests.app.conftest import caller, make_key, post_job, record, serving, until, upload

JSONL = {"Content-Type": "application/jsonl"}
MARKER = "Zanzibar-Quux-4711"


async def send(client: httpx.AsyncClient, body: bytes, purpose: str = "forget") -> httpx.Response:
    """Upload raw bytes."""
    return await client.post(f"/datasets?purpose={purpose}", content=body, headers=JSONL)


def stored_files(settings: Settings) -> list[Path]:
    """Everything that lies in the storage."""
    return [path for path in settings.storage_dir.rglob("*") if path.is_file()]


def open_dataset(settings: Settings, engine: Engine, dataset_id: str) -> list[dict[str, Any]]:
    """The records as a worker reads them."""
    with Session(engine) as session:
        dataset = session.get_one(Dataset, dataset_id)
    lines = Vault(LocalStorage(settings.storage_dir), settings.key_ring).lines(dataset)
    return [json.loads(line) for line in lines]


async def test_records_are_counted_digested_and_can_be_read_by_a_worker(
    client: httpx.AsyncClient, settings: Settings, engine: Engine
) -> None:
    records = [
        {"prompt": "p", "completion": "c", "id": "1", "subject": "s"},
        {"prompt": "p", "completion": "c", "paraphrase": "d", "perturbed": ["e", "f"]},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
        {"text": "naïve ☃"},
    ]
    body = b"\n".join(json.dumps(record).encode() for record in records) + b"\n\n"
    response = await send(client, body)
    assert response.status_code == 201
    found = response.json()
    assert (found["object"], found["purpose"], found["records"]) == ("dataset", "forget", len(records))
    assert found["bytes"] == len(body)
    assert found["sha256"] == hashlib.sha256(body).hexdigest()
    assert open_dataset(settings, engine, found["id"]) == records
    assert (await client.get(f"/datasets/{found['id']}")).json() == found


async def test_the_purge_date_is_the_retention_time_away(client: httpx.AsyncClient, engine: Engine) -> None:
    dataset_id = await upload(client, "forget", {"text": "x"})
    with Session(engine) as session:
        dataset = session.get_one(Dataset, dataset_id)
    assert dataset.purge_at - dataset.created_at == timedelta(days=30)


async def test_a_multipart_file_is_taken_as_well(client: httpx.AsyncClient) -> None:
    files = {"file": ("records.jsonl", b'{"text": "x"}\n{"text": "y"}')}
    response = await client.post("/datasets?purpose=retain", files=files)
    assert response.status_code == 201
    assert response.json()["records"] == 2


async def test_a_multipart_body_of_many_pieces_is_put_together(client: httpx.AsyncClient) -> None:
    line = json.dumps({"text": "x" * 50}).encode() + b"\n"
    head = b'--b\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    body = head + line * 20 + b"\r\n--b--\r\n"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    response = await client.post("/datasets?purpose=retain", content=pieces(), headers=kind)
    assert response.status_code == 201, response.text
    assert (response.json()["records"], response.json()["bytes"]) == (20, 20 * len(line))


@pytest.mark.parametrize("kind", ["boundary=b", "boundary=b; charset=undefined", "", "boundary="])
async def test_a_malformed_multipart_body_is_refused(
    client: httpx.AsyncClient, settings: Settings, kind: str
) -> None:
    headers = {"Content-Type": f"multipart/form-data; {kind}"}
    response = await client.post("/datasets?purpose=retain", content=b"no boundary here", headers=headers)
    assert response.status_code == 400
    assert stored_files(settings) == []


async def test_a_multipart_file_never_lies_on_disk_in_clear(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a temporary file was made")

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", refuse)
    files = {"file": ("records.jsonl", b'{"text": "x"}\n')}
    assert (await client.post("/datasets?purpose=retain", files=files)).status_code == 201


async def test_nothing_of_a_record_lies_in_storage_or_database_in_clear(
    client: httpx.AsyncClient, settings: Settings, engine: Engine
) -> None:
    await upload(client, "forget", {"prompt": MARKER, "completion": MARKER})
    files = stored_files(settings)
    assert len(files) == 2
    assert not any(MARKER.encode() in path.read_bytes() for path in files)
    with engine.connect() as connection:
        row = connection.execute(text("SELECT datasets::text FROM datasets")).scalar_one()
    assert MARKER not in row


@pytest.mark.parametrize(
    ("body", "pointer", "says"),
    [
        (b'{"text": "x"}\n{"text": \n', "/lines/2", "not valid JSON"),
        (b'\n\n["a"]\n', "/lines/3", "not a JSON object"),
        (b'{"prompt": "p"}', "/lines/1", "completion: Field required"),
        (b'{"completion": "p"}', "/lines/1", "prompt: Field required"),
        (b'{"prompt": "p", "completion": ""}', "/lines/1", "at least 1 character"),
        (b'{"prompt": "p", "completion": 3}', "/lines/1", "valid string"),
        (b'{"prompt": "p", "completion": "c", "perturbed": []}', "/lines/1", "at least 1 item"),
        (b'{"prompt": "p", "completion": "c", "paraphrase": ""}', "/lines/1", "at least 1 character"),
        (b'{"text": "x", "perturbed": ["y"]}', "/lines/1", "unknown field"),
        (b'{"messages": []}', "/lines/1", "at least 1 item"),
        (b'{"messages": [{"role": "user", "content": "u"}]}', "/lines/1", "must be the assistant's"),
        (b'{"messages": [{"role": "elf", "content": "u"}]}', "/lines/1", "messages.0.role"),
        (b'{"text": "x", "colour": "red"}', "/lines/1", "unknown field"),
        (b'{"question": "x"}', "/lines/1", 'a record is {"prompt"'),
        (b'{"text": "\\ud800"}', "/lines/1", "unicode"),
        (b'{"text": "\xff"}', "/lines/1", "not valid JSON"),
        (b"[" * 100_000, "/lines/1", "exceeds"),
        (b'{"text": ' + b"[" * 4000, "/lines/1", "nested more than 16 deep"),
        (b'{"text": ' + b'{"a": ' * 300 + b"1" + b"}" * 301, "/lines/1", "nested more than 16 deep"),
        (gzip.compress(b'{"text": "x"}'), "/lines/1", "not valid JSON"),
    ],
)
async def test_a_bad_line_is_named_and_nothing_is_kept(
    client: httpx.AsyncClient, settings: Settings, body: bytes, pointer: str, says: str
) -> None:
    response = await send(client, body)
    problem = response.json()
    if response.status_code == 413:
        assert says in problem["detail"]
    else:
        assert response.status_code == 422
        assert problem["errors"][0]["pointer"] == pointer
        assert says in problem["errors"][0]["detail"]
    assert stored_files(settings) == []
    assert (await client.get("/datasets")).json()["data"] == []


async def test_errors_name_the_first_twenty_lines_and_quote_none(client: httpx.AsyncClient) -> None:
    response = await send(client, (json.dumps({"prompt": MARKER}) + "\n").encode() * 30)
    problem = response.json()
    assert [error["pointer"] for error in problem["errors"]] == [f"/lines/{line}" for line in range(1, 21)]
    assert problem["detail"].startswith("at least 20 of the first 20 lines cannot be taken; line 1: ")
    assert MARKER not in response.text


async def test_all_bad_lines_are_counted_when_there_are_few(client: httpx.AsyncClient) -> None:
    body = b'{"text": "x"}\n{}\n\n{"text": "y"}\n[]\n'
    problem = (await send(client, body)).json()
    assert [error["pointer"] for error in problem["errors"]] == ["/lines/2", "/lines/5"]
    assert problem["detail"].startswith("2 of 5 lines cannot be taken; line 2: ")


async def test_a_line_that_is_too_long_is_named(client: httpx.AsyncClient, settings: Settings) -> None:
    long = json.dumps({"text": "x" * settings.max_record_bytes}).encode()
    for body in (b'{"text": "x"}\n' + long, b'{"text": "x"}\n' + long + b"\n{}"):
        response = await send(client, body)
        assert response.status_code == 413
        assert response.json()["errors"] == [{"pointer": "/lines/2", "detail": "line 2 exceeds 4096 bytes"}]
    assert stored_files(settings) == []


async def test_what_looks_like_nesting_inside_a_text_is_none(client: httpx.AsyncClient) -> None:
    assert (await send(client, json.dumps({"text": '[{"\\' * 300}).encode())).status_code == 201


async def test_blank_lines_are_bounded_too(client: httpx.AsyncClient) -> None:
    response = await send(client, b'{"text": "x"}' + b"\n" * 60)
    assert response.status_code == 413
    assert "more than 50 blank lines" in response.json()["detail"]


async def test_equal_records_of_a_set_are_counted(client: httpx.AsyncClient) -> None:
    same = [{"text": "x"}, {"id": "1", "text": "x"}, {"text": "y"}, {"subject": "s", "text": "x"}]
    body = "\n".join(map(json.dumps, same)).encode()
    assert (await send(client, body)).json()["duplicates"] == 2
    assert (await send(client, b'{"text": "x"}\n{"text": "y"}')).json()["duplicates"] == 0


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "identity": bytes,
}


@pytest.mark.parametrize("coding", PACKERS)
async def test_a_compressed_upload_is_the_same_dataset(client: httpx.AsyncClient, coding: str) -> None:
    body = b'{"text": "x"}\n{"text": "y"}\n'
    headers = JSONL | {"Content-Encoding": coding}
    response = await client.post("/datasets?purpose=forget", content=PACKERS[coding](body), headers=headers)
    assert response.status_code == 201, response.text
    found = response.json()
    assert (found["records"], found["bytes"], found["sha256"]) == (2, len(body), hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize("coding", PACKERS)
async def test_a_compressed_file_in_a_form_is_unpacked(client: httpx.AsyncClient, coding: str) -> None:
    packed = PACKERS[coding](b'{"text": "x"}\n' * 2)
    response = await client.post("/datasets?purpose=retain", files={"file": ("records.jsonl.x", packed)})
    assert (response.status_code, response.json()["records"]) == (201, 2), response.text


async def test_a_form_may_be_compressed_as_a_whole(client: httpx.AsyncClient) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n{"text": "x"}\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"}
    response = await client.post("/datasets?purpose=retain", content=gzip.compress(form), headers=headers)
    assert (response.status_code, response.json()["bytes"]) == (201, 13), response.text


@pytest.mark.parametrize(
    ("coding", "body", "status", "says"),
    [
        ("br", b"x", 415, "gzip, zstd"),
        ("gzip", b'{"text": "x"}', 422, "not valid gzip"),
        ("gzip", gzip.compress(b'{"text": "x"}')[:-1], 422, "too early"),
        ("zstd", PACKERS["zstd"](b'{"text": "x"}')[:-1], 422, "too early"),
        ("gzip", gzip.compress(b'{"text": "' + b"x" * 3000 + b'"}\n' * 10_000), 422, "line 2"),
        ("gzip", gzip.compress(b"\n" * 40 + b" " * 4_000_000), 413, "line 41 exceeds"),
        ("zstd", PACKERS["zstd"]((b" " * 4000 + b"\n") * 40 + b'{"text": "' + bytes(4_000_000)), 413, "line 41"),
    ],
)
async def test_a_bad_compressed_upload_is_refused_and_nothing_is_kept(
    client: httpx.AsyncClient, settings: Settings, coding: str, body: bytes, status: int, says: str
) -> None:
    headers = JSONL | {"Content-Encoding": coding}
    response = await client.post("/datasets?purpose=forget", content=body, headers=headers)
    assert response.status_code == status, response.text
    assert says in response.json()["detail"]
    assert response.headers.get("accept-encoding") == ("gzip, zstd" if status == 415 else None)
    assert list(settings.storage_dir.rglob("ds_*")) == []


async def test_a_form_that_ends_before_its_last_boundary_is_refused(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n{"text": "x"}\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    response = await client.post("/datasets?purpose=forget", content=body, headers=kind)
    assert (response.status_code, "too early" in response.json()["detail"]) == (400, True)
    assert list(settings.storage_dir.rglob("ds_*")) == []


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_upload_whose_connection_drops_leaves_nothing_behind(
    settings: Settings, engine: Engine, client: httpx.AsyncClient, chunked: bool
) -> None:
    line = b'{"text": "' + b"x" * 3000 + b'"}\n'
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000000"
    head = b"POST /datasets?purpose=forget HTTP/1.1\r\nHost: lethe.test\r\nContent-Type: application/jsonl\r\n"
    head += b"Authorization: " + client.headers["authorization"].encode() + b"\r\n" + length + b"\r\n\r\n"
    async with serving(settings) as (host, port):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(head + (b"%x\r\n%b\r\n" % (len(line), line) if chunked else line))
        await writer.drain()
        await until(lambda: len(stored_files(settings)) == 2)
        writer.close()
        await writer.wait_closed()
        await until(lambda: list(settings.storage_dir.rglob("ds_*")) == [])
    with Session(engine) as session:
        assert session.query(Dataset).count() == 0
        assert session.query(AuditEntry).filter_by(action="dataset.created").count() == 0


@pytest.mark.parametrize("body", [b"", b"\n \n"])
async def test_an_empty_dataset_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    response = await send(client, body)
    assert response.status_code == 422
    assert "empty" in response.json()["detail"]


async def test_too_many_records_are_refused_with_the_limit(client: httpx.AsyncClient, settings: Settings) -> None:
    response = await send(client, b'{"text": "x"}\n' * 51)
    assert response.status_code == 413
    assert "50" in response.json()["detail"]
    assert stored_files(settings) == []


async def test_other_content_types_are_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/datasets?purpose=forget", json=[{"text": "x"}])
    assert response.status_code == 415
    response = await client.post("/datasets?purpose=forget", files={"other": ("x", b"{}")})
    assert response.json()["errors"][0]["pointer"] == "/file"


async def test_an_unknown_purpose_is_refused(client: httpx.AsyncClient) -> None:
    assert (await send(client, b'{"text": "x"}', "forgive")).status_code == 422


async def test_purging_destroys_the_key_and_queues_the_blobs_for_removal(
    client: httpx.AsyncClient, settings: Settings, engine: Engine
) -> None:
    dataset_id = await upload(client, "forget", {"text": "x"})
    assert (await client.delete(f"/datasets/{dataset_id}")).status_code == 204
    with pytest.raises(CryptoError, match="purged"):
        open_dataset(settings, engine, dataset_id)
    with Session(engine) as session:
        assert session.get_one(Dataset, dataset_id).wrapped_key is None
        assert session.query(OutboxMessage.argument).all() == [(dataset_id,)]
    assert (await client.get(f"/datasets/{dataset_id}")).json()["purged_at"] is not None
    assert (await client.delete(f"/datasets/{dataset_id}")).status_code == 204


async def test_a_dataset_that_a_live_job_needs_is_not_purged(client: httpx.AsyncClient, adapter: str) -> None:
    dataset_id = await upload(client, "forget", record("Ada"))
    job = (await post_job(client, forget_set=dataset_id)).json()["id"]
    response = await client.delete(f"/datasets/{dataset_id}")
    assert response.status_code == 409
    assert job in response.json()["detail"]
    await client.post(f"/unlearn-jobs/{job}/cancel")
    assert (await client.delete(f"/datasets/{dataset_id}")).status_code == 204


async def test_a_list_is_paged_by_cursor_newest_first(client: httpx.AsyncClient) -> None:
    ids = [await upload(client, "retain", {"text": str(number)}) for number in range(5)]
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/datasets", params=query)).json()
        seen += [item["id"] for item in page["data"]]
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
        if cursor is None:
            break
    assert seen == ids[::-1]


@pytest.mark.parametrize("cursor", ["x", "bm90IGpzb24", "WyIyMDI2IiwgMV0", "é"])
async def test_a_foreign_cursor_is_refused(client: httpx.AsyncClient, cursor: str) -> None:
    response = await client.get("/datasets", params={"cursor": cursor})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/query/cursor"


def test_what_is_only_about_a_record_does_not_make_it_another() -> None:
    plain = {"prompt": "p", "completion": "c"}
    about = {"id": "1", "subject": "s", "paraphrase": "d", "perturbed": ["e"]}
    same = {digest(validate_record(record), b"salt") for record in (plain, plain | about)}
    assert len(same) == 1
    assert digest(validate_record(plain | {"completion": "d"}), b"salt") not in same


@pytest.mark.parametrize("purpose", ["forget", "retain", "holdout"])
async def test_each_purpose_has_its_own_retention(settings: Settings, engine: Engine, purpose: Purpose) -> None:
    own = settings.model_copy(update={f"{purpose}_retention_days": 3, "dataset_retention_days": 8})
    app = create_app(own)
    async with app.router.lifespan_context(app), caller(app, make_key(engine, "ours")) as client:
        for uploaded in get_args(Purpose):
            found = (await client.get(f"/datasets/{await upload(client, uploaded, {'text': 'x'})}")).json()
            days = datetime.fromisoformat(found["purge_at"]) - datetime.fromisoformat(found["created_at"])
            assert days == timedelta(days=3 if uploaded == purpose else 8)


async def test_a_dataset_may_be_purged_earlier(client: httpx.AsyncClient) -> None:
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    url = httpx.URL("/datasets", params={"purpose": "forget", "purge_at": at.isoformat()})
    response = await client.post(url, content=b'{"text": "x"}', headers=JSONL)
    assert datetime.fromisoformat(response.json()["purge_at"]) == at


@pytest.mark.parametrize("away", [timedelta(days=31), timedelta(days=-1)])
async def test_a_dataset_may_not_be_kept_longer_nor_be_purged_before_it_came(
    client: httpx.AsyncClient, settings: Settings, away: timedelta
) -> None:
    at = (datetime.now(UTC) + away).isoformat()
    url = httpx.URL("/datasets", params={"purpose": "forget", "purge_at": at})
    response = await client.post(url, content=b'{"text": "x"}', headers=JSONL)
    assert response.status_code == 422
    assert response.json()["errors"] == [{"pointer": "/query/purge_at", "detail": "must lie within the next 30 days"}]
    assert not settings.storage_dir.exists() or stored_files(settings) == []
