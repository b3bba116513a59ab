"""The processes of a service that get killed: as `lethe up` starts them, with two GPU workers, revived at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.auth.bootstrap import add_key, ensure_first_key
from app.database import upgrade_schema
from app.embedded.data_directory import DataDirectory
from app.embedded.environment import service_environment
from app.embedded.postgres import EmbeddedPostgres, libpq_url
from app.embedded.process import Child
from app.embedded.redis import EmbeddedRedis, free_port
from app.embedded.supervisor import api_command, celery_worker
from app.kit.db import make_engine
from app.settings import Settings

HOST = "127.0.0.1"
READY_SECONDS = 240.0
# Everything is noticed within seconds, every few steps leave a checkpoint, and no run is given up for its workers.
SETTINGS = {
    "LETHE_LEASE_SECONDS": "5",
    "LETHE_HEARTBEAT_SECONDS": "1",
    "LETHE_CHECKPOINT_SECONDS": "0.2",
    "LETHE_MAX_LOST_WORKERS": "1000",
    "LETHE_EVALUATION_RECORDS": "8",
    "LETHE_TORCH_THREADS": "1",
    "LETHE_DEVICE": "cpu",
    "LETHE_RATE_LIMIT": "",
    "LETHE_RATE_LIMIT_WRITES": "",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore:You're running the worker with superuser",
}
GPU_WORKERS = ("gpu-1", "gpu-2")


@dataclass
class Process:
    """One that is started again when it has died.

    Attributes:
        start: makes and starts it.
    """

    name: str
    start: Callable[[], Child]
    child: Child

    def alive(self) -> bool:
        """Whether it runs, or sleeps."""
        return self.child.running


class Service:
    """Postgres, Redis, API, light worker and two GPU workers on one folder."""

    def __init__(self, folder: Path, models: Path, log: Path) -> None:
        self.folder = folder
        self._log = log.open("w", buffering=1)
        self._data = DataDirectory(folder)
        self._data.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.postgres = EmbeddedPostgres(folder / "postgres", sink=self._sink("postgres"))
        self.redis = EmbeddedRedis(folder / "redis", sink=self._sink("redis"))
        self._port = free_port()
        self.url = f"http://{HOST}:{self._port}"
        self._models = models
        self.processes: dict[str, Process] = {}
        self.environment: dict[str, str] = {}
        self.keys: tuple[str, str] = ("", "")

    @property
    def database_url(self) -> str:
        """SQLAlchemy's."""
        return self.postgres.url()

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self.postgres.start()
        self.processes["postgres"] = Process("postgres", self._restart_postgres, self.postgres.child)
        self.redis.start()
        self.processes["redis"] = Process("redis", self._restart_redis, self.redis.child)
        self.environment = {
            **service_environment(self._data, self.database_url, self.redis.url),
            "LETHE_MODEL_ROOTS": str(self._models),
            **SETTINGS,
        }
        upgrade_schema(self.database_url)
        self.keys = self._two_keys()
        for name in GPU_WORKERS:
            self._launch(name, celery_worker(name, 1, "-Q", "gpu", "--loglevel", "INFO"))
        schedule = str(self.folder / "celerybeat-schedule")
        light = celery_worker("light", 2, "-Q", "default", "-B", "--schedule", schedule)
        self._launch("light", [*light, "--max-tasks-per-child", "1000"])
        self._launch("api", api_command(HOST, self._port))
        self.wait_until_ready()

    def revive(self) -> None:
        """Start again what has died."""
        for process in self.processes.values():
            if not process.alive():
                process.child.finish()
                process.child = process.start()

    def ready(self) -> bool:
        """Whether `/readyz` answers 200 and counts the workers."""
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        workers = answer.json().get("workers", {}) if answer.status_code == httpx.codes.OK else {}
        return bool(workers.get("default")) and workers.get("gpu", 0) >= 1

    def wait_until_ready(self) -> None:
        """Revive until everything works."""
        deadline = time.monotonic() + READY_SECONDS
        while not self.ready():
            if time.monotonic() > deadline:
                raise SystemExit(f"the service did not become ready; see {self._log.name}")
            self.revive()
            time.sleep(0.2)

    def stop(self) -> None:
        """End everything."""
        for name in (*GPU_WORKERS, "api", "light"):
            if name in self.processes:
                self.processes[name].child.signal(signal.SIGCONT)
                self.processes[name].child.stop(20.0)
        self.redis.stop()
        self.postgres.stop()
        self._log.close()

    def children(self, name: str) -> list[psutil.Process]:
        """The processes below one of them."""
        with suppress(psutil.Error):
            return psutil.Process(self.processes[name].child.pid).children(recursive=True)
        return []

    def strangers(self) -> list[str]:
        """Processes of this service that none of the started ones has below it."""
        known = {os.getpid()}
        for name, process in self.processes.items():
            known |= {process.child.pid, *(child.pid for child in self.children(name))}
        found = []
        for other in psutil.process_iter(["pid", "name"]):
            try:
                belongs = other.pid not in known and other.environ().get("LETHE_STORAGE_DIR") == str(
                    self.folder / "storage"
                )
            except psutil.Error:
                continue
            if belongs and other.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{other.pid} {other.info['name']}")
        return found

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection to the database, past the service."""
        return psycopg.connect(libpq_url(self.database_url), autocommit=True, connect_timeout=5)

    def _launch(self, name: str, command: list[str]) -> None:
        def start() -> Child:
            child = Child(name, command, sink=self._sink(name), env={**os.environ, **self.environment})
            child.start()
            return child

        self.processes[name] = Process(name, start, start())

    def _restart_postgres(self) -> Child:
        self.postgres.start()
        return self.postgres.child

    def _restart_redis(self) -> Child:
        self.redis.restart()
        return self.redis.child

    def _two_keys(self) -> tuple[str, str]:
        """One that asks for jobs, and one that approves them."""
        values = self.environment
        settings = Settings(
            database_url=SecretStr(values["LETHE_DATABASE_URL"]),
            redis_url=SecretStr(values["LETHE_REDIS_URL"]),
            storage_dir=Path(values["LETHE_STORAGE_DIR"]),
            encryption_keys=SecretStr(values["LETHE_ENCRYPTION_KEYS"]),
            key_pepper=SecretStr(values["LETHE_KEY_PEPPER"]),
        )
        first = ensure_first_key(settings)
        assert first is not None  # noqa: S101 - the database is new
        with Session(make_engine(self.database_url)) as session, session.begin():
            tenant = session.scalar(text("SELECT id FROM tenants"))
            return first, add_key(session, tenant, "approver", settings.pepper)

    def _sink(self, name: str) -> Callable[[str], None]:
        def write(line: str) -> None:
            with suppress(ValueError):  # it was closed
                self._log.write(f"{time.strftime('%H:%M:%S')} {name:9} {line}\n")

        return write
