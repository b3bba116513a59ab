"""`lethe events`."""

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from app.client import ApiError, ClientError, LetheClient, UnreachableError
from app.commands.connection import DEFAULT_DATA_DIR, DataDirOption, KeyOption, UrlOption, connect
from app.commands.jobs import JobArgument, finish
from app.kit.event_source import messages

Show = Callable[[dict[str, Any]], None]
STREAM = "text/event-stream"
# Seconds. A service that restarts is away for a while, and so is one that has too many streams open.
PAUSE, PATIENCE = 2.0, 60.0
PASSING = {429, 502, 503, 504}


def events(
    job_id: JobArgument,
    follow_job: Annotated[
        bool, typer.Option("--follow", help="All of them, then each as it happens; exit 1 unless the job succeeds.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most events without --follow, the newest ones.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON Lines, with their data.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show what happened to a job, oldest first.

    Example: lethe events job_01J8Z3 --follow
    """

    def show(event: dict[str, Any]) -> None:
        typer.echo(json.dumps(event) if as_json else line(event))

    with connect(url, api_key, data_dir) as client:
        if follow_job:
            follow(client, job_id, show)
            finish(client.job(job_id))
            return
        for event in reversed(client.items(f"/unlearn-jobs/{job_id}/events", limit)):
            show(event)


def line(event: dict[str, Any]) -> str:
    """An event for a person's eyes."""
    return f"{event['created_at']}  {event['level']:<5}  {event['message']}"


def follow(client: LetheClient, job_id: str, show: Show) -> None:
    """Show every event once until the job has ended, however often the connection breaks."""
    stream = _Stream(client, job_id, show)
    failing_since: float | None = None
    while not stream.ended:
        try:
            stream.read()
            failing_since = None
        except ClientError as error:
            now = time.monotonic()
            failing_since = now if failing_since is None or stream.connected else failing_since
            if not _passes(error) or now - failing_since > PATIENCE:
                raise
        if not stream.ended:
            time.sleep(PAUSE)


def _passes(error: ClientError) -> bool:
    return isinstance(error, UnreachableError) or (isinstance(error, ApiError) and error.status in PASSING)


class _Stream:
    """A stream of events that goes on where it was cut.

    Attributes:
        connected: whether the last attempt to read got a stream.
        ended: whether the job has ended and all of its events were shown.
    """

    def __init__(self, client: LetheClient, job_id: str, show: Show) -> None:
        self._client = client
        self._path = f"/unlearn-jobs/{job_id}/events"
        self._show = show
        self._last: dict[str, str] = {}
        self.connected = False
        self.ended = False

    def read(self) -> None:
        """Show what comes until the stream ends. Raises ClientError."""
        self.connected = False
        with self._client.stream(self._path, {"Accept": STREAM} | self._last) as response:
            self.connected = True
            if response.status_code == 204:
                self.ended = True
                return
            for message in messages(response.iter_bytes()):
                if message.event == "end":
                    self.ended = True
                    return
                self._show(json.loads(message.data))
                if message.id is not None:
                    self._last = {"Last-Event-ID": message.id}
