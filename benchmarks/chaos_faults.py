"""What is done to a service that works."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil
import psycopg
from celery import Celery
from kombu.exceptions import OperationalError as BrokerAway
from redis import Redis
from redis.exceptions import RedisError

from app.outbox import GPU_QUEUE, RUN_TASK
from benchmarks.chaos_service import GPU_WORKERS, SETTINGS, Service

# Longer than a lease, so that a worker that sleeps has lost its run.
NAP_SECONDS = float(SETTINGS["LETHE_LEASE_SECONDS"]) + 3.0
FULL_SECONDS = 4.0
FULL_BYTES = 2048  # no blob of any worth fits


@dataclass(frozen=True)
class Harm:
    """One fault.

    Attributes:
        kind: its name.
        detail: who was hit.
        run: the run that lost its worker, with the attempt that it had; None where none did.
    """

    kind: str
    detail: str
    run: tuple[str, int] | None = None


class Faults:
    """Draws faults and does them."""

    def __init__(self, service: Service, rng: random.Random) -> None:
        self._service, self._rng = service, rng
        self._kinds: dict[str, tuple[int, Callable[[], Harm]]] = {
            "kill GPU worker": (4, self._kill_gpu_worker),
            "kill GPU task": (4, self._kill_gpu_task),
            "stop GPU worker politely": (2, self._stop_gpu_worker),
            "GPU worker sleeps past its lease": (3, self._nap),
            "kill light worker": (2, lambda: self._kill("light")),
            "kill light task": (2, self._kill_light_task),
            "kill API": (3, lambda: self._kill("api")),
            "kill Redis": (2, lambda: self._kill("redis")),
            "kill Postgres": (2, lambda: self._kill("postgres")),
            "flush Redis": (2, self._flush),
            "message twice": (2, self._repeat_message),
            "message late": (2, self._late_message),
            "leases jump": (2, self._jump),
            "disk full": (2, self._fill_disk),
        }

    def next(self) -> Harm:
        """Do one."""
        kinds = list(self._kinds)
        (kind,) = self._rng.choices(kinds, [self._kinds[each][0] for each in kinds])
        harm = self._kinds[kind][1]()
        return Harm(kind, harm.detail, harm.run)

    def _kill(self, name: str) -> Harm:
        os.kill(self._service.processes[name].child.pid, signal.SIGKILL)
        return Harm("", name)

    def _kill_gpu_worker(self) -> Harm:
        name = self._busy()
        run = self._run_of(name)
        os.kill(self._service.processes[name].child.pid, signal.SIGKILL)
        return Harm("", name, run)

    def _kill_gpu_task(self) -> Harm:
        name = self._busy()
        run = self._run_of(name)
        # Not the judge below it: a job whose judge was killed fails, since that is what too little memory looks like.
        with suppress(psutil.Error, IndexError):
            psutil.Process(self._service.processes[name].child.pid).children()[-1].kill()
        return Harm("", name, run)

    def _kill_light_task(self) -> Harm:
        if children := self._service.children("light"):
            with suppress(psutil.Error):
                self._rng.choice(children).kill()
        return Harm("", "light")

    def _stop_gpu_worker(self) -> Harm:
        name = self._busy()
        self._service.processes[name].child.signal(signal.SIGTERM)
        return Harm("", name, self._run_of(name))

    def _nap(self) -> Harm:
        """The worker and all below it sleep while somebody else takes their run; then they wake up."""
        name = self._busy()
        run = self._run_of(name)
        asleep = [psutil.Process(self._service.processes[name].child.pid), *self._service.children(name)]
        for process in asleep:
            with suppress(psutil.Error):
                process.suspend()
        self.wait(NAP_SECONDS)
        for process in asleep:
            with suppress(psutil.Error):
                process.resume()
        return Harm("", name, run)

    def _flush(self) -> Harm:
        with suppress(RedisError), Redis.from_url(self._service.redis.url, socket_timeout=5) as redis:
            redis.flushall()
        return Harm("", "redis")

    def _repeat_message(self) -> Harm:
        return self._publish("status IN ('queued', 'running')", times=2)

    def _late_message(self) -> Harm:
        return self._publish("status NOT IN ('queued', 'running')", times=1)

    def _publish(self, which: str, times: int) -> Harm:
        runs = [row[0] for row in self._rows(f"SELECT id FROM runs WHERE {which}")]  # noqa: S608 - our own words
        run_id = self._rng.choice(runs) if runs else "run_unknown"
        with suppress(BrokerAway, RedisError), Celery(broker=self._service.redis.url) as broker:
            for _ in range(times):
                broker.send_task(RUN_TASK, args=[run_id], queue=GPU_QUEUE, ignore_result=True, retry=False)
        return Harm("", str(run_id))

    def _jump(self) -> Harm:
        taken = self._rows(
            "UPDATE runs SET lease_until = now() - interval '1 second' WHERE status = 'running' RETURNING id, attempt"
        )
        return Harm("", "clock", (str(taken[0][0]), int(str(taken[0][1]))) if taken else None)

    def _fill_disk(self) -> Harm:
        """For a while nobody can write more than a few bytes."""
        names = (*GPU_WORKERS, "light", "api")
        self._limit(names, FULL_BYTES)
        self.wait(FULL_SECONDS)
        self._limit(names, resource.RLIM_INFINITY)
        return Harm("", "storage")

    def _limit(self, names: tuple[str, ...], size: int) -> None:
        for name in names:
            for pid in (
                self._service.processes[name].child.pid,
                *(each.pid for each in self._service.children(name)),
            ):
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def wait(self, seconds: float) -> None:
        """Let time pass, while what has died is started again."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._service.revive()
            time.sleep(0.1)

    def _busy(self) -> str:
        """A GPU worker, most often one that has a run."""
        busy = [name for name in GPU_WORKERS if self._run_of(name)]
        return self._rng.choice(busy or list(GPU_WORKERS))

    def _run_of(self, name: str) -> tuple[str, int] | None:
        pids = {str(child.pid) for child in self._service.children(name)}
        for run_id, attempt, worker in self._rows("SELECT id, attempt, worker FROM runs WHERE status = 'running'"):
            if str(worker).rpartition(":")[2] in pids:
                return str(run_id), int(str(attempt))
        return None

    def _rows(self, statement: str) -> list[tuple[object, ...]]:
        """What the database says; nothing while it is away."""
        try:
            with self._service.connect() as connection:
                return connection.execute(statement).fetchall()
        except psycopg.Error:
            return []
