"""The first tenant and its key."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.audit.record import append
from app.auth.keys import key_hash, new_key
from app.auth.scopes import ADMIN, Scope
from app.auth.tables import ApiKey, Tenant
from app.kit.db import make_engine
from app.kit.ids import new_id
from app.settings import Settings

DEFAULT_TENANT = "default"


def ensure_first_key(settings: Settings) -> str | None:
    """Create the tenant "default" with one API key, unless that tenant has a key already.

    Returns:
        The new key, which is not stored and cannot be shown again, or None when there was one.
    """
    engine = make_engine(settings.database_url.get_secret_value())
    with Session(engine) as session, session.begin():
        tenant = session.scalar(select(Tenant).where(Tenant.name == DEFAULT_TENANT).with_for_update())
        if tenant is None:
            tenant = Tenant(id=new_id("ten"), name=DEFAULT_TENANT)
            session.add(tenant)
            session.flush()
        live = select(ApiKey.id).where(ApiKey.tenant_id == tenant.id, ApiKey.revoked_at.is_(None)).limit(1)
        if session.scalar(live) is not None:
            return None
        return add_key(session, tenant.id, "first key", settings.pepper)


def add_key(session: Session, tenant_id: str, name: str, pepper: bytes, scopes: Sequence[Scope] = (ADMIN,)) -> str:
    """Store a new key's hash and return the key."""
    key, key_id = new_key(), new_id("key")
    hashed = key_hash(key, pepper)
    session.add(ApiKey(id=key_id, tenant_id=tenant_id, name=name, hash=hashed, scopes=list(scopes)))
    append(session, tenant_id, "api_key.created", "api_key", key_id)
    return key
