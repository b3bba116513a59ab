"""Statements that go to the driver as they are, for the few calls that are made all the time.

A session builds a statement, looks its compiled form up and wraps its rows at every call, which takes several times
as long as the driver needs for the question itself. A `Prepared` is built and compiled once, when its module is
loaded. It runs on the connection of a session, in its transaction, or through `Reads` by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from psycopg import AsyncConnection, AsyncRawCursor, OperationalError
from psycopg.rows import RowMaker, namedtuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from sqlalchemy import AdaptedConnection, Dialect, Executable, Label, inspect, make_url
from sqlalchemy.dialects.postgresql.psycopg import dialect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import BindParameter, ClauseElement
from sqlalchemy.sql.visitors import cloned_traverse

from app.kit.db import CONNECTION, Base

_DIALECT: Dialect = dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
_DRIVER = "driver_connection"
READ_CONNECTIONS = 10
# Seconds until a free connection comes, or the database counts as away.
WAIT = 5.0


class Prepared:
    """One statement that returns rows and whose values are named by `bindparam`.

    Columns with a default of Python's must be given a value: such defaults are the session's doing.
    """

    def __init__(self, statement: Executable) -> None:
        self.statement = statement
        compiled = cast(SQLCompiler, _with_constants(statement).compile(dialect=_DIALECT))
        if compiled.insert_prefetch or compiled.update_prefetch:
            raise ValueError("a column's default is Python's: give it a value")
        # With the values of every IN: there is no later moment to put them there.
        expanded = compiled.construct_expanded_state(compiled.params)
        self._text = expanded.statement.encode()
        self._fixed = dict(expanded.parameters)
        processors = {**compiled._bind_processors, **expanded.processors}
        bind = [(name, processors.get(name)) for name in expanded.positiontup or ()]
        self._bind = cast("list[tuple[str, Callable[[Any], object] | None]]", bind)
        self._row: RowMaker[Any] | None = None

    async def rows(self, session: AsyncSession, **values: object) -> list[Any]:
        """The rows in the session's transaction, with the columns as attributes.

        What the session has not written yet is not seen. Raises the driver's errors (psycopg.Error).
        """
        return await (await self.ask(session, **values)).rows()

    async def one(self, session: AsyncSession, **values: object) -> Any:  # noqa: ANN401 - a row
        """The only row, or None. As `rows`."""
        found = await self.rows(session, **values)
        return found[0] if found else None

    async def ask(self, session: AsyncSession, **values: object) -> Asked:
        """Ask in the session's transaction; within `together` the answer comes at the end of its block. As `rows`."""
        return await self._ask(await _driver_of(session), values)

    def now(self, session: Session, **values: object) -> list[Any]:
        """The rows in the transaction of a session that is not asynchronous, or runs below one that is."""
        connection = session.connection().connection.dbapi_connection
        if isinstance(connection, AdaptedConnection):
            found: list[Any] = connection.run_async(lambda driver: self.run(driver, values))
            return found
        return list(session.execute(self.statement, values))

    async def run(self, connection: AsyncConnection[Any], values: dict[str, object]) -> list[Any]:
        """The rows, asked on a connection of the driver."""
        return await (await self._ask(connection, values)).rows()

    async def _ask(self, connection: AsyncConnection[Any], values: dict[str, object]) -> Asked:
        given = {**self._fixed, **values}
        bound = [given[name] if process is None else process(given[name]) for name, process in self._bind]
        # Raw: the numbers of the parameters stand in the text as Postgres reads them.
        cursor = AsyncRawCursor(connection, row_factory=self._row_of)
        await cursor.execute(self._text, bound)
        return Asked(cursor)

    def _row_of(self, cursor: Any) -> RowMaker[Any]:  # noqa: ANN401 - psycopg's base of all cursors
        # Its columns are the same each time.
        if self._row is None:
            self._row = namedtuple_row(cursor)
        return self._row


class Asked:
    """A question that was asked. Its answer may still be on its way."""

    def __init__(self, cursor: AsyncRawCursor[Any]) -> None:
        self._cursor = cursor

    async def rows(self) -> list[Any]:
        """The rows that came."""
        return await self._cursor.fetchall()

    async def one(self) -> Any:  # noqa: ANN401 - a row
        """The only row, or None."""
        found = await self.rows()
        return found[0] if found else None


@asynccontextmanager
async def together(session: AsyncSession) -> AsyncIterator[None]:
    """Send what the block asks in one trip, with the beginning of the transaction, and wait for all of it at its end.

    Raises what the first question raises that fails; those behind it are not run.
    """
    connection = await _driver_of(session)
    async with connection.pipeline():
        yield


async def _driver_of(session: AsyncSession) -> AsyncConnection[Any]:
    """The connection of a session's transaction, asked for once in it."""
    transaction, known = session.sync_session.get_transaction(), session.info.get(_DRIVER)
    if known is None or transaction is None or known[0] is not transaction:
        connection = await session.connection()
        driver = connection.sync_connection.connection.driver_connection  # type: ignore[union-attr] # it is open
        known = session.info[_DRIVER] = session.sync_session.get_transaction(), driver
    return cast("AsyncConnection[Any]", known[1])  # psycopg's, the only one there is


def _with_constants(statement: Executable) -> ClauseElement:
    """The statement with what is not named by `bindparam` as literals: less to send, and partial indexes match it."""

    def write_out(parameter: BindParameter[Any]) -> None:
        if not parameter.required and parameter.type.dialect_impl(_DIALECT).literal_processor(_DIALECT):
            parameter.literal_execute = True

    written: ClauseElement = cloned_traverse(cast(ClauseElement, statement), {}, {"bindparam": write_out})
    return written


def columns(entity: type[Base]) -> dict[str, Label[Any]]:
    """The columns of an entity by their attributes, under names that no other entity's columns have."""
    attributes = inspect(entity).column_attrs
    return {each.key: each.columns[0].label(f"{entity.__tablename__}_{each.key}") for each in attributes}


class Reads:
    """Connections for questions of one statement, each of which is a transaction by itself."""

    def __init__(self, url: str, *, wait: float = WAIT) -> None:
        """`url` is SQLAlchemy's; `wait` as `WAIT`."""
        address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._pool = AsyncConnectionPool(
            address,
            min_size=1,
            max_size=READ_CONNECTIONS,
            timeout=wait,
            open=False,
            kwargs={**CONNECTION, "autocommit": True},
        )

    async def open(self) -> None:
        """Start connecting; a database that is away is no error yet."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.close()

    async def rows(self, statement: Prepared, **values: object) -> list[Any]:
        """The rows of a statement that changes nothing. Raises psycopg.Error."""
        try:
            return await self._run(statement, values)
        except PoolTimeout:
            raise
        except OperationalError:
            # The server may have ended the connection while it lay unused: ask the others, and once more.
            await self._pool.check()
            return await self._run(statement, values)

    async def _run(self, statement: Prepared, values: dict[str, object]) -> list[Any]:
        # Without `connection()` of the pool, which also ends a transaction: there is none.
        connection = await self._pool.getconn()
        try:
            return await statement.run(connection, values)
        finally:
            await self._pool.putconn(connection)

    async def one(self, statement: Prepared, **values: object) -> Any:  # noqa: ANN401 - a row
        """The only row, or None. As `rows`."""
        found = await self.rows(statement, **values)
        return found[0] if found else None
