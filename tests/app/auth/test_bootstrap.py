"""What an operator makes on the database."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, func, update
from sqlalchemy.orm import Session

from app.auth.bootstrap import TenantError, add_admin_key, create_tenant, ensure_first_key, tenants
from app.auth.tables import ApiKey
from app.settings import Settings
from tests.app.conftest import caller


async def test_a_new_tenant_starts_empty_with_a_key_that_may_do_everything(
    app: FastAPI, settings: Settings, client: httpx.AsyncClient
) -> None:
    async with caller(app, create_tenant(settings, "acme")) as acme:
        (key,) = (await acme.get("/api-keys")).json()["data"]
        assert key["scopes"] == ["admin"]
        assert [entry["subject"]["id"] for entry in (await acme.get("/audit")).json()["data"]] == [key["id"]]
    assert {name for _, name in tenants(settings)} == {"ours", "acme"}


@pytest.mark.parametrize("name", ["acme", "", "Acme", "a b", "a" * 64, "-a", "acme\n"])
def test_a_name_that_is_taken_or_cannot_be_one_makes_no_tenant(settings: Settings, name: str) -> None:
    create_tenant(settings, "acme")
    with pytest.raises(TenantError):
        create_tenant(settings, name)
    assert [name for _, name in tenants(settings)] == ["acme"]


async def test_a_tenant_that_has_lost_its_keys_gets_another(app: FastAPI, settings: Settings) -> None:
    create_tenant(settings, "acme")
    async with caller(app, add_admin_key(settings, "acme")) as acme:
        assert len((await acme.get("/api-keys")).json()["data"]) == 2
    with pytest.raises(TenantError):
        add_admin_key(settings, "nobody")


def test_the_first_key_is_made_again_when_nobody_can_make_keys_any_more(settings: Settings, engine: Engine) -> None:
    assert ensure_first_key(settings) is not None
    assert ensure_first_key(settings) is None
    for ended in ({"expires_at": func.now()}, {"revoked_at": func.now()}, {"scopes": ["jobs:read"]}):
        with Session(engine) as session, session.begin():
            session.execute(update(ApiKey).values(**ended))
        assert ensure_first_key(settings) is not None
