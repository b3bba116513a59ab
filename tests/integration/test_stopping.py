"""Stopping the service in the middle of a run, and starting it again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from app.demo.service import running_service
from app.embedded.data_directory import DataDirectory
from tests.integration.conftest import DEMO, ENDLESS, events, finished, ok, register_adapter, submit, wait


@contextmanager
def service(data_dir: Path) -> Iterator[httpx.Client]:
    """A running service of its own, and a caller."""
    with running_service(data_dir, DEMO, data_dir / "up.log"):
        connection = DataDirectory(data_dir).connection()
        headers = {"Authorization": f"Bearer {connection.api_key}"}
        with httpx.Client(base_url=str(connection.url), headers=headers, timeout=60) as client:
            yield client


def processes_of(data_dir: Path) -> list[str]:
    """Everything that still runs for a data directory, but for this test."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            belongs = str(data_dir) in " ".join([*process.cmdline(), *process.environ().values()])
        except psutil.Error:
            continue
        if belongs and process.pid != psutil.Process().pid:
            found.append(" ".join(process.cmdline()))
    return found


def test_a_run_survives_a_stop_and_no_process_does() -> None:
    data_dir = Path(tempfile.mkdtemp(prefix="lethe-"))
    with service(data_dir) as http:
        ok(http.post("/base-models", json={"name": "lethe-demo-base", "source": "base"}), 201)
        register_adapter(http, "bot", "lethe-demo-base", DEMO / "adapter")
        job_id = submit(http, "bot", method=ENDLESS)
        wait(http, job_id, lambda job: job["progress"]["step"] > 0)
        assert len(processes_of(data_dir)) > 3
    assert processes_of(data_dir) == []
    with service(data_dir) as http:
        job = wait(http, job_id, lambda job: job["progress"]["step"] > 0 and job["attempt"] == 2)
        assert job["status"] == "running"
        history = events(http, job_id)
        assert "handed back by a worker that was told to stop" in history
        (resumed,) = (line for line in history if line.startswith("going on from step"))
        assert job["progress"]["step"] > int(resumed.split()[4].rstrip(",")) > 0
        ok(http.post(f"/unlearn-jobs/{job_id}/cancel"), 202)
        assert wait(http, job_id, finished)["status"] == "cancelled"
    assert processes_of(data_dir) == []
    shutil.rmtree(data_dir)
