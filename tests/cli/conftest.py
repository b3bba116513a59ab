"""A small HTTP server that answers what a test tells it to, over a real socket."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app import cli


@dataclass
class Answer:
    """One canned answer."""

    status: int = 200
    body: bytes = b"{}"
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    # Bytes after which the connection breaks; all of them when left out.
    cut: int | None = None


@dataclass
class Request:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Server:
    """Canned answers by method and path; each list is used up, its last entry stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[Request] = []
        self.url = ""

    def on(self, request: str, *answers: Answer) -> None:
        """Sets the answers to "METHOD /path"."""
        self.answers[request] = list(answers)

    def on_json(self, request: str, *bodies: dict[str, object]) -> None:
        """Sets JSON answers with status 200."""
        self.on(request, *(Answer(body=json.dumps(body).encode()) for body in bodies))

    def answer(self, request: Request) -> Answer:
        """The next canned answer, 404 without one."""
        self.requests.append(request)
        queue = self.answers.get(f"{request.method} {request.path.partition('?')[0]}", [Answer(status=404)])
        return queue.pop(0) if len(queue) > 1 else queue[0]


def read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """The request's body, plain or chunked."""
    if handler.headers.get("transfer-encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("content-length", 0)))
    body = b""
    while size := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


def make_handler(server: Server) -> type[BaseHTTPRequestHandler]:
    """The handler class that serves `server`'s answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = server.answer(Request(self.command, self.path, headers, read_body(self)))
            self.send_response(answer.status)
            for name, value in {"Content-Type": answer.content_type, **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: answer.cut])
            self.close_connection |= answer.cut is not None

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve  # noqa: N815 - the names that http.server looks for

        def log_message(self, format: str, *arguments: object) -> None:
            """Prints nothing."""

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server without answers."""
    fake = Server()
    fake.on_json("GET /unlearn-jobs/job_1/events", {"data": []})
    http = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(fake))
    fake.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    http.shutdown()
    http.server_close()
    thread.join()


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]


@pytest.fixture
def lethe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line as the `lethe` script does, in this process."""
    for name in ("LETHE_URL", "LETHE_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr("sys.argv", ["lethe", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        code = end.value.code
        return Outcome(code if isinstance(code, int) else 0, printed.out, printed.err)

    return run


@pytest.fixture
def client_options(server: Server) -> list[str]:
    """The options that point a client command at the server."""
    return ["--url", server.url, "--api-key", "lethe_test"]
