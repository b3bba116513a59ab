"""The supervisor with real Postgres and Redis; the API and the workers are small stand-ins."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from app.embedded import supervisor
from app.embedded.data_directory import DataDirectory
from app.embedded.supervisor import Supervisor, UpOptions
from app.embedded.terminal import Terminal
from tests.embedded.test_process import wait_for

API = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"workers": {"gpu": 1, "default": 1}}')
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
WORKER = (
    "import os, time; print(sorted(n for n in os.environ if n.startswith('LETHE_')), flush=True); time.sleep(600)"
)


class Recorder(Terminal):
    """Keeps what would be printed."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, name: str, text: str) -> None:
        """Keeps a line."""
        self.lines.append(f"{name}: {text}")

    def banner(self, text: str) -> None:
        """Keeps the banner."""
        self.lines.append(text)

    def has(self, text: str) -> bool:
        """Whether some line contains `text`."""
        return any(text in line for line in self.lines)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder outside pytest's own, which the helper user of a root session could not enter."""
    path = Path(tempfile.mkdtemp(prefix="lethe-"))
    yield path
    shutil.rmtree(path)


def api_command(host: str, port: int) -> list[str]:
    """An API that is ready at once."""
    return [sys.executable, "-c", API, str(port)]


def celery_worker(name: str, processes: int, *options: str) -> list[str]:
    """A worker that prints which settings it got."""
    return [sys.executable, "-c", WORKER]


def dying_worker(name: str, processes: int, *options: str) -> list[str]:
    """A worker that cannot start."""
    return [sys.executable, "-c", "raise SystemExit(3)"]


@pytest.fixture
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the API and the workers by small scripts."""
    monkeypatch.setattr(supervisor, "api_command", api_command)
    monkeypatch.setattr(supervisor, "celery_worker", celery_worker)


def up(folder: Path, port: int = 0) -> tuple[Supervisor, Recorder]:
    """A supervisor that was not started, and what it prints."""
    recorder = Recorder()
    return Supervisor(UpOptions("127.0.0.1", port, folder, (folder,)), recorder), recorder


def run_while(running: Supervisor, script: Callable[[], None]) -> int:
    """Runs the supervisor here and `script` beside it; SIGTERM to ourselves ends the supervisor."""
    failures: list[BaseException] = []

    def play() -> None:
        try:
            script()
        except BaseException as error:  # handed to the test below
            failures.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=play)
    thread.start()
    status = running.run()
    thread.join()
    if failures:
        raise failures[0]
    return status


def descendants() -> list[psutil.Process]:
    """Everything that this process started and that still runs."""
    return psutil.Process().children(recursive=True)


@pytest.mark.usefixtures("_stand_ins")
class TestUp:
    """A whole life of the service."""

    def test_it_gets_ready_writes_the_connection_and_leaves_nothing_running(self, folder: Path) -> None:
        running, recorder = up(folder)
        connection = DataDirectory(folder)
        before = {process.pid for process in descendants()}

        def script() -> None:
            wait_for(lambda: connection.connection().url is not None, 60)
            assert httpx.get(f"{connection.connection().url}/readyz").status_code == httpx.codes.OK

        assert run_while(running, script) == 0
        key = connection.connection().api_key
        assert key is not None
        assert key.startswith("lethe_")
        assert recorder.has(f"Lethe is ready at {running.url}")
        assert not recorder.has(key)
        assert recorder.has("LETHE_DATABASE_URL', 'LETHE_ENCRYPTION_KEYS', 'LETHE_KEY_PEPPER'")
        assert {process.pid for process in descendants()} <= before

    def test_a_second_start_keeps_the_key(self, folder: Path) -> None:
        connection = DataDirectory(folder)

        def ready() -> None:
            wait_for(lambda: connection.connection().url is not None, 60)

        assert run_while(up(folder)[0], ready) == 0
        key = connection.connection().api_key
        second, recorder = up(folder)
        assert run_while(second, lambda: wait_for(lambda: recorder.has("Lethe is ready"), 60)) == 0
        assert connection.connection().api_key == key is not None

    @pytest.mark.parametrize("name", ["gpu", "postgres", "redis"])
    def test_a_killed_process_is_named_and_started_again(self, folder: Path, name: str) -> None:
        running, recorder = up(folder)

        def child_pid() -> int:
            return next(process.child.pid for process in running._watched if process.name == name)

        def script() -> None:
            wait_for(lambda: recorder.has("Lethe is ready"), 60)
            first = child_pid()
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: recorder.has(f"{name} was ended by signal 9"))
            wait_for(lambda: child_pid() != first)

        assert run_while(running, script) == 0

    def test_a_process_that_keeps_dying_stops_everything(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor, "celery_worker", dying_worker)
        monkeypatch.setattr(supervisor, "MAX_RESTARTS", 0)
        running, recorder = up(folder)
        before = {process.pid for process in descendants()}
        assert running.run() == 1
        assert recorder.has("ended with exit status 3 1 times, giving up")
        assert {process.pid for process in descendants()} <= before


def test_a_port_in_use_is_refused_before_anything_starts(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running, recorder = up(folder, port)
        assert running.run() == 1
    assert recorder.has(f"cannot listen on 127.0.0.1 port {port}")
    assert recorder.has("choose another --port")
    assert not (folder / "postgres").exists()


def test_a_second_supervisor_of_one_directory_is_refused(folder: Path) -> None:
    holder = DataDirectory(folder)
    holder.acquire()
    running, recorder = up(folder)
    assert running.run() == 1
    assert recorder.has("in use by another `lethe up`")
    holder.release()
