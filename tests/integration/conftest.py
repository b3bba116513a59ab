"""One `lethe up` for all of these tests: every process, every message and every byte is real."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.demo.service import running_service
from app.embedded.data_directory import DataDirectory

DEMO = Path(__file__).parents[2] / "examples" / "demo"
# A lost worker is noticed within seconds instead of a minute, and leaves a checkpoint that is no older.
SETTINGS = {"LETHE_LEASE_SECONDS": "4", "LETHE_HEARTBEAT_SECONDS": "1", "LETHE_CHECKPOINT_SECONDS": "0.5"}
# Receivers of webhooks on this machine may be told.
SETTINGS["LETHE_WEBHOOK_ALLOW_PRIVATE"] = "127.0.0.0/8"
# More steps than any test waits for, whatever they have reached.
ENDLESS = {"steps": 5000, "stop": {"type": "steps"}}
PATIENCE = 240.0
FINAL = {"succeeded", "gate_failed", "failed", "cancelled"}
Jobs = Callable[..., dict[str, Any]]


@pytest.fixture(scope="package")
def data_dir() -> Iterator[Path]:
    """The service's data directory."""
    path = Path(tempfile.mkdtemp(prefix="lethe-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="package")
def model_root(data_dir: Path) -> Path:
    """The folder from which base models may be registered; the demo's lies in it."""
    root = data_dir / "models"
    shutil.copytree(DEMO / "base", root / "demo")
    return root


@pytest.fixture(scope="package")
def http(data_dir: Path, model_root: Path) -> Iterator[httpx.Client]:
    """A caller of the running service."""
    with ExitStack() as running:
        # The settings are the service's: tests that come later must not find them in their environment.
        with pytest.MonkeyPatch.context() as patch:
            for name, value in SETTINGS.items():
                patch.setenv(name, value)
            running.enter_context(running_service(data_dir, model_root, data_dir / "up.log"))
        connection = DataDirectory(data_dir).connection()
        headers = {"Authorization": f"Bearer {connection.api_key}"}
        yield running.enter_context(httpx.Client(base_url=str(connection.url), headers=headers, timeout=60))


@pytest.fixture(scope="package")
def demo_base(http: httpx.Client) -> str:
    """The demo's base model, registered."""
    ok(http.post("/base-models", json={"name": "lethe-demo-base", "source": "demo"}), 201)
    return "lethe-demo-base"


def ok(response: httpx.Response, status: int = 200) -> Any:
    """The answer's document; anything but the status fails the test with the answer's text."""
    assert response.status_code == status, response.text
    return response.json()


def register_adapter(http: httpx.Client, name: str, base: str, folder: Path, **fields: str) -> None:
    """Upload a PEFT folder; `fields` go along."""
    names = {"adapter_config": "adapter_config.json", "adapter_model": "adapter_model.safetensors"}
    files = {field: (file, (folder / file).read_bytes()) for field, file in names.items()}
    ok(http.post("/adapters", data={"name": name, "base_model": base, **fields}, files=files), 201)


def upload(http: httpx.Client, purpose: str, lines: str) -> str:
    """Upload JSON Lines and answer the dataset's id."""
    headers = {"Content-Type": "application/jsonl"}
    return str(ok(http.post(f"/datasets?purpose={purpose}", content=lines.encode(), headers=headers), 201)["id"])


def wait(
    http: httpx.Client, job_id: str, until: Callable[[dict[str, Any]], bool], patience: float = PATIENCE
) -> dict[str, Any]:
    """Poll a job until something holds of it; a job that takes for ever fails the test."""
    deadline = time.monotonic() + patience
    while True:
        job: dict[str, Any] = ok(http.get(f"/unlearn-jobs/{job_id}"))
        if until(job):
            return job
        assert time.monotonic() < deadline, job
        assert job["status"] not in FINAL, job
        time.sleep(0.2)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so that no job tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.1)


def finished(job: dict[str, Any]) -> bool:
    """Whether a job has ended."""
    return job["status"] in FINAL


def submit(http: httpx.Client, adapter: str, **body: Any) -> str:
    """Ask for the demo's two customers to be forgotten."""
    sets = {
        f"{name}_set": upload(http, name, (DEMO / "data" / f"{name}.jsonl").read_text())
        for name in ("forget", "retain")
    }
    return str(ok(http.post("/unlearn-jobs", json={"adapter": adapter, "seed": 7, **sets, **body}), 202)["id"])


def events(http: httpx.Client, job_id: str) -> list[str]:
    """The job's history, newest first."""
    return [event["message"] for event in ok(http.get(f"/unlearn-jobs/{job_id}/events?limit=100"))["data"]]
