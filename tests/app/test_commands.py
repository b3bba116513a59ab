"""The commands about jobs and about receivers of webhooks, against the real application."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import redirect_stderr, redirect_stdout

import httpx
import pytest
from sqlalchemy import Engine

from app import cli
from app.settings import Settings
from tests.app.conftest import make_key, post_job, serving
from tests.cli.conftest import Outcome


def lethe(*arguments: str) -> Outcome:
    """Runs a command line. pytest's own capture would leave the service's log on a file that is closed."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("sys.argv", ["lethe", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return Outcome(end.value.code if isinstance(end.value.code, int) else 0, out.getvalue(), err.getvalue())


async def test_jobs_are_listed_approved_followed_extended_cancelled_and_retried(
    client: httpx.AsyncClient, adapter: str, settings: Settings, engine: Engine
) -> None:
    wanted = {"policy": {"requires_approval": True}, "metadata": {"case": "7"}}
    job = (await post_job(client, **wanted)).json()["id"]
    await post_job(client)
    async with serving(settings) as (host, port):
        options = ["--url", f"http://{host}:{port}", "--api-key", make_key(engine, "ours")]

        async def run(*arguments: str) -> tuple[int, str]:
            outcome = await asyncio.to_thread(lethe, *arguments, *options)
            return outcome.status, outcome.stdout + outcome.stderr

        listed = (await run("list", "--status", "awaiting_approval", "--metadata", "case=7", "--json"))[1]
        # The service's own log lines go to the same output here.
        assert [json.loads(line)["id"] for line in listed.splitlines() if line.startswith("{")] == [job]
        assert (await run("approve", job, "--reason", "checked"))[0] == 0
        assert (await run("extend", job, "--reason", "many"))[0] == 0
        assert "a deadline is extended once" in (await run("extend", job, "--reason", "more"))[1]
        assert (await run("cancel", job))[0] == 0
        status, told = await run("events", job, "--follow")
        assert (status, "approved" in told, f"job {job} ended as cancelled" in told) == (1, True, True)
        assert (await run("retry", job))[0] == 0
        assert "job is queued" in (await run("deny", job))[1]


async def test_receivers_of_webhooks_are_managed(client: httpx.AsyncClient, settings: Settings) -> None:
    key = client.headers["authorization"].removeprefix("Bearer ")
    async with serving(settings.model_copy(update={"webhook_allow_private": ("127.0.0.0/8",)})) as (host, port):

        async def run(*arguments: str) -> str:
            options = ["--url", f"http://{host}:{port}", "--api-key", key]
            outcome = await asyncio.to_thread(lethe, "webhooks", *arguments, *options)
            assert outcome.status == 0, outcome.stderr
            return outcome.stdout

        assert "whsec_" in await run("create", "http://127.0.0.1:9/hook", "--event", "unlearn_job.failed")
        (endpoint,) = (await client.get("/webhook-endpoints")).json()["data"]
        assert endpoint["events"] == ["unlearn_job.failed"]
        assert "unlearn_job.failed" in await run("list")
        changed = (await run("update", endpoint["id"], "--all-events", "--signature", "v1a")).splitlines()
        assert changed[-1].split()[-2:] == ["v1a", "all"]
        assert "whsec_" in await run("rotate", endpoint["id"])
        assert "webhook_endpoint.test" in await run("test", endpoint["id"])
        assert "pending" in await run("deliveries", endpoint["id"])
        assert "pending" in await run("deliveries", "--subject", endpoint["id"], "--status", "pending")
        assert "whpk_" in await run("callback-key")
        assert "whsec_" in await run("callback-key", "--rotate")
        await run("delete", endpoint["id"], "--yes")
        assert (await client.get("/webhook-endpoints")).json()["data"] == []
