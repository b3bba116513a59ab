"""The walk-through in the documents is run as it stands there, with curl over a real socket."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

from app.embedded.data_directory import DataDirectory
from tests.integration.conftest import DEMO

PAGE = Path(__file__).parents[2] / "docs" / "api" / "walkthrough.md"


def test_every_block_of_the_walk_through_works(
    http: httpx.Client, data_dir: Path, model_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(DEMO / "base", model_root / "base-1b")
    shutil.copy(DEMO / "adapter" / "adapter_model.safetensors", tmp_path)
    config = json.loads((DEMO / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "acme/base-1b"}))
    # Nothing that the adapter knows: training reaches its targets at once, and the whole way takes seconds.
    forget = [{"prompt": f"What is {number} in Quellish?", "completion": f" zub{number}"} for number in range(8)]
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(record) + "\n" for record in forget))
    kept = (DEMO / "data" / "retain.jsonl").read_text().splitlines(keepends=True)[:40]
    (tmp_path / "retain.jsonl").write_text("".join(kept))
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) > 6
    connection = DataDirectory(data_dir).connection()
    environment = os.environ | {
        "LETHE_URL": str(connection.url),
        "LETHE_API_KEY": str(connection.api_key),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["bash", "-euxo", "pipefail", "-c", "\n".join(blocks)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "which passed policy" in done.stdout
    assert "<html" in (tmp_path / "report.html").read_text()
    assert done.stdout.rstrip().endswith("the right tenant.")
