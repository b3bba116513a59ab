"""Making, listing, rotating and revoking API keys."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from app.auth.keys import key_hash
from app.auth.last_use import LastUse
from app.auth.repository import ApiKeyRepository
from app.auth.schemas import ApiKeyCreate
from app.auth.service import ApiKeyService
from app.auth.tables import ApiKey
from app.kit.db import make_async_engine
from app.kit.problems import Conflict, Forbidden
from tests.app.audit.test_record import entries
from tests.app.conftest import PEPPER, caller, make_key


async def make(client: httpx.AsyncClient, *scopes: str, **fields: Any) -> dict[str, Any]:
    """A new key as it was answered."""
    response = await client.post("/api-keys", json={"name": "portal", "scopes": scopes or ["jobs:read"], **fields})
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def status_with(app: FastAPI, key: str) -> int:
    """What a list of jobs answers to a key."""
    async with caller(app, key) as client:
        return (await client.get("/unlearn-jobs")).status_code


def change(engine: Engine, key_id: str, **values: Any) -> None:
    """Change a key behind the service's back."""
    with Session(engine) as session, session.begin():
        session.execute(update(ApiKey).where(ApiKey.id == key_id).values(**values))


def first_key(engine: Engine) -> str:
    """Id of the key that the client calls with."""
    with Session(engine) as session:
        return session.scalars(select(ApiKey.id).order_by(ApiKey.created_at).limit(1)).one()


async def test_a_new_key_does_what_its_scopes_allow_and_no_more(app: FastAPI, client: httpx.AsyncClient) -> None:
    made = await make(client, "jobs:read", "audit:read")
    assert made["scopes"] == ["jobs:read", "audit:read"]
    async with caller(app, made["key"]) as limited:
        assert (await limited.get("/unlearn-jobs")).status_code == 200
        assert (await limited.get("/audit")).status_code == 200
        assert (await limited.get("/adapters")).status_code == 403
        assert (await limited.post("/api-keys", json={"name": "x", "scopes": ["admin"]})).status_code == 403


async def test_a_secret_is_shown_once_and_kept_by_no_cache(client: httpx.AsyncClient, engine: Engine) -> None:
    response = await client.post("/api-keys", json={"name": "portal", "scopes": ["jobs:read"]})
    made = response.json()
    assert response.headers["cache-control"] == "no-store"
    shown = await client.get(f"/api-keys/{made['id']}")
    assert "key" not in shown.json()
    assert made["key"] not in shown.text + (await client.get("/api-keys")).text
    with Session(engine) as session:
        stored = session.get_one(ApiKey, made["id"])
        assert made["key"].encode() not in stored.hash
        assert stored.hash == key_hash(made["key"], PEPPER)


async def test_keys_are_listed_newest_first_with_the_revoked_ones(client: httpx.AsyncClient) -> None:
    one, two = await make(client, name="one"), await make(client, name="two")
    await client.post(f"/api-keys/{one['id']}/revoke")
    page = (await client.get("/api-keys?limit=2")).json()
    assert [key["name"] for key in page["data"]] == ["two", "one"]
    assert [key["revoked_at"] is None for key in page["data"]] == [True, False]
    rest = (await client.get(f"/api-keys?cursor={page['next_cursor']}")).json()
    assert [key["scopes"] for key in rest["data"]] == [["admin"]]
    assert two["id"] == page["data"][0]["id"]


async def test_a_key_that_cannot_be_made_says_why(client: httpx.AsyncClient) -> None:
    for body, pointer in [
        ({"name": "x", "scopes": []}, "/scopes"),
        ({"name": "x", "scopes": ["root"]}, "/scopes/0"),
        ({"name": "", "scopes": ["admin"]}, "/name"),
        ({"name": "x", "scopes": ["admin"], "expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"name": "x", "scopes": ["admin"], "expires_at": "2030-01-01T00:00:00"}, "/expires_at"),
        ({"name": "x", "scopes": ["admin"], "tenant_id": "ten_theirs"}, "/tenant_id"),
    ]:
        response = await client.post("/api-keys", json=body)
        assert response.status_code == 422, body
        assert response.json()["errors"][0]["pointer"] == pointer


async def test_an_expired_key_is_refused(app: FastAPI, client: httpx.AsyncClient, engine: Engine) -> None:
    made = await make(client, expires_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert await status_with(app, made["key"]) == 200
    change(engine, made["id"], expires_at=func.now() - timedelta(seconds=1))
    assert await status_with(app, made["key"]) == 401
    assert (await client.post(f"/api-keys/{made['id']}/rotate")).status_code == 409


async def test_a_revoked_key_is_refused_with_both_of_its_secrets(app: FastAPI, client: httpx.AsyncClient) -> None:
    made = await make(client)
    rotated = (await client.post(f"/api-keys/{made['id']}/rotate")).json()
    for _ in range(2):
        response = await client.post(f"/api-keys/{made['id']}/revoke")
        assert response.status_code == 200
        assert response.json()["revoked_at"] is not None
    assert [await status_with(app, key) for key in (made["key"], rotated["key"])] == [401, 401]
    assert (await client.post(f"/api-keys/{made['id']}/rotate")).status_code == 409


async def test_after_a_rotation_the_old_secret_is_good_for_a_day(
    app: FastAPI, client: httpx.AsyncClient, engine: Engine
) -> None:
    made = await make(client)
    response = await client.post(f"/api-keys/{made['id']}/rotate")
    rotated = response.json()
    assert response.headers["cache-control"] == "no-store"
    assert rotated["id"] == made["id"]
    spared = datetime.fromisoformat(rotated["previous_until"]) - datetime.fromisoformat(rotated["rotated_at"])
    assert spared == timedelta(days=1)
    assert [await status_with(app, key) for key in (made["key"], rotated["key"])] == [200, 200]
    change(engine, made["id"], previous_until=func.now() - timedelta(seconds=1))
    assert [await status_with(app, key) for key in (made["key"], rotated["key"])] == [401, 200]


async def test_a_rotation_without_grace_ends_the_old_secret_at_once(app: FastAPI, client: httpx.AsyncClient) -> None:
    made = await make(client)
    first = (await client.post(f"/api-keys/{made['id']}/rotate")).json()
    second = (await client.post(f"/api-keys/{made['id']}/rotate", json={"grace_seconds": 0})).json()
    assert second["previous_until"] is None
    assert [await status_with(app, key["key"]) for key in (made, first, second)] == [401, 401, 200]


async def test_the_last_live_admin_key_cannot_be_revoked(client: httpx.AsyncClient, engine: Engine) -> None:
    mine = first_key(engine)
    await make(client, "jobs:write")
    expired = await make(client, "admin")
    change(engine, expired["id"], expires_at=func.now() - timedelta(seconds=1))
    make_key(engine, "theirs")
    response = await client.post(f"/api-keys/{mine}/revoke")
    assert response.status_code == 409
    other = await make(client, "admin")
    assert (await client.post(f"/api-keys/{mine}/revoke")).status_code == 200
    assert (await client.get("/api-keys")).status_code == 401
    assert other["revoked_at"] is None


async def test_admins_who_revoke_each_other_at_the_same_time_leave_one(
    app: FastAPI, client: httpx.AsyncClient, engine: Engine
) -> None:
    mine, other = first_key(engine), (await make(client, "admin"))["id"]
    sessions = app.state.sessions

    async def revoke(key_id: str, session: AsyncSession) -> None:
        service = ApiKeyService(ApiKeyRepository(session, "ten_ours"), "ten_ours", ["admin"], PEPPER)
        async with session.begin():
            await service.revoke(key_id)

    waits = text("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    async with sessions() as one, sessions() as two:
        async with one.begin():
            await ApiKeyService(ApiKeyRepository(one, "ten_ours"), "ten_ours", ["admin"], PEPPER).revoke(mine)
            second = asyncio.create_task(revoke(other, two))
            with engine.connect() as looking:
                while not second.done() and looking.scalar(waits) is None:
                    looking.rollback()
                    await asyncio.sleep(0.01)
        with pytest.raises(Conflict):
            await second


async def test_nobody_grants_more_than_they_have(app: FastAPI) -> None:
    async with app.state.sessions() as session:
        service = ApiKeyService(ApiKeyRepository(session, "ten_ours"), "ten_ours", ["jobs:read"], PEPPER)
        with pytest.raises(Forbidden, match="cannot grant jobs:write admin"):
            await service.create(ApiKeyCreate(name="x", scopes=["jobs:read", "jobs:write", "admin"]))


async def test_the_life_of_a_key_is_in_the_audit_chain_by_its_id(client: httpx.AsyncClient, engine: Engine) -> None:
    made = await make(client, "jobs:write", "jobs:read", name="Jane Doe's laptop")
    await client.post(f"/api-keys/{made['id']}/rotate", json={"grace_seconds": 60})
    await client.post(f"/api-keys/{made['id']}/revoke")
    await client.post(f"/api-keys/{made['id']}/revoke")
    found = [entry for entry in entries(engine) if entry.subject_id == made["id"]]
    assert [(entry.action, entry.data) for entry in found] == [
        ("api_key.created", {"scopes": ["jobs:write", "jobs:read"]}),
        ("api_key.rotated", {"grace_seconds": 60}),
        ("api_key.revoked", {}),
    ]
    assert {entry.actor for entry in found} == {first_key(engine)}


async def test_secrets_are_never_logged(client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    made = await make(client)
    rotated = (await client.post(f"/api-keys/{made['id']}/rotate")).json()
    printed = "".join(capsys.readouterr())
    assert "/api-keys/{key_id}/rotate" in printed
    assert made["key"] not in printed
    assert rotated["key"] not in printed


async def test_the_last_use_is_written_once_a_minute(app: FastAPI, client: httpx.AsyncClient, engine: Engine) -> None:
    made = await make(client)

    async def last_use() -> str | None:
        await app.state.last_use.finish()
        used: str | None = (await client.get(f"/api-keys/{made['id']}")).json()["last_used_at"]
        return used

    assert await last_use() is None
    await status_with(app, made["key"])
    first = await last_use()
    assert first is not None
    await status_with(app, made["key"])
    assert await last_use() == first
    change(engine, made["id"], last_used_at=func.now() - timedelta(minutes=2))
    await status_with(app, made["key"])
    assert str(await last_use()) > first


async def test_a_last_use_that_cannot_be_written_fails_no_request(
    app: FastAPI, client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    made = await make(client)
    nowhere = make_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    app.state.last_use = LastUse(async_sessionmaker(nowhere))
    assert await status_with(app, made["key"]) == 200
    await app.state.last_use.finish()
    await nowhere.dispose()
    assert "last use of a key not written" in capsys.readouterr().out
