"""What the light worker does for identity indexes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.audit.tables import AuditEntry
from app.identities.tables import IdentityClaim, IdentityEntry, IdentityIndex
from app.jobs.tables import OutboxMessage
from app.settings import get_settings
from tests.worker.conftest import Tiny
from tests.worker.rows import TENANT, add_adapter, add_dataset, change
from tests.worker.tiny_jobs import OPEN, SHUT, add_tiny_adapter, tiny_job
from worker.database import new_session, storage
from worker.execution import execute
from worker.housekeeping import purge_datasets
from worker.identity_upkeep import delete_blob, purge_due
from worker.recipe import carry_out

pytestmark = pytest.mark.usefixtures("service")
NOW = datetime.now(UTC)


def add_index(index_id: str, purge_at: datetime, retain_set: str | None = None, entries: int = 1) -> None:
    """An index of an adapter of its own."""
    key = f"tenants/{TENANT}/identity-indexes/{index_id}"
    with storage().create(key) as sink:
        sink.write(b"sealed")
    index = IdentityIndex(
        id=index_id, tenant_id=TENANT, adapter_id=add_adapter(index_id).id, retain_set_id=retain_set, entries=entries,
        remaining=entries, records=1, size=6, blob_key=key, key_id="k1", wrapped_key=b"wrapped", purge_at=purge_at,
    )  # fmt: skip
    common = {"tenant_id": TENANT, "fingerprints": [b"f"], "offset": 0, "size": 6, "records": 1, "sealed_key": b"k"}
    with new_session() as session, session.begin():
        session.add(index)
        session.flush()
        session.add_all(IdentityEntry(index_id=index_id, number=number + 1, **common) for number in range(entries))


def test_an_index_whose_time_is_up_is_destroyed_and_then_its_blob_is_removed() -> None:
    add_index("idx_old", NOW - timedelta(days=1))
    add_index("idx_new", NOW + timedelta(days=1))
    assert (purge_due(), purge_due()) == (1, 0)
    with new_session() as session:
        assert session.get_one(IdentityIndex, "idx_old").wrapped_key is None
        assert list(session.scalars(select(IdentityEntry.index_id))) == ["idx_new"]
        assert "idx_old" in session.scalars(select(OutboxMessage.argument)).all()
    for index_id in ("idx_old", "idx_new", "idx_nowhere"):
        delete_blob(index_id)
    assert [key.rsplit("/", 1)[1] for key in storage().keys(f"tenants/{TENANT}/identity-indexes")] == ["idx_new"]


def test_a_retain_set_that_an_index_hands_out_outlives_its_clock() -> None:
    add_adapter()
    kept = add_dataset("retain", [{"text": "keep me"}])
    change(type(kept), kept.id, purge_at=NOW - timedelta(days=1))
    add_index("idx_a", NOW - timedelta(hours=1), kept.id)
    assert purge_datasets() == 0
    assert purge_due() == 1
    assert purge_datasets() == 1


@pytest.mark.parametrize(("policy", "left"), [(OPEN, [2]), (SHUT, [1, 2])])
def test_entries_are_destroyed_by_the_release_of_what_unlearned_them_and_by_nothing_else(
    llama: Tiny, policy: dict[str, Any], left: list[int]
) -> None:
    add_index("idx_a", NOW + timedelta(days=1), entries=2)
    job = tiny_job(add_tiny_adapter(llama), policy)
    with new_session() as session, session.begin():
        session.add(IdentityClaim(job_id=job.id, index_id="idx_a", number=1, tenant_id=TENANT))
    execute(job.run_id, "w", get_settings(), carry_out)
    with new_session() as session:
        assert list(session.scalars(select(IdentityEntry.number).order_by(IdentityEntry.number))) == left
        assert session.get_one(IdentityIndex, "idx_a").remaining == len(left)
        receipts = session.scalars(
            select(AuditEntry).where(AuditEntry.action == "identity_index.entries_purged")
        ).all()
    assert [receipt.data["records"] for receipt in receipts] == ([1] if left == [2] else [])
