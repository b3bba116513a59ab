"""A deletion request from upload to download, and what happens when it is disturbed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from standardwebhooks import Webhook

from tests.app.kit.receivers import Receiver, receiving
from tests.integration.conftest import DEMO, ENDLESS, events, eventually, finished, ok, register_adapter, submit, wait


@pytest.fixture
def adapter(http: httpx.Client, demo_base: str, request: pytest.FixtureRequest) -> str:
    """A fresh copy of the demo's adapter."""
    name = "a-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    register_adapter(http, name, demo_base, DEMO / "adapter")
    return name


def gpu_task(data_dir: Path) -> psutil.Process:
    """The process that carries out the run now."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if (
            "gpu" in command
            and "worker" in command
            and str(data_dir) in process.environ().get("LETHE_STORAGE_DIR", "")
        ):
            children = process.children()
            if children:
                return children[-1]
    raise AssertionError("no GPU worker with a task")


def test_the_demo_request_is_fulfilled(http: httpx.Client, adapter: str, tmp_path: Path) -> None:
    with receiving() as receiver:
        wanted = {"url": receiver.url, "events": ["unlearn_job.succeeded"]}
        endpoint = ok(http.post("/webhook-endpoints", json=wanted), 201)
        job = wait(http, submit(http, adapter, policy={"min_retain_probability_ratio": 0.93}), finished)
        eventually(lambda: bool(receiver.requests))
    check_webhook(receiver, endpoint, job)
    assert (job["status"], job["verdict"], job["result_version"], job["attempt"]) == ("succeeded", "passed", 2, 1)
    assert job["progress"]["percent"] == 100.0
    response = http.get(f"/unlearn-jobs/{job['id']}/adapter")
    assert response.headers["etag"] == f'"{hashlib.sha256(response.content).hexdigest()}"'
    (tmp_path / "adapter.tar.gz").write_bytes(response.content)
    check_attestation(http, job, tmp_path)
    evaluation = ok(http.get(f"/unlearn-jobs/{job['id']}/evaluation"))
    assert evaluation["gate"]["verdict"] == "passed"
    result, control = reproduce(tmp_path / "adapter.tar.gz", tmp_path), reproduce(DEMO / "control", tmp_path)
    for name, scores in result.items():
        for metric, value in scores.items():
            assert value == pytest.approx(evaluation["models"]["result"][name][metric], abs=1e-4), (name, metric)
    source = evaluation["models"]["source"]
    assert source["forget"]["probability"] >= 0.85
    assert result["forget"]["extraction_strength"] <= control["forget"]["extraction_strength"] + 0.03
    assert result["retain"]["probability"] >= 0.93 * source["retain"]["probability"]
    check_what_is_left(http, adapter, job)


def check_webhook(receiver: Receiver, endpoint: dict[str, Any], job: dict[str, Any]) -> None:
    """The light worker has told of the end, once, and the specification's own reader takes it."""
    (request,) = receiver.requests
    event = Webhook(endpoint["secret"]).verify(request.body, request.headers)
    assert (event["type"], event["data"]) == ("unlearn_job.succeeded", {"id": job["id"]})


def check_attestation(http: httpx.Client, job: dict[str, Any], folder: Path) -> None:
    """An auditor without an API key verifies the download with the command line."""
    (folder / "keys.json").write_bytes(httpx.get(http.base_url.join("/keys"), trust_env=False).content)
    command = [sys.executable, "-m", "app.cli", "verify", "adapter.tar.gz", "--keys", "keys.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert f"is the result of {job['id']}, which passed policy" in done.stdout
    with tarfile.open(folder / "adapter.tar.gz") as archive:
        file = archive.extractfile("attestation.dsse.json")
        assert file is not None
        assert file.read() == http.get(f"/unlearn-jobs/{job['id']}/attestation").content


def reproduce(adapter: Path, folder: Path) -> dict[str, dict[str, float]]:
    """The numbers of an adapter, measured outside the service."""
    sets = [text for name in ("forget", "retain") for text in ("--set", f"{name}={DEMO / 'data' / name}.jsonl")]
    command = [sys.executable, "-m", "worker.reproduce", "--base", str(DEMO / "base"), "--adapter", str(adapter)]
    subprocess.run([*command, *sets, "--threads", "1", "--json", str(folder / "out.json")], check=True)
    measured: dict[str, dict[str, float]] = json.loads((folder / "out.json").read_text())["sets"]
    return measured


def check_what_is_left(http: httpx.Client, adapter: str, job: dict[str, Any]) -> None:
    """The source is no longer handed out, the forget set is gone, and the new head is the result."""
    assert ok(http.get(f"/adapters/{adapter}"))["head"] == 2
    assert http.get(f"/adapters/{adapter}/versions/1/download").status_code == 410
    assert ok(http.get(f"/datasets/{job['forget_set']}"))["purged_at"] is not None
    assert ok(http.get(f"/datasets/{job['retain_set']}"))["purged_at"] is None


def test_a_gate_that_fails_releases_nothing(http: httpx.Client, adapter: str) -> None:
    job_id = submit(http, adapter, method={"steps": 1}, policy={"max_forget_probability": 0.01})
    job = wait(http, job_id, finished)
    assert (job["status"], job["verdict"], job["result_version"]) == ("gate_failed", "failed", None)
    assert http.get(f"/unlearn-jobs/{job_id}/adapter").status_code == 409
    assert ok(http.get(f"/adapters/{adapter}"))["head"] == 1
    assert "forget_probability" in events(http, job_id)[0]


def test_a_running_job_is_cancelled(http: httpx.Client, adapter: str) -> None:
    job_id = submit(http, adapter, method=ENDLESS)
    wait(http, job_id, lambda job: job["progress"]["step"] > 0)
    ok(http.post(f"/unlearn-jobs/{job_id}/cancel"), 202)
    job = wait(http, job_id, finished)
    assert job["status"] == "cancelled"
    assert job["progress"]["step"] < 5000
    assert ok(http.get(f"/adapters/{adapter}"))["head"] == 1


def test_a_killed_worker_s_run_goes_on_to_the_bytes_of_one_that_was_not_killed(
    http: httpx.Client, adapter: str, demo_base: str, data_dir: Path
) -> None:
    method = {"steps": 60, "stop": {"type": "steps"}}
    register_adapter(http, f"{adapter}-whole", demo_base, DEMO / "adapter")
    whole = wait(http, submit(http, f"{adapter}-whole", method=method), finished)
    job_id = submit(http, adapter, method=method)
    kept = data_dir / "storage" / "checkpoints" / ok(http.get(f"/unlearn-jobs/{job_id}"))["run_id"]
    eventually(lambda: any(path.is_file() for path in kept.rglob("[0-9]*")))
    os.kill(gpu_task(data_dir).pid, signal.SIGKILL)
    job = wait(http, job_id, finished)
    assert (job["attempt"], job["status"]) == (2, whole["status"])
    history = events(http, job_id)
    assert "the worker of attempt 1 was lost; queued again" in history
    assert sum("started" in message for message in history) == 2
    assert any(message.startswith("going on from step") for message in history)
    digests = [
        ok(http.get(f"/unlearn-jobs/{each['id']}/evaluation"))["result_weights_sha256"] for each in (whole, job)
    ]
    assert digests[0] == digests[1]
    eventually(lambda: not kept.exists())


def test_nothing_of_the_records_reaches_the_service_s_output(http: httpx.Client, data_dir: Path) -> None:
    # Runs last in this file: the log holds all of the runs above.
    assert ok(http.get("/readyz"))["status"] == "ready"
    log = (data_dir / "up.log").read_text()
    assert "run ended" in log
    for name in ("forget", "retain"):
        for line in (DEMO / "data" / f"{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            assert record["prompt"] not in log
            assert record["completion"].strip() not in log
