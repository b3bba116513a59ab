"""The interface against its own OpenAPI document: schemathesis asks, over a socket, whatever the document allows and
whatever it forbids, and follows its links from what is created to what is done with it.

No answer may be a 5xx, or one that the document does not describe. All checks are on; contract_fuzz.toml says which
calls may refuse what their schema allows, and why.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.auth.bootstrap import ensure_first_key
from app.embedded.process import Child
from app.embedded.redis import free_port
from app.settings import Settings
from benchmarks.api_servers import LIMITS, Server, wait_until_up
from examples import demo

CONFIG = Path(__file__).with_name("contract_fuzz.toml")
ROOT = CONFIG.parents[2]
CASES = re.compile(r"(\d+) generated")


@pytest.fixture
def server(service: Settings, tmp_path: Path) -> Iterator[Server]:
    """The service in a process of its own, with a key that may do everything."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", "--port", str(port)]
    models = {"LETHE_MODEL_ROOTS": str(Path(demo.__file__).parent)}
    child = Child("api", [*command, "--no-access-log"], env={**os.environ, **LIMITS, **models})
    child.start()
    try:
        started = Server(port, child.pid, "", ensure_first_key(service))
        wait_until_up(started, child)
        yield started
    finally:
        child.stop(10)


def fuzz(server: Server, folder: Path, *options: str) -> int:
    """Run schemathesis with all checks; how many cases it tried. Fails with its report where one found something."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
    command += [f"{server.url}/openapi.json", "--url", server.url, "-H", f"Authorization: Bearer {server.key}"]
    # Seconds: an answer that does not come fails the test, and does not hold it up for ever.
    command += ["--generation-deterministic", "--request-timeout", "20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.app.contract_fuzz_hooks"}
    done = subprocess.run(
        [*command, "--warnings", "off", *options], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    counted = CASES.search(done.stdout)
    assert counted, done.stdout
    return int(counted[1])


def test_every_answer_is_one_that_the_document_describes(server: Server, tmp_path: Path) -> None:
    assert fuzz(server, tmp_path, "--phases", "examples,fuzzing,stateful", "-n", "3") > 100


@pytest.mark.slow
def test_thousands_of_cases_find_no_undescribed_answer(server: Server, tmp_path: Path) -> None:
    assert fuzz(server, tmp_path, "-n", "60", "--continue-on-failure") >= 5000
