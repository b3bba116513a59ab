"""Migrations and tables say the same, and applying migrations twice does no harm."""

from __future__ import annotations

import subprocess
import sys

from alembic import command
from sqlalchemy import inspect

from app.database import alembic_config, schema_head, upgrade_schema
from app.embedded.postgres import create_database
from app.kit.db import make_engine
from app.tables import metadata
from tests.databases import with_database


def test_migrations_make_exactly_the_tables_of_the_code(database_url: str) -> None:
    command.check(alembic_config(database_url))


def test_processes_that_start_together_migrate_once(postgres_url: str) -> None:
    create_database(postgres_url, "fresh")
    url = with_database(postgres_url, "fresh")
    code = "import sys; from app.database import upgrade_schema; upgrade_schema(sys.argv[1])"
    processes = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    found = set(inspect(make_engine(url)).get_table_names())
    assert found == set(metadata.tables) | {"alembic_version"}


def test_migrations_can_be_undone(database_url: str) -> None:
    command.downgrade(alembic_config(database_url), "base")
    assert inspect(make_engine(database_url)).get_table_names() == ["alembic_version"]
    upgrade_schema(database_url)
    assert schema_head()
