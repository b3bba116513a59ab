"""Everything that may happen to jobs, in any order, with a crash at any place."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import func, select, text, update

from app import outbox
from app.adapters.tables import Adapter, AdapterVersion
from app.datasets.tables import Dataset
from app.jobs.tables import LIVE, Run, UnlearnJob
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS
from tests.worker.rows import add_dataset
from tests.worker.states import witness
from tests.worker.states.actors import Actor, Crash, Worker, acting, killed, point
from tests.worker.states.compute import BROKEN, REFUSED, SHUT, erased
from worker import housekeeping
from worker.database import engine, new_session, storage

T = TypeVar("T")
Message = tuple[str, str]  # task, argument
_PASSES = 40  # of everything that a service does by itself, until every job must have ended
_DATASETS = (outbox.DELETE_BLOBS_TASK, housekeeping.delete_blobs)
_CHECKPOINTS = (outbox.DELETE_CHECKPOINTS_TASK, housekeeping.delete_checkpoints)

_JUST_NOW = func.now() - text("interval '1 second'")
# How often each thing happens, beside the others.
WEIGHTS = {
    "flow": 3, "go_on": 5, "submit": 2, "repeat": 1, "steer": 3, "relay": 1, "keep_house": 2, "deliver": 2,
    "deliver_again": 2, "flush": 1, "fail_over": 4, "kill": 2, "finish": 1, "stop": 2, "renew": 1, "time_passes": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Chance:
    """What is drawn for each thing that happens.

    Attributes:
        which: of what there is.
        breaths: that a worker takes.
        fuse: points that the process lives for which does it; None for ever. Most calls have fewer than 60.
    """

    which: int
    breaths: int
    fuse: int | None

    def of(self, choices: Sequence[T]) -> T:
        """The chosen one."""
        return choices[self.which % len(choices)]


chances = st.builds(
    Chance, st.integers(0, 400), st.sampled_from([2, 5, 10, 15, 25]), st.one_of(st.none(), st.integers(0, 60))
)


@dataclass
class Request:
    """A request for a job, as its sender knows it: with an answer, or without one yet."""

    key: str
    body: dict[str, Any]
    job_id: str | None = None


@dataclass
class World:
    """What lives longer than one history: two callers of the application, and what empties the database."""

    runner: asyncio.Runner
    submitter: httpx.AsyncClient
    approver: httpx.AsyncClient
    begin: Callable[[], list[Adapter]]


class Machine(RuleBasedStateMachine):
    """One history of a service with two adapters."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.adapters = self.world.begin()
        self.retain = add_dataset("retain", RETAIN_RECORDS).id
        self.requests: list[Request] = []
        self.queue: list[Message] = []  # what the broker holds
        self.delivered: list[Message] = []
        self.workers: list[Worker] = []

    @initialize(chances=st.lists(chances, min_size=3, max_size=3))
    def begin(self, chances: list[Chance]) -> None:
        """There is something to do."""
        for chance in chances:
            self.submit(replace(chance, fuse=None))
        self.flow(chances[0])

    # One rule for all: of many, Hypothesis leaves some out of each history, and most histories would get nowhere.
    @rule(what=st.sampled_from([name for name, weight in WEIGHTS.items() for _ in range(weight)]), chance=chances)
    def happens(self, what: str, chance: Chance) -> None:
        """Something happens, if it can."""
        getattr(self, what)(chance)

    # People.

    def submit(self, chance: Chance) -> None:
        """Somebody asks for an erasure."""
        number, which = len(self.requests), chance.which
        person = [None, None, "p1", "p2"][which // 2 % 4]
        body = {
            "adapter": self.adapters[which % 2].name,
            "forget_set": {"records": [each | {"id": f"{number}"} for each in FORGET_RECORDS]},
            "retain_set": self.retain,
            "policy": {"requires_approval": which % 7 == 0},
            "method": {"steps": 3, "stop": {"type": "steps"}},
            "seed": {0: REFUSED, 1: BROKEN, 2: SHUT, 3: SHUT}.get(which % 11, 7),
            "metadata": {"number": str(number)},
            **({"subject_request_id": person} if person else {}),
        }
        self.requests.append(Request(f"key-{number}", body))
        self._send(self.requests[-1], chance.fuse)

    def repeat(self, chance: Chance) -> None:
        """A request is sent again, whether it was answered or not."""
        self._send(chance.of(self.requests), chance.fuse)

    def steer(self, chance: Chance) -> None:
        """Somebody steers a job."""
        job_id = chance.of(self.requests).job_id
        if job_id is not None:
            self._steer(job_id, ["cancel", "retry", "approve", "deny"][chance.breaths % 4], chance.fuse)

    # The light worker.

    def relay(self, chance: Chance) -> None:
        """The outbox is published, to a broker that may be away."""
        away = chance.which % 4 == 0

        def publish(task: str, _queue: str, argument: str) -> None:
            point()
            if away:
                raise ConnectionError
            self.queue.append((task, argument))
            point()

        with suppress(ConnectionError):
            killed(Actor("light", chance.fuse), lambda: housekeeping.relay_outbox(publish))

    def keep_house(self, chance: Chance) -> None:
        """The clock strikes."""
        work = (
            housekeeping.reap_runs,
            housekeeping.purge_datasets,
            housekeeping.purge_versions,
            housekeeping.sweep_checkpoints,
            housekeeping.announce_deadlines,
        )
        killed(Actor("light", chance.fuse), chance.of(work))

    # The broker.

    def deliver(self, chance: Chance) -> None:
        """A message arrives; one for the GPU finds a worker that takes a few breaths."""
        if self.queue:
            message = self.queue.pop(chance.which % len(self.queue))
            self._handle(message, chance.fuse, breaths=chance.breaths)

    def deliver_again(self, chance: Chance) -> None:
        """A message arrives a second time, however late."""
        if self.delivered:
            self._handle(chance.of(self.delivered), chance.fuse, breaths=chance.breaths)

    def flush(self, _chance: Chance) -> None:
        """The broker forgets everything."""
        self.queue.clear()

    # What usually happens, so that histories get far.

    def flow(self, chance: Chance) -> None:
        """Messages flow, and workers work for a while."""
        self._pump(chance.breaths)

    def fail_over(self, chance: Chance) -> None:
        """Leases run out, and others take over."""
        self._run_out()
        housekeeping.reap_runs()
        self._pump(chance.breaths)

    # GPU workers.

    def go_on(self, chance: Chance) -> None:
        """A worker goes on for a while."""
        if live := self._live():
            chance.of(live).go_on(chance.breaths)

    def kill(self, chance: Chance) -> None:
        """A worker goes on until it is killed, or has ended before."""
        if live := self._live():
            worker = chance.of(live)
            worker.fuse = chance.fuse or chance.which
            worker.go_on()

    def finish(self, chance: Chance) -> None:
        """A worker goes on to its end."""
        if live := self._live():
            chance.of(live).go_on()

    def stop(self, chance: Chance) -> None:
        """A worker is told to stop."""
        if live := self._live():
            chance.of(live).stopping = True

    def renew(self, chance: Chance) -> None:
        """A worker renews its lease."""
        if live := self._live():
            chance.of(live).renew()

    # Time.

    def time_passes(self, chance: Chance) -> None:
        """The clock jumps beyond every lease and every wait, and at times beyond all that is kept for a while."""
        self._run_out()
        if chance.which % 2:
            with engine().begin() as connection:
                connection.execute(update(Dataset).values(purge_at=_JUST_NOW))
                long_ago = AdapterVersion.superseded_at - text("interval '1 year'")
                connection.execute(update(AdapterVersion).values(superseded_at=long_ago))

    # What holds at any moment.

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """Rows fit together, and every request has its job."""
        witness.check_rows()
        with new_session() as session:
            labels = session.execute(select(UnlearnJob.id, UnlearnJob.labels["number"].astext)).all()
        made: dict[int, list[str]] = {}
        for job_id, number in labels:
            made.setdefault(int(number), []).append(job_id)
        for number, request in enumerate(self.requests):
            jobs = made.get(number, [])
            assert len(jobs) <= 1, "a request with two jobs"
            assert request.job_id is None or jobs == [request.job_id], "an accepted request without its job"

    def teardown(self) -> None:
        """Left to itself the service brings every job to its end, and who had slept meanwhile changes nothing."""
        sleepers = self._live()
        try:
            self._settle(sleepers)
            before = witness.snapshot()
            for worker in sleepers:
                worker.go_on()
            assert witness.snapshot() == before, "a worker that had lost its run has written"
            self._check_the_end()
        finally:
            for worker in self._live():  # so that no thread outlives its history
                worker.fuse = 0
                worker.go_on()

    def _settle(self, sleepers: list[Worker]) -> None:
        """Everything runs again, at first beside those who had slept."""
        for request in self.requests:
            self._send(request, None)
        for _ in range(_PASSES):
            self._run_out()
            for job_id, status in self._statuses():
                if status == "awaiting_approval":
                    self._steer(job_id, "approve", None)
            housekeeping.reap_runs()
            self._pump(breaths=0)
            while fresh := [worker for worker in self._live() if worker not in sleepers]:
                for worker, breaths in (*((each, 7) for each in fresh), *((each, 2) for each in sleepers)):
                    worker.go_on(breaths)
            if not self.queue and not any(status in LIVE for _, status in self._statuses()):
                return
        raise AssertionError(f"jobs that never end: {self._statuses()}")

    def _run_out(self) -> None:
        """The clock jumps beyond every lease and every wait."""
        with engine().begin() as connection:
            connection.execute(update(Run).values(publish_after=_JUST_NOW))
            connection.execute(update(Run).where(Run.status == "running").values(lease_until=_JUST_NOW))

    def _pump(self, breaths: int) -> None:
        """The outbox is published, and all that is in the queue is delivered."""
        self.relay(Chance(1, 0, None))
        while self.queue:
            self._handle(self.queue.pop(0), None, breaths=breaths)

    def _check_the_end(self) -> None:
        witness.check_rows()
        witness.check_histories()
        witness.check_writes(self.workers)
        housekeeping.sweep_checkpoints()
        assert storage().keys("checkpoints") == []
        with new_session() as session:
            versions = session.scalars(select(AdapterVersion)).all()
            of_run = dict(session.execute(select(UnlearnJob.run_id, UnlearnJob.id)).all())
        for version in versions:
            if version.status != "purged":
                earlier = (each for each in versions if each.adapter_id == version.adapter_id)
                before = {of_run[each.run_id] for each in earlier if each.run_id and each.number <= version.number}
                assert erased(version) == before, "an erasure was undone"

    def _live(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.ended]

    def _pick(self, which: int) -> Worker:
        live = self._live()
        return live[which % len(live)]

    def _handle(self, message: Message, fuse: int | None, *, breaths: float) -> None:
        task, argument = message
        if message not in self.delivered:
            self.delivered.append(message)
        if task == outbox.RUN_TASK:
            worker = Worker(f"worker-{len(self.workers)}", argument)
            self.workers.append(worker)
            worker.go_on(breaths)
            return
        work = dict([_DATASETS, _CHECKPOINTS])[task]
        killed(Actor("light", fuse), lambda: work(argument))

    def _send(self, request: Request, fuse: int | None) -> None:
        headers = {"Idempotency-Key": f'"{request.key}"'}
        answer = self._call(self.world.submitter, "/unlearn-jobs", fuse, json=request.body, headers=headers)
        if answer is None:
            return
        if answer.status_code == httpx.codes.ACCEPTED:
            assert request.job_id in (None, answer.json()["id"])
            request.job_id = answer.json()["id"]
        else:
            # Another job of the same person, or the shared records are gone by now.
            assert answer.status_code == 409 or (answer.status_code == 422 and "retain_set" in answer.text), (
                answer.text
            )
            assert request.job_id is None, answer.text

    def _steer(self, job_id: str, what: str, fuse: int | None) -> None:
        caller = self.world.approver if what in ("approve", "deny") else self.world.submitter
        answer = self._call(caller, f"/unlearn-jobs/{job_id}/{what}", fuse, json={})
        assert answer is None or answer.status_code in (200, 202, 409), answer.text

    def _call(self, client: httpx.AsyncClient, path: str, fuse: int | None, **request: Any) -> httpx.Response | None:
        """The answer; None where the API was killed before the caller had it."""
        with acting(Actor("api", fuse)):
            try:
                return self.world.runner.run(client.post(path, **request), context=contextvars.copy_context())
            except Crash:
                return None

    def _statuses(self) -> list[tuple[str, str]]:
        with new_session() as session:
            return [(job_id, status) for job_id, status in session.execute(select(UnlearnJob.id, UnlearnJob.status))]
