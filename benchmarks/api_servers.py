"""The processes that are measured: a Postgres, a Redis, and API processes on databases of their own."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
from pydantic import SecretStr

from app.auth.bootstrap import ensure_first_key
from app.database import upgrade_schema
from app.demo.files import BASE_MODEL, DemoFiles, find_files
from app.embedded.data_directory import random_key
from app.embedded.postgres import EmbeddedPostgres, create_database, libpq_url
from app.embedded.process import Child
from app.embedded.redis import EmbeddedRedis, free_port
from app.settings import Settings
from benchmarks.api_bare import DATABASE

HOST = "127.0.0.1"
START_SECONDS = 60.0
ADAPTER = "support-bot"
# Limits are counted as ever, and never reached.
LIMITS = {
    "LETHE_RATE_LIMIT": "1000000/second",
    "LETHE_RATE_LIMIT_WRITES": "1000000/second",
    "LETHE_MAX_LIVE_JOBS": "1000000",
}


@dataclass(frozen=True)
class Server:
    """One process behind a port."""

    port: int
    pid: int
    database: str
    key: str | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}"


class Machine:
    """Starts everything that a measurement needs, in one folder, and ends it all with the block."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._root, self._stack = root, stack
        self._postgres = EmbeddedPostgres(root / "postgres")
        self._redis = EmbeddedRedis(root / "redis")
        self._postgres.start()
        stack.callback(self._postgres.stop)
        self._redis.start()
        stack.callback(self._redis.stop)
        self._secrets = {"encryption_keys": f"k1:{random_key()}", "key_pepper": random_key()}

    def bare(self) -> Server:
        """The application that Lethe is compared with."""
        url = self._database("bare")
        return self._serve("benchmarks.api_bare:create_app", {DATABASE: libpq_url(url)}, url, None)

    def lethe(self, name: str) -> Server:
        """Lethe on a database of its own with one tenant, its key, and the demo's base model and adapter."""
        url = self._database(name)
        upgrade_schema(url)
        settings = self._settings(name, url)
        key = ensure_first_key(settings)
        environment = {
            "LETHE_DATABASE_URL": url,
            "LETHE_REDIS_URL": self._redis.url,
            "LETHE_STORAGE_DIR": str(settings.storage_dir),
            "LETHE_MODEL_ROOTS": str(find_files().root),
            "LETHE_ENCRYPTION_KEYS": self._secrets["encryption_keys"],
            "LETHE_KEY_PEPPER": self._secrets["key_pepper"],
            **LIMITS,
        }
        server = self._serve("app.main:create_app", environment, url, key)
        register_adapter(server, find_files())
        return server

    def _settings(self, name: str, url: str) -> Settings:
        return Settings(
            database_url=SecretStr(url),
            redis_url=SecretStr(self._redis.url),
            storage_dir=self._root / "storage" / name,
            encryption_keys=SecretStr(self._secrets["encryption_keys"]),
            key_pepper=SecretStr(self._secrets["key_pepper"]),
        )

    def _database(self, name: str) -> str:
        create_database(self._postgres.url("postgres"), name)
        return self._postgres.url(name)

    def _serve(self, application: str, environment: dict[str, str], database: str, key: str | None) -> Server:
        """One uvicorn worker, the same way for all, and as `lethe up` starts it."""
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", application, "--factory", "--host", HOST, "--port", str(port)]
        child = Child(application, [*command, "--no-access-log"], env={**os.environ, **environment})
        child.start()
        self._stack.callback(child.stop, 10.0)
        server = Server(port, child.pid, database, key)
        wait_until_up(server, child)
        return server


def wait_until_up(server: Server, child: Child) -> None:
    """Until the process answers anything at all."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            httpx.get(f"{server.url}/livez", trust_env=False)
        except httpx.TransportError:
            if not child.running or time.monotonic() > deadline:
                raise SystemExit("\n".join(child.last_lines)) from None
            time.sleep(0.1)
        else:
            return


def register_adapter(server: Server, files: DemoFiles) -> None:
    """The demo's base model and adapter, as a client registers them."""
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client:
        client.post("/base-models", json={"name": BASE_MODEL, "source": files.base.name}).raise_for_status()
        names = {"adapter_config": "adapter_config.json", "adapter_model": "adapter_model.safetensors"}
        parts = {field: (name, (files.adapter / name).read_bytes()) for field, name in names.items()}
        client.post("/adapters", data={"name": ADAPTER, "base_model": BASE_MODEL}, files=parts).raise_for_status()


def connect(server: Server) -> psycopg.Connection[tuple[object, ...]]:
    """A connection to a server's database."""
    return psycopg.connect(libpq_url(server.database), autocommit=True)


@contextmanager
def running() -> Iterator[Machine]:
    """Everything in a temporary folder that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder, ExitStack() as stack:
        yield Machine(Path(folder), stack)
