"""What an operator makes on the database: tenants, and keys for those who have none to make keys with."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.audit.record import append
from app.auth.keys import key_hash, new_key
from app.auth.repository import LIVE
from app.auth.scopes import ADMIN, Scope
from app.auth.tables import ApiKey, Tenant
from app.kit.db import make_engine
from app.kit.ids import new_id
from app.settings import Settings

DEFAULT_TENANT = "default"
TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class TenantError(Exception):
    """A tenant cannot be made or found; the text is for the operator."""


def ensure_first_key(settings: Settings) -> str | None:
    """Create the tenant "default" with one API key, unless somebody can make keys for that tenant already.

    Returns:
        The new key, which is not stored and cannot be shown again, or None when there was one.
    """
    with Session(_engine(settings)) as session, session.begin():
        tenant_id = _insert(session, DEFAULT_TENANT) or _locked(session, DEFAULT_TENANT)
        admins = select(ApiKey.id).where(ApiKey.tenant_id == tenant_id, ApiKey.scopes.contains([ADMIN]), LIVE)
        if session.scalar(admins.limit(1)) is not None:
            return None
        return add_key(session, tenant_id, "first key", settings.pepper)


def create_tenant(settings: Settings, name: str) -> str:
    """Create a tenant; its first key, which may do everything and cannot be shown again.

    Raises:
        TenantError: the name cannot be one, or is taken.
    """
    if not TENANT_NAME.fullmatch(name):
        raise TenantError("a tenant's name has 1 to 63 lower case letters, digits, '.', '_' and '-'")
    with Session(_engine(settings)) as session, session.begin():
        tenant_id = _insert(session, name)
        if tenant_id is None:
            raise TenantError("there is a tenant with this name; `lethe tenants add-key` makes another key for it")
        return add_key(session, tenant_id, "first key", settings.pepper)


def add_admin_key(settings: Settings, name: str) -> str:
    """A further key of a tenant that may do everything, for when all others are lost.

    Raises:
        TenantError: there is no such tenant.
    """
    with Session(_engine(settings)) as session, session.begin():
        return add_key(session, _locked(session, name), "operator's key", settings.pepper)


def tenants(settings: Settings) -> list[tuple[str, str]]:
    """Id and name of every tenant, the oldest first."""
    with Session(_engine(settings)) as session:
        rows = session.execute(select(Tenant.id, Tenant.name).order_by(Tenant.created_at, Tenant.id))
        return [(row.id, row.name) for row in rows]


def add_key(session: Session, tenant_id: str, name: str, pepper: bytes, scopes: Sequence[Scope] = (ADMIN,)) -> str:
    """Store a new key's hash and return the key."""
    key, key_id = new_key(), new_id("key")
    hashed = key_hash(key, pepper)
    session.add(ApiKey(id=key_id, tenant_id=tenant_id, name=name, hash=hashed, scopes=list(scopes)))
    append(session, tenant_id, "api_key.created", "api_key", key_id, {"scopes": list(scopes)})
    return key


def _insert(session: Session, name: str) -> str | None:
    """The id of a new tenant, or None where the name is taken, also by who makes it at this moment."""
    new = insert(Tenant).values(id=new_id("ten"), name=name).on_conflict_do_nothing().returning(Tenant.id)
    return session.scalar(new)


def _locked(session: Session, name: str) -> str:
    found = session.scalar(select(Tenant.id).where(Tenant.name == name).with_for_update())
    if found is None:
        raise TenantError("there is no such tenant; `lethe tenants list` names them")
    return found


def _engine(settings: Settings) -> Engine:
    return make_engine(settings.database_url.get_secret_value())
