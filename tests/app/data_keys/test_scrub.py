"""What a destroyed data key leaves in Postgres, and what is left once it was scrubbed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import select, text

from app.audit.tables import AuditEntry
from app.data_keys.scrub import NotScrubbed, due, scrub
from app.datasets import purging
from app.datasets.tables import Dataset
from app.kit.db import make_engine
from app.settings import Settings
from tests.worker.rows import TENANT, add_adapter, add_dataset
from worker.database import engine, new_session
from worker.housekeeping import scrub_keys


@pytest.fixture
def dataset(service: Settings) -> Dataset:
    """A dataset beside another one."""
    add_adapter()
    add_dataset("retain", [{"text": "keep me"}])
    return add_dataset("forget", [{"text": "forget me"}])


def purge(dataset: Dataset) -> None:
    """Destroy the key, as every way to a purge does."""
    with new_session() as session, session.begin():
        purging.shred(session, dataset.id)


def files_with(directory: Path, keys: list[bytes]) -> list[str]:
    """Files of the database server that hold one of the keys, all of what it holds in memory written out."""
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CHECKPOINT"))
    found = []
    for path in (directory / "postgres" / "data").rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):  # the server removes files of its own meanwhile
            content = path.read_bytes()
            found += [path.name] * any(key in content for key in keys)
    return found


def scrubbed() -> list[dict[str, object]]:
    """What the audit chain says of scrubs."""
    with new_session() as session:
        entries = select(AuditEntry.data).where(AuditEntry.action == "data_keys.scrubbed")
        return list(session.scalars(entries.order_by(AuditEntry.sequence)))


def test_destroyed_keys_are_nowhere_in_the_servers_files_once_scrubbed(
    dataset: Dataset, server_directory: Path
) -> None:
    # So many that what VACUUM alone leaves in a page is not covered by the rows that it moves.
    purged = [dataset, *(add_dataset("forget", [{"text": f"forget {number}"}]) for number in range(9))]
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE datasets"))
    for one in purged:
        purge(one)
    keys = [one.wrapped_key or b"" for one in purged]
    assert len(files_with(server_directory, keys)) >= 2, "the table and the log should hold them"
    assert scrub(engine()).log == "removed"
    assert files_with(server_directory, keys) == []


def test_the_audit_chain_says_which_purges_are_covered(dataset: Dataset) -> None:
    assert due(engine()) == {}
    assert not scrub_keys()
    purge(dataset)
    covered = due(engine())
    assert scrub_keys()
    assert scrubbed() == [{"through": covered[TENANT], "log": "removed"}]
    assert due(engine()) == {}
    assert not scrub_keys()
    purge(add_dataset("forget", [{"text": "another"}]))
    assert scrub_keys()
    assert len(scrubbed()) == 2


def test_a_transaction_that_might_see_the_key_is_waited_for(dataset: Dataset) -> None:
    with engine().connect() as reader:
        reader.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        reader.execute(select(Dataset.id))
        purge(dataset)
        with pytest.raises(NotScrubbed, match="has not ended"):
            scrub(engine(), patience=0)
    assert scrubbed() == []
    assert scrub(engine()).tenants == 1


def test_a_table_in_use_puts_it_off(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    purge(dataset)
    monkeypatch.setattr("app.data_keys.scrub._wait_for_old_snapshots", lambda *_: None)
    monkeypatch.setattr("app.data_keys.scrub._LOCK_TIMEOUT", "50ms")
    with engine().begin() as user:
        user.execute(text("LOCK TABLE datasets IN ROW EXCLUSIVE MODE"))
        assert not scrub_keys()
    assert scrubbed() == []


@pytest.fixture
def lesser(service: Settings) -> Iterator[str]:
    """URL of a role that may read and write, no more."""
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE ROLE lesser LOGIN"))
        connection.execute(text("GRANT ALL ON ALL TABLES IN SCHEMA public TO lesser"))
        yield service.database_url.get_secret_value().replace("postgres@", "lesser@", 1)
        connection.execute(text("DROP OWNED BY lesser"))
        connection.execute(text("DROP ROLE lesser"))


def test_a_role_without_the_rights_claims_nothing(dataset: Dataset, lesser: str) -> None:
    purge(dataset)
    with pytest.raises(
        NotScrubbed,
        match=r"own table datasets,.* of pg_checkpoint, be allowed pg_switch_wal\(\), be allowed pg_ls_waldir",
    ):
        scrub(make_engine(lesser))
    assert scrubbed() == []
