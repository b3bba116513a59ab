"""Following a job to its end: a live bar on a terminal, plain lines elsewhere."""

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from app.client import Job, LetheClient, UnreachableError

POLL_SECONDS = 0.5
# A restart of the API takes seconds; a job is not lost by it and neither is the person watching.
PATIENCE_SECONDS = 60.0


class Display(Protocol):
    """Shows a job's present state."""

    def show(self, job: Job) -> None:
        """Called after each poll."""


def describe(job: Job) -> str:
    """One short line: phase or status, step, time left."""
    progress = job.progress
    parts = [job.phase or job.status]
    if job.status == "queued" and progress.queue_position is not None:
        parts.append(f"position {progress.queue_position}")
    if job.status == "running" and progress.total_steps:
        parts.append(f"step {progress.step}/{progress.total_steps}")
    if job.status == "running" and progress.eta_seconds is not None:
        parts.append(f"about {progress.eta_seconds:.0f} s left")
    return ", ".join(parts)


class PlainDisplay:
    """A line whenever the phase changes or another tenth is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._last: tuple[str, str | None, int] | None = None

    def show(self, job: Job) -> None:
        """Prints only what is new."""
        state = (job.status, job.phase, int(job.progress.percent // 10))
        if state != self._last:
            self._last = state
            elapsed = time.monotonic() - self._started
            self._console.print(f"{elapsed:6.1f} s  {job.progress.percent:5.1f} %  {describe(job)}")


class LiveDisplay:
    """A moving bar."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("queued", total=100)

    def show(self, job: Job) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=job.progress.percent, description=describe(job))


def follow(client: LetheClient, job_id: str, console: Console) -> Job:
    """Polls until the job has ended, showing it."""
    if not console.is_terminal:
        return _poll(client, job_id, PlainDisplay(console))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console) as bar:
        return _poll(client, job_id, LiveDisplay(bar))


def _poll(client: LetheClient, job_id: str, display: Display) -> Job:
    last_answer = time.monotonic()
    while True:
        try:
            job = client.job(job_id)
        except UnreachableError:
            if time.monotonic() - last_answer > PATIENCE_SECONDS:
                raise
        else:
            last_answer = time.monotonic()
            display.show(job)
            if job.finished:
                return job
        time.sleep(POLL_SECONDS)
