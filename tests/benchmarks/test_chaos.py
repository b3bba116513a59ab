"""The chaos bench itself: a few faults against real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_few_faults_cost_nothing(tmp_path: Path) -> None:
    file = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "benchmarks.chaos", "--seed", "3", "--faults", "6", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    result = json.loads(file.read_text())
    assert (result["faults"], result["lost"], result["doubled"], result["violations"]) == (6, 0, 0, 0)
    assert "whole again after" in done.stdout
