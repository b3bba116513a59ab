"""Removes what a destroyed data key left in Postgres: old row versions and write-ahead log (docs/adr/0011).

A key that was destroyed by an UPDATE stands in the table's file until its old row version is removed, in that page
until it is overwritten, and in the log until its segment goes. Whoever holds a key-encryption key and a copy of the
blob could open that copy by it. So the tables are written anew and the log before that is dropped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.audit.actions import Action
from app.audit.record import append
from app.data_keys.columns import sealed_columns, wrapped_columns
from app.tables import metadata

DESTROYING: tuple[Action, ...] = (
    "dataset.purged",
    "identity_index.purged",
    "identity_index.entries_purged",
)
_LOCK = 5_067_911_439  # any number, but that of migrations
_WAIT_SECONDS = 20.0
_POLL_SECONDS = 0.1
_FUNCTIONS = ("pg_switch_wal()", "pg_ls_waldir()", "pg_control_checkpoint()")
_LOCK_TIMEOUT = "5s"


class NotScrubbed(Exception):
    """Nothing is claimed to be removed. The message says why, for the operator."""


@dataclass(frozen=True)
class Scrubbed:
    """What was done.

    Attributes:
        tenants: how many tenants had keys destroyed since their last scrub.
        log: what became of the old write-ahead log: "removed"; "recycled" where its files wait to be written over
            (`wal_recycle` is on); "kept" where an archive, a replica or a setting keeps it.
    """

    tenants: int
    log: str


def due(engine: Engine) -> dict[str, int]:
    """Tenants of whom keys were destroyed since the last scrub, each with the newest such entry's number."""
    newest = text("""
        SELECT tenant_id, max(sequence) FILTER (WHERE action = ANY(:destroying)) AS destroyed,
               max((data ->> 'through')::bigint) FILTER (WHERE action = 'data_keys.scrubbed') AS through
        FROM audit_entries WHERE action = ANY(:actions) GROUP BY tenant_id""")
    parameters = {"destroying": list(DESTROYING), "actions": [*DESTROYING, "data_keys.scrubbed"]}
    with engine.connect() as connection:
        rows = connection.execute(newest, parameters).all()
    return {row.tenant_id: row.destroyed for row in rows if row.destroyed and row.destroyed > (row.through or 0)}


def scrub(engine: Engine, *, patience: float = _WAIT_SECONDS) -> Scrubbed:
    """Remove what is left of destroyed keys, and note it in the audit chains that it concerns.

    Every table with wrapped secrets is locked while it is written anew: well below a second per 100,000 rows.

    Args:
        patience: seconds to wait for transactions that might still see an old row version.

    Raises:
        NotScrubbed: the database role may not do it, or others were in the way.
    """
    tenants = due(engine)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        _check_rights(connection)
        if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}):
            raise NotScrubbed("another process is at it")
        _wait_for_old_snapshots(connection, patience)
        _rewrite_tables(connection)
        log = _drop_log(connection)
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
    _note(engine, tenants, log)
    return Scrubbed(len(tenants), log)


def _tables() -> list[str]:
    wrapped = {column.table.name for column in wrapped_columns(metadata)}
    return sorted(wrapped | {column.table.name for column in sealed_columns(metadata)})


def _check_rights(connection: Connection) -> None:
    """Asked before, since VACUUM only warns when it may not."""
    owned = text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = CAST(:name AS regclass)")
    missing = [f"own table {name}" for name in _tables() if not connection.scalar(owned, {"name": name})]
    if not connection.scalar(text("SELECT pg_has_role('pg_checkpoint', 'USAGE')")):
        missing.append("be a member of pg_checkpoint")
    allowed = text("SELECT has_function_privilege(:name, 'EXECUTE')")
    missing += [f"be allowed {name}" for name in _FUNCTIONS if not connection.scalar(allowed, {"name": name})]
    if missing:
        raise NotScrubbed(f"the database role has to: {', '.join(missing)}")


def _wait_for_old_snapshots(connection: Connection, patience: float) -> None:
    """Until no transaction is left that began before this moment: VACUUM would keep what it might see."""
    began = connection.scalar(text("SELECT pg_current_xact_id()::text"))
    older = text("""
        SELECT (SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
                  AND greatest(age(backend_xmin), age(backend_xid)) > age(CAST(:began AS xid8)::xid))
             + (SELECT count(*) FROM pg_replication_slots WHERE age(xmin) > age(CAST(:began AS xid8)::xid))
             + (SELECT count(*) FROM pg_prepared_xacts)""")
    deadline = time.monotonic() + patience
    while connection.scalar(older, {"began": began}):
        if time.monotonic() > deadline:
            raise NotScrubbed("a transaction that began before has not ended; a backup may be running")
        time.sleep(_POLL_SECONDS)


def _rewrite_tables(connection: Connection) -> None:
    connection.execute(text(f"SET lock_timeout = '{_LOCK_TIMEOUT}'"))
    for name in _tables():
        try:
            # A name of our own metadata.
            connection.execute(text(f"VACUUM (FULL) {name}"))
        except OperationalError:
            raise NotScrubbed(f"table {name} could not be locked within {_LOCK_TIMEOUT}") from None


def _drop_log(connection: Connection) -> str:
    """Begin a new segment of the log and have those before it dropped."""
    for statement in ("CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT"):
        connection.execute(text(statement))
    oldest = "SELECT redo_wal_file FROM pg_control_checkpoint()"
    kept = text(f"SELECT count(*) FROM pg_ls_waldir() WHERE name < ({oldest})")  # noqa: S608 - no value in it
    if connection.scalar(kept):
        return "kept"
    return "recycled" if connection.scalar(text("SHOW wal_recycle")) == "on" else "removed"


def _note(engine: Engine, tenants: dict[str, int], log: str) -> None:
    with Session(engine) as session, session.begin():
        for tenant_id, through in tenants.items():
            append(session, tenant_id, "data_keys.scrubbed", "tenant", tenant_id, {"through": through, "log": log})
