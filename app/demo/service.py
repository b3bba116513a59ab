"""A `lethe up` of the demo's own, with its output in a log file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from app.client import LetheClient
from app.demo.files import DemoError
from app.embedded.data_directory import Connection, DataDirectory
from app.embedded.process import Child

START_SECONDS = 360.0
# The supervisor's own grace periods, one after the other, and a little.
STOP_SECONDS = 90.0
POLL_SECONDS = 0.2


@contextmanager
def running_service(data_dir: Path, models: Path, log_path: Path) -> Iterator[Child]:
    """Starts the service on a free port and ends it with the block, whatever happens in it."""
    forget_address(data_dir)
    with log_path.open("w", buffering=1) as log:
        child = Child("lethe", up_command(data_dir, models), sink=lambda line: log_line(log, line))
        child.start()
        try:
            wait_until_ready(child, data_dir)
            yield child
        finally:
            child.stop(STOP_SECONDS)


def log_line(log: TextIO, line: str) -> None:
    """One line into the log."""
    log.write(f"{line}\n")


def up_command(data_dir: Path, models: Path) -> list[str]:
    """`lethe up` by this interpreter, so that no PATH can name another one."""
    options = ["--port", "0", "--data-dir", str(data_dir), "--models", str(models)]
    return [sys.executable, "-m", "app.cli", "up", *options]


def forget_address(data_dir: Path) -> None:
    """Removes an earlier start's address, so that the new one cannot be mistaken; refuses a dir in use."""
    directory = DataDirectory(data_dir)
    directory.acquire()
    try:
        directory.write_connection(Connection(url=None, api_key=directory.connection().api_key))
    finally:
        directory.release()


def wait_until_ready(child: Child, data_dir: Path) -> None:
    """The supervisor writes the address once the database, the broker and the workers are there."""
    deadline = time.monotonic() + START_SECONDS
    while DataDirectory(data_dir).connection().url is None:
        if not child.running:
            raise DemoError("the service did not start:\n" + "\n".join(list(child.last_lines)[-8:]))
        if time.monotonic() > deadline:
            raise DemoError(f"the service was not ready after {START_SECONDS:.0f} seconds")
        time.sleep(POLL_SECONDS)


def client_of(data_dir: Path) -> LetheClient:
    """A client with the key that the service wrote at its first start."""
    connection = DataDirectory(data_dir).connection()
    if connection.url is None or connection.api_key is None:
        raise DemoError(f"the API key of {data_dir} is lost; remove this folder and start again")
    return LetheClient(connection.url, connection.api_key)
