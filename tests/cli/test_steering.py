"""`lethe list`, `cancel`, `retry`, `approve`, `deny` and `extend`: what they ask and what they print."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Answer, Run, Server

JOB: dict[str, Any] = {
    "id": "job_1", "status": "queued", "adapter": "bot", "due_at": "2026-02-28T12:00:00Z", "overdue": False,
    "subject_request_id": None, "progress": {"queue_position": 1},
}  # fmt: skip
LATE = JOB | {"id": "job_20", "status": "running", "overdue": True, "subject_request_id": "dsr-7"}


@pytest.mark.parametrize("command", ["list", "cancel", "retry", "approve", "deny", "extend"])
def test_help_of_every_command_teaches_with_an_example(lethe: Run, command: str) -> None:
    outcome = lethe(command, "--help")
    assert (outcome.status, f"Example: lethe {command}" in outcome.stdout) == (0, True)


def test_jobs_are_a_table_across_pages(lethe: Run, server: Server, client_options: list[str]) -> None:
    first = {"data": [LATE], "has_more": True, "next_cursor": "c1"}
    server.on_json("GET /unlearn-jobs", first, {"data": [JOB], "has_more": False, "next_cursor": None})
    outcome = lethe("list", *client_options)
    assert outcome.stdout.splitlines() == [
        "JOB     STATUS   ADAPTER  DUE                             REQUEST",
        "job_20  running  bot      2026-02-28T12:00:00Z (overdue)  dsr-7",
        "job_1   queued   bot      2026-02-28T12:00:00Z            -",
    ]
    assert server.requests[-1].path.endswith("&cursor=c1")
    server.on_json("GET /unlearn-jobs", {"data": [LATE, JOB], "has_more": False, "next_cursor": None})
    outcome = lethe("list", "--json", *client_options)
    assert [json.loads(line) for line in outcome.stdout.splitlines()] == [LATE, JOB]


def test_every_filter_is_the_services_own(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("GET /unlearn-jobs", {"data": [], "has_more": False, "next_cursor": None})
    filters = ["--status", "queued", "--status", "running", "--adapter", "bot", "--subject-request-id", "dsr 7"]
    filters += ["--due-before", "2026-01-31T12:00:00+01:00", "--overdue", "--metadata", "a=b=c", "--metadata", "d="]
    outcome = lethe("list", *filters, "--limit", "5", *client_options)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "", "there are no such jobs\n")
    assert server.requests[0].path == (
        "/unlearn-jobs?status=queued&status=running&adapter=bot&subject_request_id=dsr+7"
        "&due_before=2026-01-31T12%3A00%3A00%2B01%3A00&overdue=true&metadata%5Ba%5D=b%3Dc&metadata%5Bd%5D=&limit=5"
    )


@pytest.mark.parametrize("metadata", ["a", "=b"])
def test_metadata_without_a_key_or_a_value_is_a_usage_error(
    lethe: Run, server: Server, client_options: list[str], metadata: str
) -> None:
    assert lethe("list", "--metadata", metadata, *client_options).status == 2
    assert server.requests == []


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["cancel", "job_1"], None),
        (["retry", "job_1"], None),
        (["approve", "job_1"], None),
        (["approve", "job_1", "--reason", "checked"], {"reason": "checked"}),
        (["deny", "job_1", "--reason", "a hold"], {"reason": "a hold"}),
        (["extend", "job_1", "--reason", "many"], {"reason": "many"}),
    ],
)
def test_a_change_is_asked_for_and_the_job_shown(
    lethe: Run, server: Server, client_options: list[str], arguments: list[str], body: dict[str, str] | None
) -> None:
    server.on_json(f"POST /unlearn-jobs/job_1/{arguments[0]}", JOB)
    outcome = lethe(*arguments, *client_options)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "status   queued (queued, position 1)" in outcome.stdout.splitlines()
    (request,) = server.requests
    assert (json.loads(request.body) if request.body else None) == body
    assert json.loads(lethe(*arguments, "--json", *client_options).stdout) == JOB


def test_a_running_job_that_is_to_stop_says_so(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("POST /unlearn-jobs/job_1/cancel", LATE | {"cancel_requested_at": "2026-01-31T12:00:00Z"})
    assert "cancel   asked for 2026-01-31T12:00:00Z" in lethe("cancel", "job_1", *client_options).stdout.splitlines()


def test_an_extension_takes_a_reason(lethe: Run, server: Server, client_options: list[str]) -> None:
    assert lethe("extend", "job_1", *client_options).status == 2
    assert server.requests == []


def test_a_refusal_is_one_message(lethe: Run, server: Server, client_options: list[str]) -> None:
    problem = {"title": "Own request", "detail": "this key submitted the job", "code": "own_request"}
    answer = Answer(403, json.dumps(problem).encode(), "application/problem+json")
    server.on("POST /unlearn-jobs/job_1/approve", answer)
    outcome = lethe("approve", "job_1", *client_options)
    assert (outcome.status, outcome.stdout) == (1, "")
    assert outcome.stderr == "error: 403 this key submitted the job [own_request]\n"
