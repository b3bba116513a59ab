"""Runs migrations on the database whose URL the caller gives (app.database.upgrade_schema)."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from app.kit.db import make_engine
from app.tables import metadata

# Any number will do, as long as every migrating process takes the same.
MIGRATION_LOCK = 5_067_911_438


def run() -> None:
    """Migrate under a lock, so that processes that start together do not migrate together."""
    engine = make_engine(context.config.attributes["database_url"])
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        connection.execute(text("SET lock_timeout = '10s'"))
        connection.commit()
        context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
