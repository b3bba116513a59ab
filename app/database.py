"""The schema's level: bring it up, and tell whether it is."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory


def upgrade_schema(database_url: str) -> None:
    """Apply all migrations that are missing. Safe to repeat, and to run from several processes at once."""
    command.upgrade(alembic_config(database_url), "head")


def schema_head() -> str:
    """The newest migration's revision id."""
    head = ScriptDirectory.from_config(alembic_config("")).get_current_head()
    if head is None:
        raise RuntimeError("no migrations found")
    return head


def alembic_config(database_url: str) -> Config:
    """Alembic, pointed at our migrations and a database."""
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.attributes["database_url"] = database_url
    return config
