"""Processes that can be killed anywhere: before and after every statement, commit, blob and message.

An actor is what runs as one process in production. Whoever acts as one counts the points that it passes; at the one
that its fuse names it is killed, and is refused everything from then on, so that clean-up code does not help it as
little as it would help a process that got SIGKILL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, BinaryIO

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect

from app.jobs.tables import Run
from app.kit.driver import Prepared
from app.kit.storage import LocalStorage
from app.settings import get_settings
from worker.database import new_session
from worker.execution import execute
from worker.lease import Lease
from worker.recipe import carry_out


class Crash(BaseException):
    """The process is gone."""


class Actor:
    """A process.

    Args:
        name: as Postgres sees it.
        fuse: points that it lives for; None for ever.
    """

    def __init__(self, name: str, fuse: int | None = None) -> None:
        self.name = name
        self.fuse = fuse
        self.dead = False
        self.lease: Lease | None = None

    def point(self) -> None:
        """A place to be killed at."""
        if self.fuse == 0:
            self.dead = True
        if self.dead:
            raise Crash
        if self.fuse is not None:
            self.fuse -= 1

    def breathe(self) -> None:
        """A place to be stopped at: nothing is locked here."""


class Worker(Actor):
    """A GPU worker that carries out one run in a thread, for as many breaths as it is given."""

    def __init__(self, name: str, run_id: str) -> None:
        super().__init__(name)
        self.run_id = run_id
        self.stopping = False
        self.ended = False
        self._breaths: float = 0
        self._go, self._rests = threading.Semaphore(0), threading.Semaphore(0)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def go_on(self, breaths: float = float("inf")) -> None:
        """Let it work until so many places to be stopped at have passed, or to its end."""
        if self.ended:
            return
        self._breaths = breaths
        self._go.release()
        assert self._rests.acquire(timeout=60), "it hangs"
        if self.ended:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def breathe(self) -> None:
        """Wait until there is breath."""
        if self._breaths <= 0:
            self._rests.release()
            self._go.acquire()
        self._breaths -= 1

    def renew(self) -> None:
        """Renew its lease, from the thread that does so beside the work."""
        if self.lease is not None and not self.ended:
            with acting(Actor(self.name)):
                self.lease.renew()

    def _work(self) -> None:
        self._go.acquire()
        with acting(self):
            try:
                execute(self.run_id, self.name, get_settings(), carry_out, lambda: self.stopping)
            except Crash:
                self.dead = True
            except BaseException as error:  # for the thread of the test
                self._failure = error
        self.ended = True
        self._rests.release()


_ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Within the block this thread, and what it starts, is the actor."""
    before = _ACTOR.set(actor)
    try:
        yield
    finally:
        _ACTOR.reset(before)


def killed(actor: Actor, work: Callable[[], object]) -> bool:
    """Let the actor work. Whether it was killed."""
    with acting(actor):
        try:
            work()
        except Crash:
            return True
    return False


def point(*_args: object) -> None:
    """Somebody passes a place to be killed at."""
    actor = _ACTOR.get()
    if actor is not None:
        actor.point()


def _breathe(*_args: object) -> None:
    actor = _ACTOR.get()
    if actor is not None:
        actor.breathe()


def _sign(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
    actor = _ACTOR.get()
    parameters["application_name"] = actor.name if actor is not None else "test"


@contextmanager
def mortality(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block actors can be killed and stopped."""
    hooks = (("do_connect", _sign), ("begin", _breathe), ("before_cursor_execute", point),
             ("after_cursor_execute", point))  # fmt: skip
    for name, hook in hooks:
        event.listen(Engine, name, hook)
    patch.setattr(DefaultDialect, "do_commit", _around(DefaultDialect.do_commit))
    patch.setattr(Prepared, "_ask", _around_coroutine(Prepared._ask))
    patch.setattr(LocalStorage, "create", _creating(LocalStorage.create))
    for name in ("delete", "delete_all"):
        patch.setattr(LocalStorage, name, _deleting(getattr(LocalStorage, name)))
    patch.setattr("worker.execution.Lease", _KnownLease)
    yield
    for name, hook in hooks:
        event.remove(Engine, name, hook)


class _KnownLease(Lease):
    """Tells its worker of itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        actor = _ACTOR.get()
        assert actor is not None
        actor.lease = self


def _around(function: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        point()
        answer = function(*args, **kwargs)
        point()
        return answer

    return watched


def _deleting(function: Callable[..., Any]) -> Callable[..., Any]:
    around = _around(function)

    def watched(*args: Any) -> None:
        actor = _ACTOR.get()
        # What tidies up after a rollback must not be disturbed in it; the dead do not tidy up.
        if actor is None or not actor.dead:
            around(*args)

    return watched


def _around_coroutine(function: Callable[..., Any]) -> Callable[..., Any]:
    async def watched(*args: Any, **kwargs: Any) -> Any:
        point()
        answer = await function(*args, **kwargs)
        point()
        return answer

    return watched


def _creating(function: Callable[..., Any]) -> Callable[..., Any]:
    @contextmanager
    def watched(self: LocalStorage, key: str) -> Iterator[BinaryIO]:
        point()
        with function(self, key) as sink:
            yield sink
            point()
        point()

    return watched


def status_of(run_id: str) -> str:
    """A run's status."""
    with new_session() as session:
        return session.get_one(Run, run_id).status
