"""The public halves of signing keys, kept from their first use on."""

from __future__ import annotations

from sqlalchemy import Select, func, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from app.attestations.schemas import KeyRead
from app.attestations.tables import SigningKey
from app.kit.signing import PublicKey

# Newest first. The service signs for all tenants with the same keys.
EVERY_KEY: Select[SigningKey] = select(SigningKey).order_by(SigningKey.created_at.desc(), SigningKey.id.desc())


def record_use(session: Session, key: PublicKey) -> None:
    """Note that a key signs. At its first use the key that signed so far is retired; it stays on the list.

    A worker that still runs with a retired key changes nothing: what it signs verifies.
    """
    first_use = postgresql.insert(SigningKey).values(id=key.key_id, public_key=key.raw)
    added = session.scalar(first_use.on_conflict_do_nothing().returning(SigningKey.id))
    if added is not None:
        others = update(SigningKey).where(SigningKey.id != key.key_id, SigningKey.retired_at.is_(None))
        session.execute(others.values(retired_at=func.now()))


def present_key(row: SigningKey) -> KeyRead:
    """The outside view."""
    key = PublicKey(row.public_key)
    return KeyRead(
        key_id=row.id,
        public_key=key.base64,
        public_key_pem=key.pem,
        created_at=row.created_at,
        retired_at=row.retired_at,
    )
