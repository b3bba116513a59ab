"""A database that one test has left is clean for the next."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.audit.record import append
from app.auth.tables import Tenant
from app.kit.db import make_engine
from tests.databases import Databases


def test_what_a_test_wrote_is_gone_and_the_database_is_lent_again(databases: Databases) -> None:
    url = databases.lend()
    for _ in range(2):
        engine = make_engine(url)
        with Session(engine) as session, session.begin():
            assert session.scalar(text("SELECT count(*) FROM audit_entries")) == 0
            assert session.scalar(text("SELECT nextval(pg_get_serial_sequence('job_events', 'id'))")) == 1
            session.add(Tenant(id="ten_x", name="x"))
            session.flush()
            append(session, "ten_x", "dataset.purged", "dataset", "ds_1")
        kept_open = engine.connect()
        kept_open.execute(text("SELECT count(*) FROM tenants"))
        databases.take_back(url)
        kept_open.invalidate()
        assert databases.lend() == url
    databases.take_back(url)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE left_behind ()",
        "DROP TABLE worker_heartbeats",
        "ALTER TABLE audit_entries DISABLE TRIGGER append_only",
        "ALTER TABLE unlearn_jobs ALTER COLUMN status DROP NOT NULL",
        "ALTER TABLE unlearn_jobs ADD CONSTRAINT c CHECK (true)",
        "UPDATE alembic_version SET version_num = 'old'",
        "GRANT SELECT ON unlearn_jobs TO PUBLIC",
    ],
)
def test_a_database_whose_schema_a_test_has_changed_is_not_lent_again(databases: Databases, statement: str) -> None:
    url = databases.lend()
    engine = make_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    databases.take_back(url)
    other = databases.lend()
    assert other != url
    databases.take_back(other)
