"""The commands of docs/opendsr.md do what it says, against a real server."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine

from tests.app.conftest import make_key

GUIDE = (Path(__file__).parents[3] / "docs" / "opendsr.md").read_text()


@pytest.fixture
async def url(app: FastAPI, adapter: str) -> AsyncIterator[str]:
    """Where the application listens; the adapter "support-bot" is registered."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


async def test_the_commands_of_the_guide_work_one_after_the_other(url: str, engine: Engine, tmp_path: Path) -> None:
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE))
    assert commands.count("curl") > 7
    key = make_key(engine, "ours", "datasets:write", "jobs:write", "jobs:read")
    shell = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", commands, cwd=tmp_path, stdout=-1, stderr=-2,
        env={**os.environ, "URL": url, "LETHE_API_KEY": key},
    )  # fmt: skip
    output, _ = await shell.communicate()
    assert shell.returncode == 0, output.decode()
    assert "Verified OK" in output.decode()
