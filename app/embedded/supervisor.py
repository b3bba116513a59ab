"""`lethe up`: Postgres, Redis, migrations, the first key, the API and both workers, kept alive and ended.

Everything is started from the main thread (see `Child`). The first Ctrl-C or SIGTERM raises `Stop` wherever
the supervisor is; a second one shortens every grace period that is left.
"""

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx
from pydantic import SecretStr

from app.auth.bootstrap import ensure_first_key
from app.database import upgrade_schema
from app.embedded.data_directory import Connection, DataDirectory
from app.embedded.environment import service_environment
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.process import Child, EmbeddedError
from app.embedded.redis import EmbeddedRedis, free_port
from app.embedded.terminal import Terminal
from app.settings import Settings

READY_SECONDS = 300.0
GRACE_SECONDS = 30.0
POLL_SECONDS = 0.2
# A process that dies more often than this within the calm period will not recover by itself.
MAX_RESTARTS = 5
CALM_SECONDS = 600.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop(BaseException):
    """Someone asked the supervisor to stop."""


@dataclass(frozen=True)
class UpOptions:
    """The arguments of `lethe up`; port 0 takes a free one."""

    host: str
    port: int
    data_dir: Path
    model_roots: tuple[Path, ...]


@dataclass
class Watched:
    """A process that is started again when it dies."""

    name: str
    start: Callable[[], Child]
    child: Child
    started_at: float
    deaths: int = 0
    retry_at: float | None = None


class Supervisor:
    """The life of one embedded service."""

    def __init__(self, options: UpOptions, terminal: Terminal) -> None:
        self._options = options
        self._terminal = terminal
        self._data = DataDirectory(options.data_dir)
        self._port = options.port or free_port(options.host)
        self._postgres = EmbeddedPostgres(self._data.path / "postgres", sink=self._sink("postgres"))
        self._redis = EmbeddedRedis(self._data.path / "redis", sink=self._sink("redis"))
        self._watched: list[Watched] = []
        self._environment: dict[str, str] = {}
        self._stop_requests = 0

    @property
    def url(self) -> str:
        """The address for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._options.host, self._options.host)  # noqa: S104
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    def run(self) -> int:
        """Starts everything and watches it until told to stop; the process's exit status."""
        handlers = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        status = 0
        try:
            self._data.acquire()
            require_free_port(self._options.host, self._port)
            self._start()
            self._watch()
        except Stop:
            self._terminal.say("stopping; press Ctrl-C again to hurry")
        except EmbeddedError as error:
            self._terminal.say(f"error: {error}")
            status = 1
        finally:
            # From here on a signal only hurries.
            self._stop_requests = max(self._stop_requests, 1)
            self._shut_down()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return status

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stop_requests += 1
        if self._stop_requests == 1:
            raise Stop

    def _sink(self, name: str) -> Callable[[str], None]:
        return lambda line: self._terminal.line(name, line)

    def _start(self) -> None:
        self._terminal.say(f"data directory {self._data.path}")
        self._terminal.say("starting Postgres" if self._postgres.exists else "creating Postgres, a few seconds")
        self._postgres.start()
        self._watch_server("postgres", self._restart_postgres, self._postgres.child)
        self._terminal.say("starting Redis")
        self._redis.start()
        self._watch_server("redis", self._restart_redis, self._redis.child)
        self._prepare_database()
        self._start_processes()
        self._wait_until_ready()
        self._announce()

    def _prepare_database(self) -> None:
        """Migrations, then the first key; the key is stored before anything else can fail."""
        self._terminal.say("migrating the database")
        self._environment = self._service_environment()
        upgrade_schema(self._postgres.url())
        fresh = ensure_first_key(self._settings())
        known = self._data.connection().api_key
        self._data.write_connection(Connection(url=None, api_key=fresh or known))

    def _service_environment(self) -> dict[str, str]:
        return {
            **service_environment(self._data, self._postgres.url(), self._redis.url),
            "LETHE_MODEL_ROOTS": os.pathsep.join(str(root.resolve()) for root in self._options.model_roots),
            # Celery's advice against root concerns pickled messages, which ours never are.
            "PYTHONWARNINGS": "ignore:You're running the worker with superuser",
        }

    def _settings(self) -> Settings:
        values = self._environment
        return Settings(
            database_url=SecretStr(values["LETHE_DATABASE_URL"]),
            redis_url=SecretStr(values["LETHE_REDIS_URL"]),
            storage_dir=Path(values["LETHE_STORAGE_DIR"]),
            encryption_keys=SecretStr(values["LETHE_ENCRYPTION_KEYS"]),
            key_pepper=SecretStr(values["LETHE_KEY_PEPPER"]),
            model_roots=self._options.model_roots,
        )

    def _start_processes(self) -> None:
        """The API and the two workers; the workers' imports take longest, so they go first."""
        schedule = str(self._data.path / "celerybeat-schedule")
        self._launch("gpu", celery_worker("gpu", 1, "-Q", "gpu", "--loglevel", "INFO"))
        # Two processes: one may wait for receivers of webhooks while the other does the rest.
        light = celery_worker("light", 2, "-Q", "default", "-B", "--schedule", schedule)
        # Its tasks are short and many: a process for each, as a GPU run gets, would cost more than they do.
        self._launch("light", [*light, "--max-tasks-per-child", "1000"])
        self._launch("api", api_command(self._options.host, self._port))

    def _launch(self, name: str, command: list[str]) -> None:
        def start() -> Child:
            child = Child(name, command, sink=self._sink(name), env={**os.environ, **self._environment})
            child.start()
            return child

        self._terminal.say(f"starting {name}")
        self._watched.append(Watched(name, start, start(), time.monotonic()))

    def _watch_server(self, name: str, restart: Callable[[], Child], child: Child) -> None:
        self._watched.append(Watched(name, restart, child, time.monotonic()))

    def _restart_postgres(self) -> Child:
        self._postgres.start()
        return self._postgres.child

    def _restart_redis(self) -> Child:
        self._redis.restart()
        return self._redis.child

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready():
            if time.monotonic() > deadline:
                raise EmbeddedError(f"the service was not ready after {READY_SECONDS:.0f} seconds")
            self._check()
            time.sleep(POLL_SECONDS)

    def _ready(self) -> bool:
        """Whether `/readyz` answers 200 and counts a live worker on each queue."""
        try:
            response = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        return response.status_code == httpx.codes.OK and all(response.json()["workers"].values())

    def _watch(self) -> None:
        while True:
            self._check()
            time.sleep(POLL_SECONDS)

    def _check(self) -> None:
        for process in self._watched:
            self._revive(process)

    def _revive(self, process: Watched) -> None:
        """Notices a death, waits 1, 2, 4 ... seconds, starts the process again, gives up after a few."""
        now = time.monotonic()
        if process.retry_at is not None:
            if now >= process.retry_at:
                process.retry_at = None
                process.child, process.started_at = process.start(), time.monotonic()
        elif not process.child.running:
            self._record_death(process, now)

    def _record_death(self, process: Watched, now: float) -> None:
        process.child.finish()
        if now - process.started_at > CALM_SECONDS:
            process.deaths = 0
        process.deaths += 1
        ending = describe_exit(process.child.exit_code)
        if process.deaths > MAX_RESTARTS:
            raise EmbeddedError(f"{process.name} {ending} {process.deaths} times, giving up")
        delay = 2.0 ** (process.deaths - 1)
        self._terminal.say(f"{process.name} {ending}; starting it again in {delay:.0f} s")
        process.retry_at = now + delay

    def _announce(self) -> None:
        key = self._data.connection().api_key
        self._data.write_connection(Connection(url=self.url, api_key=key))
        self._terminal.banner(banner(self.url, self._data, key))

    def _shut_down(self) -> None:
        """Workers and API first, so that what they finish still finds Redis and Postgres."""
        servers = {"postgres", "redis"}
        children = [process.child for process in self._watched if process.name not in servers]
        for child in children:
            child.signal(child.stop_signal)
        deadline = time.monotonic() + GRACE_SECONDS
        for child in children:
            self._end(child, deadline)
        self._redis.stop()
        self._postgres.stop()
        self._data.release()
        if self._watched:
            self._terminal.say("stopped")

    def _end(self, child: Child, deadline: float) -> None:
        while child.running and time.monotonic() < deadline and self._stop_requests < 2:
            child.wait(POLL_SECONDS)
        if child.running:
            self._terminal.say(f"{child.name} did not end in time; killing it")
        child.finish()


def celery_worker(name: str, processes: int, *options: str) -> list[str]:
    """Command of a Celery worker. Prefork, because a solo pool answers neither ping nor revoke.

    Quiet, and without the second that a worker spends to look for others: here there are none that matter.
    """
    base = [sys.executable, "-m", "celery", "--quiet", "-A", "worker.celery_app", "worker", "-c", str(processes)]
    return [*base, "-P", "prefork", "-n", f"{name}@%h", "--without-mingle", "--without-gossip", *options]


def api_command(host: str, port: int) -> list[str]:
    """Command of the API. Open event streams may not hold up its end for more than a few seconds."""
    base = [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", "--host", host]
    return [*base, "--port", str(port), "--no-access-log", "--timeout-graceful-shutdown", "5"]


def require_free_port(host: str, port: int) -> None:
    """EmbeddedError with the remedy when the API could not listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = "; choose another --port, 0 takes a free one" if error.errno == errno.EADDRINUSE else ""
            reason = error.strerror or str(error)
            raise EmbeddedError(f"cannot listen on {host} port {port}: {reason}{remedy}") from error


def describe_exit(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        return f"was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"ended with exit status {code}"


def banner(url: str, data: DataDirectory, api_key: str | None) -> str:
    """The few lines that a newcomer needs."""
    where = str(data.connection_path) if api_key else "not known here: this directory's connection.json was removed"
    read_key = f'$(python3 -c \'import json; print(json.load(open("{data.connection_path}"))["api_key"])\')'
    return (
        f"Lethe is ready at {url}\n"
        f"API key: {where}\n"
        f'Try: curl -H "Authorization: Bearer {read_key}" {url}/unlearn-jobs\n'
        "Stop with Ctrl-C."
    )


def up(options: UpOptions) -> int:
    """Runs an embedded service in the foreground; the exit status."""
    return Supervisor(options, Terminal()).run()
