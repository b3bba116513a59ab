"""``/audit``: who sees which entries, and what is told of a chain that was tampered with."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from app.audit import repository, service
from app.audit.chain import Head, verify
from app.audit.record import append
from tests.app.audit.test_record import tampering
from tests.app.conftest import post_job, upload

CALLS = ("/audit", "/audit/verify", "/audit/export")


@pytest.fixture
def many(client: httpx.AsyncClient, engine: Engine) -> int:
    """A chain of 25 entries: the caller's key, and two dozen."""
    with Session(engine) as session, session.begin():
        for number in range(24):
            action = "dataset.purged" if number % 2 else "dataset.created"
            append(session, "ten_ours", action, "dataset", f"ds_{number}", {"records": number})  # type: ignore[arg-type] # one of the two
    return 25


async def get(client: httpx.AsyncClient, path: str, **query: Any) -> Any:
    """The JSON that a call answers."""
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", CALLS)
async def test_nobody_reads_a_chain_without_a_key(anonymous: httpx.AsyncClient, path: str) -> None:
    assert (await anonymous.get(path)).status_code == 401


async def test_a_tenant_sees_its_own_chain_alone(
    client: httpx.AsyncClient, foreign: httpx.AsyncClient, many: int
) -> None:
    page = await get(foreign, "/audit")
    assert [entry["action"] for entry in page["data"]] == ["api_key.created"]
    assert (await get(foreign, "/audit/verify"))["entries"] == 1
    exported = (await foreign.get("/audit/export")).text.splitlines()
    assert {json.loads(line)["tenant"] for line in exported} == {"ten_theirs"}
    assert (await get(foreign, "/audit", subject="ds_3"))["data"] == []


async def test_entries_are_listed_newest_first_and_paged(client: httpx.AsyncClient, many: int) -> None:
    seen: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = await get(client, "/audit", limit=10, **cursor)
        assert page["object"] == "list"
        seen += page["data"]
        if not page["has_more"]:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert page["next_cursor"] is None
    assert [entry["sequence"] for entry in seen] == list(range(many, 0, -1))
    newest = seen[0]
    assert (newest["object"], newest["tenant"], newest["action"]) == ("audit_entry", "ten_ours", "dataset.purged")
    assert (newest["subject"], newest["actor"]) == ({"type": "dataset", "id": "ds_23"}, "system")
    assert newest["previous_hash"] == seen[1]["hash"]
    assert list(verify(reversed(seen), Head(many, newest["hash"]))) == []


async def test_entries_are_filtered(client: httpx.AsyncClient, many: int) -> None:
    purged = await get(client, "/audit", action="dataset.purged", limit=100)
    assert [entry["subject"]["id"] for entry in purged["data"]] == [f"ds_{number}" for number in range(23, 0, -2)]
    page = await get(client, "/audit", action="dataset.purged", limit=5)
    rest = await get(client, "/audit", action="dataset.purged", limit=100, cursor=page["next_cursor"])
    assert page["data"] + rest["data"] == purged["data"]
    about = await get(client, "/audit", subject="ds_7")
    assert [entry["data"] for entry in about["data"]] == [{"records": 7}]
    assert (await get(client, "/audit", subject="ds_7", action="dataset.created"))["data"] == []


@pytest.mark.parametrize(
    "query",
    [{"action": "dataset.eaten"}, {"cursor": "x"}, {"cursor": "-1"}, {"limit": "101"}, {"subject": "x" * 129}],
)
async def test_a_question_that_makes_no_sense_is_refused(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    response = await client.get("/audit", params=query)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == f"/query/{next(iter(query))}"


async def test_a_chain_that_holds_says_so(
    client: httpx.AsyncClient, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = (await get(client, "/audit"))["data"][0]
    # Several batches, the last one full.
    for batch in (5, 7, 1000):
        monkeypatch.setattr(repository, "BATCH", batch)
        assert await get(client, "/audit/verify") == {
            "object": "audit_verification",
            "holds": True,
            "entries": many,
            "head": {"sequence": many, "hash": newest["hash"]},
            "findings": [],
            "more_findings": False,
        }


async def test_a_tampered_chain_names_what_is_wrong(client: httpx.AsyncClient, engine: Engine, many: int) -> None:
    with tampering(engine) as connection:
        connection.execute(text("UPDATE audit_entries SET actor = 'key_x' WHERE sequence = 4"))
        connection.execute(text("DELETE FROM audit_entries WHERE sequence BETWEEN 8 AND 9"))
    answer = await get(client, "/audit/verify")
    assert (answer["holds"], answer["entries"], answer["more_findings"]) == (False, 23, False)
    assert answer["findings"] == [
        {"sequence": 4, "kind": "hash_mismatch", "detail": "entry 4 does not have its hash: it was edited"},
        {"sequence": 8, "kind": "gap", "detail": "entries 8 to 9 are missing"},
    ]


async def test_findings_are_cut_at_a_hundred(
    client: httpx.AsyncClient, engine: Engine, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_FINDINGS", 3)
    monkeypatch.setattr(repository, "BATCH", 5)
    for count, cut in ((3, False), (4, True), (25, True)):
        with tampering(engine) as connection:
            edit = text("UPDATE audit_entries SET actor = 'key_x' WHERE sequence <= :count")
            connection.execute(edit, {"count": count})
        answer = await get(client, "/audit/verify")
        assert [finding["sequence"] for finding in answer["findings"]] == [1, 2, 3]
        assert (answer["holds"], answer["entries"], answer["more_findings"]) == (False, many, cut)


async def test_a_hash_that_was_noted_is_compared(client: httpx.AsyncClient, many: int) -> None:
    fifth = (await get(client, "/audit", limit=100))["data"][-5]
    assert (await get(client, "/audit/verify", known=f"5:{fifth['hash']}"))["holds"] is True
    answer = await get(client, "/audit/verify", known=f"6:{fifth['hash']}")
    assert [(finding["sequence"], finding["kind"]) for finding in answer["findings"]] == [(6, "replaced")]
    answer = await get(client, "/audit/verify", known=f"99:{fifth['hash']}")
    assert [(finding["sequence"], finding["kind"]) for finding in answer["findings"]] == [(99, "truncated")]
    for wrong in ("5", "5:abc", f"x:{fifth['hash']}"):
        assert (await client.get("/audit/verify", params={"known": wrong})).status_code == 422


async def test_entries_that_come_while_a_chain_is_verified_do_not_make_it_look_broken(
    client: httpx.AsyncClient, engine: Engine, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = repository.AuditRepository.head

    async def late(self: repository.AuditRepository) -> Head | None:
        with Session(engine) as session, session.begin():
            append(session, "ten_ours", "dataset.purged", "dataset", "ds_late")
        return await original(self)

    monkeypatch.setattr(repository.AuditRepository, "head", late)
    answer = await get(client, "/audit/verify")
    assert (answer["holds"], answer["entries"]) == (True, many)


async def test_the_exported_chain_is_whole_in_order_and_ends_with_the_head(
    client: httpx.AsyncClient, engine: Engine, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch in (5, 7, 1000):
        monkeypatch.setattr(repository, "BATCH", batch)
        response = await client.get("/audit/export")
        assert (response.status_code, response.headers["content-type"]) == (200, "application/jsonl")
        *entries, head = (json.loads(line) for line in response.text.splitlines())
        assert entries == (await get(client, "/audit", limit=100))["data"][::-1]
        assert head == {"object": "audit_head", "tenant": "ten_ours", "sequence": many, "hash": entries[-1]["hash"]}
        assert list(verify(entries, Head(head["sequence"], head["hash"]))) == []


async def test_entries_that_come_while_a_chain_is_exported_are_left_out(
    client: httpx.AsyncClient, engine: Engine, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = repository.AuditRepository.batch

    async def batch(self: repository.AuditRepository, after: int) -> Any:
        with Session(engine) as session, session.begin():
            append(session, "ten_ours", "dataset.purged", "dataset", "ds_late")
        return await original(self, after)

    monkeypatch.setattr(repository.AuditRepository, "batch", batch)
    *entries, head = (json.loads(line) for line in (await client.get("/audit/export")).text.splitlines())
    assert (len(entries), head["sequence"]) == (many, many)


async def test_an_export_of_a_chain_that_lost_its_end_ends_and_shows_it(
    client: httpx.AsyncClient, engine: Engine, many: int
) -> None:
    with tampering(engine) as connection:
        connection.execute(text("DELETE FROM audit_entries WHERE sequence > 20"))
    *entries, head = (json.loads(line) for line in (await client.get("/audit/export")).text.splitlines())
    findings = list(verify(entries, Head(head["sequence"], head["hash"])))
    assert [(finding.sequence, finding.kind) for finding in findings] == [(21, "truncated")]


async def test_verifying_holds_no_chain_in_memory(
    client: httpx.AsyncClient, engine: Engine, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "BATCH", 5)
    held: list[int] = []
    original = repository.AuditRepository.batch

    async def batch(self: repository.AuditRepository, after: int) -> Any:
        rows = await original(self, after)
        held.append(len(self._session.identity_map))
        return rows

    monkeypatch.setattr(repository.AuditRepository, "batch", batch)
    await get(client, "/audit/verify")
    assert len(held) == 6
    assert max(held) == 0


async def test_what_is_refused_is_not_recorded(client: httpx.AsyncClient, adapter: str) -> None:
    before = (await get(client, "/audit/verify"))["entries"]
    headers = {"Content-Type": "application/jsonl"}
    assert (await client.post("/datasets?purpose=forget", content=b"junk", headers=headers)).status_code == 422
    assert (await post_job(client, adapter="nobody")).status_code == 422
    used = await upload(client, "forget", {"text": "x"})
    assert (await post_job(client, forget_set=used)).status_code == 202
    after = (await get(client, "/audit/verify"))["entries"]
    assert (await client.delete(f"/datasets/{used}")).status_code == 409
    assert (await get(client, "/audit/verify"))["entries"] == after == before + 3
