"""Replacing pooled connections that the server has ended, without asking it each time.

SQLAlchemy's own check (``pool_pre_ping``) asks before every use, which takes as long as a statement. A server that
ends a connection says so: there is something to read where nothing was asked. One that has vanished with its machine
says nothing, so that connections are asked all the same that were not used for a while.
"""

from __future__ import annotations

import select
import time
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

REST_SECONDS = 10.0
_USED = "used_at"


def replace_ended(engine: Engine) -> None:
    """Have an engine of psycopg's replace connections that the server has ended when they are next taken."""

    def note(_connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.info[_USED] = time.monotonic()

    def check(connection: DBAPIConnection, record: ConnectionPoolEntry, _taken: PoolProxiedConnection) -> None:
        if not _doubtful(record):
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", check)


def _doubtful(record: ConnectionPoolEntry) -> bool:
    used = record.info.get(_USED)
    if used is None:  # it is new
        return False
    return time.monotonic() - used > REST_SECONDS or _has_news(record.driver_connection)


def _has_news(driver: Any) -> bool:  # noqa: ANN401 - psycopg's connection
    """Whether there is something to read from the server, or no connection any more."""
    if driver is None or driver.closed:
        return True
    poll = select.poll()
    poll.register(driver.fileno(), select.POLLIN)
    return bool(poll.poll(0))
