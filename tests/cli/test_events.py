"""`lethe events`: the list, and following a stream through everything that can happen to it."""

import json
from typing import Any

import pytest

from app.commands import events
from tests.cli.conftest import Answer, Run, Server

PATH = "GET /unlearn-jobs/job_1/events"


def event(number: int, message: str, **fields: Any) -> dict[str, Any]:
    """An event as the service gives it."""
    shape = {"id": number, "created_at": f"2026-01-31T12:00:0{number}Z", "level": "info", "type": "message"}
    return {**shape, "message": message, "data": {}} | fields


def stream(*events: dict[str, Any], end: str | None = None, **answer: Any) -> Answer:
    """A stream of these, closed as the service closes it when a status is given."""
    text = "retry: 2000\n\n: ping\n\n"
    for each in events:
        text += f"event: {each['type']}\ndata: {json.dumps(each)}\nid: {each['id']}\n\n"
    text += f'event: end\ndata: {{"job": "job_1", "status": "{end}"}}\n\n' if end else ""
    return Answer(200, text.encode(), "text/event-stream", **answer)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PAUSE", 0.0)


def ended(server: Server, status: str) -> None:
    """The job's end."""
    server.on_json("GET /unlearn-jobs/job_1", {"id": "job_1", "status": status, "adapter": "bot"})


def test_help_teaches_with_an_example(lethe: Run) -> None:
    assert "Example: lethe events" in lethe("events", "--help").stdout


def test_events_are_told_oldest_first(lethe: Run, server: Server, client_options: list[str]) -> None:
    newest = [event(2, "went wrong", level="error"), event(1, "accepted")]
    server.on_json(PATH, {"data": newest, "has_more": False, "next_cursor": None})
    outcome = lethe("events", "job_1", "--limit", "7", *client_options)
    assert outcome.stdout.splitlines() == [
        "2026-01-31T12:00:01Z  info   accepted",
        "2026-01-31T12:00:02Z  error  went wrong",
    ]
    assert server.requests[0].path.endswith("?limit=7")
    outcome = lethe("events", "job_1", "--json", *client_options)
    assert [json.loads(line) for line in outcome.stdout.splitlines()] == newest[::-1]


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("gate_failed", 1)])
def test_following_ends_with_the_job_whose_end_is_the_exit_status(
    lethe: Run, server: Server, client_options: list[str], status: str, code: int
) -> None:
    server.on(PATH, stream(event(1, "accepted"), event(2, "done"), end=status))
    ended(server, status)
    outcome = lethe("events", "job_1", "--follow", "--json", *client_options)
    assert outcome.status == code
    assert [json.loads(line) for line in outcome.stdout.splitlines()] == [event(1, "accepted"), event(2, "done")]
    assert server.requests[0].headers["accept"] == "text/event-stream"
    assert "last-event-id" not in server.requests[0].headers


@pytest.mark.parametrize(
    "interruption",
    [
        stream(),
        Answer(503, b"{}", "application/problem+json"),
        Answer(429, b"{}", "application/problem+json"),
        Answer(502, b"<html>", "text/html"),
        Answer(200, b"data: {\n\n", "text/event-stream", cut=4),
    ],
    ids=["restarted", "away", "full", "proxy", "broken"],
)
def test_what_was_cut_goes_on_where_it_was(
    lethe: Run, server: Server, client_options: list[str], interruption: Answer
) -> None:
    first, rest = stream(event(1, "accepted"), event(2, "started")), stream(event(3, "done"), end="succeeded")
    server.on(PATH, first, interruption, rest)
    ended(server, "succeeded")
    outcome = lethe("events", "job_1", "--follow", *client_options)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert [line.split()[-1] for line in outcome.stdout.splitlines()] == ["accepted", "started", "done"]
    assert [request.headers.get("last-event-id") for request in server.requests[:3]] == [None, "2", "2"]


def test_nothing_new_of_an_ended_job_is_its_end(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on(PATH, stream(event(1, "accepted")), Answer(204, b""), Answer(401))
    ended(server, "succeeded")
    assert lethe("events", "job_1", "--follow", *client_options).status == 0


def test_a_service_that_stays_away_is_given_up(
    lethe: Run, server: Server, client_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PATIENCE", 0.0)
    server.on(PATH, stream(event(1, "accepted")), Answer(503, b"{}", "application/problem+json"))
    outcome = lethe("events", "job_1", "--follow", *client_options)
    assert (outcome.status, "503" in outcome.stderr) == (1, True)


def test_a_refusal_ends_it_at_once(lethe: Run, server: Server, client_options: list[str]) -> None:
    problem = {"title": "Unauthenticated", "detail": "this API key is revoked", "code": "unauthenticated"}
    server.on(PATH, stream(), Answer(401, json.dumps(problem).encode(), "application/problem+json"))
    outcome = lethe("events", "job_1", "--follow", *client_options)
    assert (outcome.status, outcome.stderr) == (1, "error: 401 this API key is revoked [unauthenticated]\n")
    assert len(server.requests) == 2
