"""Clean databases for the tests. To make one takes longer than most tests, so that one is emptied and lent again."""

from __future__ import annotations

from collections.abc import Collection
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from app.database import upgrade_schema
from app.embedded.postgres import create_database, libpq_url

TEMPLATE = "lethe_template"

# What a test may have changed besides rows.
_SCHEMA = """
WITH relations AS (SELECT * FROM pg_class WHERE relnamespace = 'public'::regnamespace),
everything (line) AS (
  SELECT concat_ws(' ', oid, relname, relkind, relowner, relacl, reloptions) FROM relations
  UNION ALL SELECT concat_ws(' ', attrelid, attname, atttypid, attnotnull, attisdropped, pg_get_expr(adbin, adrelid))
    FROM pg_attribute JOIN relations ON oid = attrelid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
  UNION ALL SELECT concat_ws(' ', oid, conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
  UNION ALL SELECT concat_ws(' ', oid, proname, proowner, prosrc)
    FROM pg_proc WHERE pronamespace = 'public'::regnamespace
  UNION ALL SELECT concat_ws(' ', oid, tgname, tgenabled) FROM pg_trigger WHERE NOT tgisinternal
  UNION ALL SELECT version_num FROM alembic_version
  UNION ALL SELECT concat_ws(' ', nspname, nspacl) FROM pg_namespace WHERE nspname !~ '^pg_'
  UNION ALL SELECT concat_ws(' ', setrole, setconfig) FROM pg_db_role_setting
    WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT md5(string_agg(line, '|' ORDER BY line)) FROM everything
"""
_TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'
"""
_RESTART = """
SELECT setval(oid::regclass, 1, false) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'S'
"""
# Triggers that no session can switch off for itself, as those of the audit chain.
_ALWAYS = "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND tgenabled = 'A'"


class Databases:
    """Migrated databases without rows, on one server."""

    def __init__(self, server: str) -> None:
        """Takes the SQLAlchemy URL of any database of the server."""
        self._server = server
        self._schemas: dict[str, str] = {}
        self._free: list[str] = []
        create_database(server, TEMPLATE)
        upgrade_schema(with_database(server, TEMPLATE))

    def lend(self) -> str:
        """SQLAlchemy URL of a database that nobody else has."""
        if self._free:
            return self._free.pop()
        name = f"test_{uuid4().hex}"
        create_database(self._server, name, template=TEMPLATE)
        url = with_database(self._server, name)
        with psycopg.connect(libpq_url(url)) as connection:
            self._schemas[url] = _schema(connection)
        return url

    def take_back(self, url: str) -> None:
        """Empty a lent database, or drop it where more than its rows was changed."""
        name = make_url(url).database
        assert name is not None
        with psycopg.connect(libpq_url(self._server), autocommit=True) as server:
            server.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name])
            with psycopg.connect(libpq_url(url)) as connection:
                same = _schema(connection) == self._schemas[url]
                if same:
                    empty(connection)
            if same:
                self._free.append(url)
            else:
                server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _schema(connection: psycopg.Connection) -> str:
    [schema] = connection.execute(_SCHEMA)
    return str(schema[0])


def empty(connection: psycopg.Connection, but: Collection[str] = ()) -> None:
    """Delete all rows, except for those of some tables."""
    # No foreign key or ordinary trigger minds what is deleted by a replica.
    connection.execute("SET session_replication_role = replica")
    names = [name for (name,) in connection.execute(_TABLES) if name not in but]
    any_rows = [sql.SQL("EXISTS (SELECT FROM {})").format(sql.Identifier(name)) for name in names]
    [filled] = connection.execute(sql.SQL("SELECT {}").format(sql.SQL(", ").join(any_rows)))
    for name in (name for name, has_rows in zip(names, filled, strict=True) if has_rows):
        table = sql.Identifier(name)
        always = [sql.Identifier(trigger) for (trigger,) in connection.execute(_ALWAYS, [name])]
        for trigger in always:
            connection.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER {}").format(table, trigger))
        connection.execute(sql.SQL("DELETE FROM {}").format(table))
        for trigger in always:
            connection.execute(sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(table, trigger))
    connection.execute(_RESTART)
