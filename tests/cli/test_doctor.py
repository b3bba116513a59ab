"""`lethe doctor`."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

from app.jobs.tables import Run
from app.settings import Settings
from tests.worker.rows import add_adapter, add_job, change
from worker.database import storage


def test_what_repairing_logs_is_not_among_what_programs_read(service: Settings) -> None:
    job = add_job(add_adapter())
    change(Run, job.run_id, status="running", attempt=1, lease_until=datetime(2020, 1, 1, tzinfo=UTC))
    command = [sys.executable, "-m", "app.cli", "doctor", "--repair", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "expired_lease" in [each["kind"] for each in json.loads(done.stdout)["findings"]]
    assert "lost worker" in done.stderr


def test_the_command_passes_on_what_the_doctor_says(service: Settings) -> None:
    with storage().create("tenants/t/left") as sink:
        sink.write(b"x")
    command = [sys.executable, "-m", "app.cli", "doctor", "--min-age", "0", "--repair"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "blob_without_row  tenants/t/left (no row names it): repaired: deleted" in done.stdout
    assert "no_worker  default (no light worker lives): left" in done.stdout
    assert done.stdout.endswith("2 found, 1 left\n")
    assert done.returncode == 1
    assert storage().keys("tenants") == []
