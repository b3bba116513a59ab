"""`lethe doctor`."""

from __future__ import annotations

import subprocess
import sys

from app.settings import Settings
from worker.database import storage


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
