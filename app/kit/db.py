"""Engines, sessions and the declarative base."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import ClassVar

from sqlalchemy import Connection, DateTime, Engine, MetaData, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import NullPool

from app.kit.liveness import replace_ended

# Constraints carry names, so that migrations can drop and alter them.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


# Seconds to connect, milliseconds until a silent peer counts as gone, and times in UTC whatever the server's zone is.
CONNECTION = {"connect_timeout": 10, "tcp_user_timeout": 30_000, "options": "-c timezone=UTC"}


class Base(DeclarativeBase):
    """Base of all tables. Times carry their zone."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar = {datetime: DateTime(timezone=True)}


async def on_rollback(session: AsyncSession, undo: Callable[[], None]) -> None:
    """Have `undo` called should the session's transaction not be committed, whatever the reason.

    For what lies outside the database, such as blobs: the transaction that names them decides whether they stay.
    Once the database was told to commit they do, since a lost connection does not tell whether it did: what no row
    names is found by `lethe doctor`, what a row names and is gone is lost.
    """
    told: list[Connection] = []
    event.listen(session.sync_session, "after_rollback", lambda _session: None if told else undo(), once=True)
    try:
        connection = await session.connection()
    except BaseException:
        undo()
        raise
    event.listen(connection.sync_connection, "commit", told.append)


def make_async_engine(url: str) -> AsyncEngine:
    """The engine of the web side. A connection that the server has ended is replaced when it is next taken."""
    engine = create_async_engine(url, pool_size=10, max_overflow=10, hide_parameters=True, connect_args=CONNECTION)
    replace_ended(engine.sync_engine)
    return engine


def make_engine(url: str) -> Engine:
    """The engine of workers and commands: a connection per use, so that none crosses a fork."""
    return create_engine(url, poolclass=NullPool, hide_parameters=True, connect_args=CONNECTION)
