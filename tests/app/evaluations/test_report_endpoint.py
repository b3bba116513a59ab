"""The report over HTTP, and how the command line saves it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.evaluations.tables import EvaluationRow
from app.jobs import transitions
from app.jobs.tables import Run
from tests.app.conftest import post_job
from tests.app.evaluations.documents import Json, evaluation, old_evaluation
from tests.app.evaluations.test_report import HOSTILE
from tests.app.kit.test_negotiation import BROWSER
from tests.cli.conftest import Answer, Server
from tests.cli.conftest import Run as RunCommand

HTML = {"Accept": "text/html"}


async def evaluated(client: httpx.AsyncClient, engine: Engine, document: Json, **body: Any) -> str:
    """The path of the evaluation of a job that a worker has measured."""
    job = (await post_job(client, **body)).json()
    with Session(engine) as session, session.begin():
        assert session.scalars(transitions.claim(job["run_id"], "w", timedelta(seconds=60))).one()
        session.execute(transitions.follow(job["run_id"], "running")).all()
        run = session.get_one(Run, job["run_id"])
        session.add(
            EvaluationRow(id="ev", tenant_id="ten_ours", run_id=run.id, attempt=run.attempt, document=document)
        )
    return f"/unlearn-jobs/{job['id']}/evaluation"


@pytest.mark.usefixtures("adapter")
async def test_a_report_needs_a_key(client: httpx.AsyncClient, anonymous: httpx.AsyncClient, engine: Engine) -> None:
    path = await evaluated(client, engine, evaluation())
    response = await anonymous.get(path, headers=HTML)
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.usefixtures("adapter")
async def test_a_foreign_report_is_not_found(
    client: httpx.AsyncClient, foreign: httpx.AsyncClient, engine: Engine
) -> None:
    path = await evaluated(client, engine, evaluation())
    response = await foreign.get(path, headers=HTML)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.usefixtures("adapter")
async def test_before_there_is_an_evaluation_there_is_no_report(client: httpx.AsyncClient) -> None:
    job = (await post_job(client)).json()["id"]
    response = await client.get(f"/unlearn-jobs/{job}/evaluation", headers=HTML)
    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert "queued" in response.json()["detail"]


@pytest.mark.usefixtures("adapter")
async def test_a_browser_gets_the_page_behind_every_lock(client: httpx.AsyncClient, engine: Engine) -> None:
    path = await evaluated(client, engine, evaluation(), metadata={HOSTILE[:60]: HOSTILE})
    response = await client.get(path, headers={"Accept": BROWSER})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text.startswith("<!DOCTYPE html>")
    assert "<em>support-bot</em>" in response.text
    assert "<script" not in response.text
    assert response.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "private, no-store"
    assert response.headers["vary"] == "Accept"


@pytest.mark.usefixtures("adapter")
async def test_a_program_gets_the_same_evaluation_as_json(client: httpx.AsyncClient, engine: Engine) -> None:
    document = evaluation(passed=False)
    path = await evaluated(client, engine, document)
    for accept in ("*/*", "application/json", "text/html;q=0.5, application/json"):
        response = await client.get(path, headers={"Accept": accept})
        assert response.headers["content-type"] == "application/json"
        assert response.headers["vary"] == "Accept"
        answer = response.json()
        assert answer["object"] == "evaluation"
        assert answer["gate"] == document["gate"]
        assert answer["records"] == document["records"]


@pytest.mark.usefixtures("adapter")
async def test_several_accept_headers_count_together(client: httpx.AsyncClient, engine: Engine) -> None:
    path = await evaluated(client, engine, evaluation())
    for accept in (["application/json;q=0.2", "text/html"], ["text/html", "application/json;q=0.2"]):
        response = await client.get(path, headers=[("Accept", value) for value in accept])
        assert response.headers["content-type"].startswith("text/html")


@pytest.mark.usefixtures("adapter")
async def test_an_evaluation_of_version_0_1_has_a_report(client: httpx.AsyncClient, engine: Engine) -> None:
    path = await evaluated(client, engine, old_evaluation())
    response = await client.get(path, headers=HTML)
    assert response.status_code == 200
    assert "Passed: both checks hold." in response.text


def test_the_command_saves_the_page(
    lethe: RunCommand, server: Server, client_options: list[str], tmp_path: Path
) -> None:
    page = "<!DOCTYPE html>\n<p>Passed — all of it</p>".encode()
    server.on("GET /unlearn-jobs/job_1/evaluation", Answer(200, page, "text/html; charset=utf-8"))
    target = tmp_path / "deep" / "page.html"
    outcome = lethe("report", "job_1", "-o", str(target), *client_options)
    assert (outcome.status, outcome.stdout) == (0, f"{target}\n")
    assert target.read_bytes() == page
    assert server.requests[0].headers["accept"] == "text/html"


def test_the_command_saves_nothing_where_there_is_no_report(
    lethe: RunCommand, server: Server, client_options: list[str], tmp_path: Path
) -> None:
    target = tmp_path / "page.html"
    problem = b'{"title": "Conflict", "detail": "the job is queued and has not been evaluated", "code": "conflict"}'
    server.on("GET /unlearn-jobs/job_1/evaluation", Answer(409, problem, "application/problem+json"))
    outcome = lethe("report", "job_1", "-o", str(target), *client_options)
    assert (outcome.status, outcome.stderr) == (
        1,
        "error: 409 the job is queued and has not been evaluated [conflict]\n",
    )
    # A service from before there were reports answers with JSON, whatever was asked for.
    server.on("GET /unlearn-jobs/job_1/evaluation", Answer(200, b"{}", "application/json"))
    outcome = lethe("report", "job_1", "-o", str(target), *client_options)
    assert outcome.status == 1
    assert "writes no reports" in outcome.stderr
    assert not target.exists()


def test_help_teaches_with_an_example(lethe: RunCommand) -> None:
    assert "Example: lethe report job_" in lethe("report", "--help").stdout
