"""When keys were last used: written beside the requests, which neither wait for it nor fail with it."""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.auth.repository import write_use

log = structlog.get_logger(__name__)


class LastUse:
    """Writes the last use of keys in tasks of its own, one per key at a time."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions
        self._writing: dict[str, asyncio.Task[None]] = {}

    def note(self, key_id: str) -> None:
        """Have it written that this key was used now."""
        if key_id not in self._writing:
            task = asyncio.create_task(self._write(key_id))
            self._writing[key_id] = task
            task.add_done_callback(lambda _task: self._writing.pop(key_id))

    async def finish(self) -> None:
        """Wait until everything is written."""
        await asyncio.gather(*self._writing.values())

    async def _write(self, key_id: str) -> None:
        try:
            async with self._sessions() as session, session.begin():
                await write_use(session, key_id)
        except (SQLAlchemyError, OSError) as error:
            log.warning("last use of a key not written", key=key_id, error=type(error).__name__)
