"""Appending in a real Postgres: by many at once, across rollbacks, and against those who would change a chain."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

import app.tables  # noqa: F401 - foreign keys are resolved between tables that are loaded
from app.audit.chain import Finding, Head, verify
from app.audit.record import ACTOR, append, document, head
from app.audit.tables import AuditEntry, AuditHead
from app.auth.tables import Tenant

OURS, THEIRS = "ten_ours", "ten_theirs"


@pytest.fixture(autouse=True)
def _tenants(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add_all([Tenant(id=OURS, name="ours"), Tenant(id=THEIRS, name="theirs")])


def add(engine: Engine, *subjects: str, tenant: str = OURS) -> None:
    """Entries in one transaction."""
    with Session(engine) as session, session.begin():
        for subject in subjects:
            append(session, tenant, "dataset.purged", "dataset", subject, {"records": 3})


def entries(engine: Engine, tenant: str = OURS) -> list[AuditEntry]:
    """A tenant's chain."""
    mine = select(AuditEntry).where(AuditEntry.tenant_id == tenant).order_by(AuditEntry.sequence)
    with Session(engine) as session:
        return list(session.scalars(mine))


def subjects(engine: Engine, tenant: str = OURS) -> list[str]:
    """What a tenant's chain is about."""
    return [entry.subject_id for entry in entries(engine, tenant)]


@contextmanager
def tampering(engine: Engine) -> Iterator[Connection]:
    """The database in the hands of its owner, who switches the triggers off."""
    with engine.begin() as connection:
        for table in ("audit_entries", "audit_heads"):
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER append_only"))
        yield connection
        for table in ("audit_entries", "audit_heads"):
            connection.execute(text(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER append_only"))


def findings(engine: Engine, tenant: str = OURS) -> list[Finding]:
    """What is wrong with a tenant's chain."""
    with Session(engine) as session:
        stored = session.get(AuditHead, tenant)
    return list(
        verify(map(document, entries(engine, tenant)), Head(stored.sequence, stored.hash) if stored else None)
    )


def test_entries_are_written_when_the_transaction_commits(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        append(session, OURS, "dataset.purged", "dataset", "ds_1", {"records": 3}, actor="key_1")
        assert subjects(engine) == []
    add(engine, "ds_2", "ds_3")
    first, *_ = chain = entries(engine)
    assert [(entry.sequence, entry.subject_id) for entry in chain] == [(1, "ds_1"), (2, "ds_2"), (3, "ds_3")]
    assert (first.action, first.subject_type, first.actor, first.data) == (
        "dataset.purged", "dataset", "key_1", {"records": 3},
    )  # fmt: skip
    assert chain[0].at <= chain[1].at <= chain[2].at
    assert findings(engine) == []


def test_the_session_says_who_acts_unless_the_caller_does(engine: Engine) -> None:
    with Session(engine, info={ACTOR: "key_7"}) as session, session.begin():
        append(session, OURS, "dataset.purged", "dataset", "ds_1")
        append(session, OURS, "dataset.purged", "dataset", "ds_2", actor="worker")
    add(engine, "ds_3")
    assert [entry.actor for entry in entries(engine)] == ["key_7", "worker", "system"]


def test_a_transaction_that_is_rolled_back_leaves_no_entry(engine: Engine) -> None:
    with Session(engine) as session:
        append(session, OURS, "dataset.purged", "dataset", "ds_lost")
        session.rollback()
        append(session, OURS, "dataset.purged", "dataset", "ds_1")
        session.commit()
    assert subjects(engine) == ["ds_1"]


def test_a_transaction_that_fails_or_is_abandoned_leaves_no_entry(engine: Engine) -> None:
    def fail() -> None:
        with Session(engine) as session, session.begin():
            append(session, OURS, "dataset.purged", "dataset", "ds_lost")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with Session(engine) as session:
        append(session, OURS, "dataset.purged", "dataset", "ds_lost")
        session.execute(text("SELECT 1"))
        session.close()
        session.execute(text("SELECT 1"))
        session.commit()
    assert subjects(engine) == []


def test_what_was_rolled_back_after_it_was_written_leaves_no_gap(engine: Engine) -> None:
    with Session(engine) as session:
        append(session, OURS, "dataset.purged", "dataset", "ds_lost")
        assert head(session, OURS).sequence == 1
        session.rollback()
    add(engine, "ds_1")
    assert (subjects(engine), findings(engine)) == (["ds_1"], [])


def test_an_entry_inside_of_a_savepoint_is_refused(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        append(session, OURS, "dataset.purged", "dataset", "ds_1")
        with pytest.raises(RuntimeError, match="savepoint"), session.begin_nested():
            append(session, OURS, "dataset.purged", "dataset", "ds_2")
        with session.begin_nested():
            session.execute(text("SELECT 1"))
        # Releasing the savepoint has not locked the chain.
        assert session.scalar(select(func.count()).select_from(AuditEntry)) == 0
    assert subjects(engine) == ["ds_1"]


def test_other_text_than_ids_and_words_is_refused(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        with pytest.raises(ValueError, match="audit entry"):
            append(session, OURS, "dataset.purged", "dataset", "ds_1", {"name": "Ada Lovelace"})
        with pytest.raises(ValueError, match="audit entry"):
            append(session, OURS, "dataset.purged", "dataset", "Ada Lovelace")
        with pytest.raises(ValueError, match="audit entry"):
            append(session, OURS, "dataset.purged", "dataset", "ds_1", actor="Ada Lovelace")
    assert subjects(engine) == []


def test_the_head_counts_what_the_transaction_has_added(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        assert head(session, OURS) == Head(0, "0" * 64)
        append(session, OURS, "dataset.purged", "dataset", "ds_1")
        given = head(session, OURS)
        append(session, OURS, "dataset.purged", "dataset", "ds_2")
    first, second = entries(engine)
    assert (given, second.previous_hash) == (Head(1, first.hash), first.hash)
    assert findings(engine) == []


def test_twenty_appends_at_once_give_a_chain_without_gaps(engine: Engine) -> None:
    start = threading.Barrier(20)

    def append_one(number: int) -> None:
        with Session(engine) as session, session.begin():
            append(session, OURS, "dataset.purged", "dataset", f"ds_{number}", {"records": number})
            session.execute(text("SELECT 1"))
            start.wait()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(append_one, range(20)))
    chain = entries(engine)
    assert [entry.sequence for entry in chain] == list(range(1, 21))
    assert {entry.subject_id for entry in chain} == {f"ds_{number}" for number in range(20)}
    assert sorted(chain, key=lambda entry: entry.at) == chain
    assert findings(engine) == []


def test_transactions_that_touch_the_same_things_in_another_order_do_not_wait_for_each_other(engine: Engine) -> None:
    """A chain that was locked when `append` is called would have these two end in a deadlock."""
    meet = threading.Barrier(2)

    def rename(session: Session, tenant: str) -> None:
        session.execute(update(Tenant).where(Tenant.id == tenant).values(name=f"{tenant}-renamed"))

    def append_first() -> None:
        with Session(engine) as session, session.begin():
            append(session, OURS, "dataset.purged", "dataset", "ds_1")
            append(session, THEIRS, "dataset.purged", "dataset", "ds_1")
            meet.wait()
            rename(session, OURS)

    def change_first() -> None:
        with Session(engine) as session, session.begin():
            rename(session, OURS)
            meet.wait()
            append(session, THEIRS, "dataset.purged", "dataset", "ds_2")
            append(session, OURS, "dataset.purged", "dataset", "ds_2")

    add(engine, "ds_0")
    add(engine, "ds_0", tenant=THEIRS)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(append_first), pool.submit(change_first)]:
            done.result(timeout=60)
    assert len(subjects(engine)) == len(subjects(engine, THEIRS)) == 3
    assert findings(engine) == findings(engine, THEIRS) == []


def test_chains_of_several_tenants_are_locked_in_one_order(engine: Engine) -> None:
    def append_to_both() -> None:
        with Session(engine) as session, session.begin():
            append(session, THEIRS, "dataset.purged", "dataset", "ds_1")
            append(session, OURS, "dataset.purged", "dataset", "ds_1")

    def waits() -> bool:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        with engine.connect() as connection:
            return bool(connection.scalar(text(query)))

    add(engine, "ds_0")
    add(engine, "ds_0", tenant=THEIRS)
    with ThreadPoolExecutor(1) as pool, engine.connect() as holder:
        lock = text("SELECT 1 FROM audit_heads WHERE tenant_id = :tenant FOR UPDATE NOWAIT")
        holder.execute(lock, {"tenant": OURS})
        done = pool.submit(append_to_both)
        try:
            while not waits():
                assert not done.done()
                time.sleep(0.02)
            # Ours is asked for first, whatever was noted first, so that theirs is still free.
            holder.execute(lock, {"tenant": THEIRS})
        finally:
            holder.rollback()
        done.result(timeout=60)
    assert findings(engine) == findings(engine, THEIRS) == []


def test_what_is_still_to_be_flushed_is_written_before_the_chain_is_locked(engine: Engine) -> None:
    add(engine, "ds_0")
    seen: list[int] = []
    with Session(engine, autoflush=False) as session, session.begin():
        tenant = session.get_one(Tenant, OURS)
        tenant.name = "renamed"
        append(session, OURS, "dataset.purged", "dataset", "ds_1")
        original = session.flush

        def flush(objects: Sequence[Any] | None = None) -> None:
            locked = text("SELECT sequence FROM audit_heads WHERE tenant_id = :tenant FOR UPDATE NOWAIT")
            if session.dirty:
                with engine.connect() as other:
                    seen.append(other.execute(locked, {"tenant": OURS}).scalar_one())
            original(objects)

        session.flush = flush  # type: ignore[method-assign] # looks in at the moment of the flush
    assert seen == [1]


def test_chains_of_two_tenants_have_nothing_to_do_with_each_other(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        for number in range(3):
            append(session, OURS, "dataset.purged", "dataset", f"ds_{number}")
            append(session, THEIRS, "dataset.purged", "dataset", f"ds_{number + 10}")
    assert subjects(engine) == ["ds_0", "ds_1", "ds_2"]
    assert subjects(engine, THEIRS) == ["ds_10", "ds_11", "ds_12"]
    assert findings(engine) == findings(engine, THEIRS) == []
    with tampering(engine) as connection:
        connection.execute(text("DELETE FROM audit_entries WHERE tenant_id = 'ten_theirs'"))
    assert findings(engine) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entries SET action = 'dataset.created'",
        "UPDATE audit_entries SET action = 'dataset.created' WHERE false",
        "DELETE FROM audit_entries",
        "TRUNCATE audit_entries",
        "TRUNCATE tenants CASCADE",
        "INSERT INTO audit_entries TABLE audit_entries ON CONFLICT (tenant_id, sequence) DO UPDATE SET at = now()",
        "DELETE FROM audit_heads",
        "TRUNCATE audit_heads",
    ],
)
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_the_database_refuses_to_change_what_was_written(engine: Engine, statement: str, role: str) -> None:
    add(engine, "ds_1")
    with engine.connect() as connection:
        connection.execute(text(f"SET session_replication_role = {role}"))
        with pytest.raises(DBAPIError, match="append-only"):
            connection.execute(text(statement))
    assert findings(engine) == []
    assert subjects(engine) == ["ds_1"]


@pytest.mark.parametrize(
    "statement", ["ALTER TABLE audit_entries DISABLE TRIGGER append_only", "DROP TABLE audit_heads"]
)
def test_a_role_that_does_not_own_the_tables_appends_and_cannot_switch_the_triggers_off(
    engine: Engine, statement: str
) -> None:
    # One transaction that is never committed, since roles belong to the whole server.
    with engine.connect() as connection:
        connection.execute(text("CREATE ROLE lethe_service"))
        connection.execute(
            text("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO lethe_service")
        )
        connection.execute(text("SET LOCAL ROLE lethe_service"))
        with Session(connection) as session:
            append(session, OURS, "dataset.purged", "dataset", "ds_1")
            assert head(session, OURS).sequence == 1
            with pytest.raises(DBAPIError, match="must be owner"):
                session.execute(text(statement))


TAMPERINGS: dict[str, tuple[str, set[tuple[int, str]]]] = {
    "a count": ("UPDATE audit_entries SET data = '{\"records\": 2}' WHERE sequence = 3", {(3, "hash_mismatch")}),
    "a time": (
        "UPDATE audit_entries SET at = at - interval '1 microsecond' WHERE sequence = 3",
        {(3, "hash_mismatch")},
    ),
    "an actor": ("UPDATE audit_entries SET actor = 'key_2' WHERE sequence = 3", {(3, "hash_mismatch")}),
    "a hash": (
        "UPDATE audit_entries SET hash = repeat('0', 64) WHERE sequence = 3",
        {(3, "hash_mismatch"), (4, "wrong_link")},
    ),
    "removed": ("DELETE FROM audit_entries WHERE sequence = 3", {(3, "gap")}),
    "the end": ("DELETE FROM audit_entries WHERE sequence > 3", {(4, "truncated")}),
    "everything": ("DELETE FROM audit_entries", {(1, "truncated")}),
    "moved up": (
        "DELETE FROM audit_entries WHERE sequence = 3; UPDATE audit_entries SET sequence = 3 WHERE sequence = 4; "
        "UPDATE audit_entries SET sequence = 4 WHERE sequence = 5",
        {(3, "hash_mismatch"), (3, "wrong_link"), (4, "hash_mismatch"), (5, "truncated")},
    ),
    "the head": ("UPDATE audit_heads SET sequence = 4", {(5, "beyond_head")}),
    "no head": ("DELETE FROM audit_heads", {(5, "no_head")}),
}


@pytest.mark.parametrize("done", TAMPERINGS)
def test_what_a_superuser_changes_without_the_trigger_is_found_and_named(engine: Engine, done: str) -> None:
    add(engine, *(f"ds_{number}" for number in range(5)))
    statements, expected = TAMPERINGS[done]
    with tampering(engine) as connection:
        connection.exec_driver_sql(statements)
    assert {(finding.sequence, finding.kind) for finding in findings(engine)} == expected


def test_appending_goes_on_after_tampering_and_does_not_cover_it(engine: Engine) -> None:
    add(engine, "ds_1", "ds_2")
    with tampering(engine) as connection:
        connection.execute(text("UPDATE audit_entries SET actor = 'key_2' WHERE sequence = 2"))
    add(engine, "ds_3")
    assert [(finding.sequence, finding.kind) for finding in findings(engine)] == [(2, "hash_mismatch")]
