"""`lethe webhooks`: what it asks, what it prints where."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Answer, Run, Server

ENDPOINT: dict[str, Any] = {
    "object": "webhook_endpoint", "id": "we_1", "url": "https://dsr.example.com/lethe", "events": [],
    "signatures": ["v1", "v1a"], "enabled": True, "disabled_reason": None, "public_key": "whpk_1",
    "created_at": "2026-01-31T12:00:00Z",
}  # fmt: skip
OFF = ENDPOINT | {"id": "we_20", "events": ["unlearn_job.failed"], "enabled": False, "disabled_reason": "failing"}
SECRET = ENDPOINT | {"secret": "whsec_1"}
DELIVERY: dict[str, Any] = {
    "object": "webhook_delivery", "id": "msg_1", "endpoint": "we_1", "type": "unlearn_job.failed", "subject": "job_1",
    "status": "failed", "attempts": 3, "next_at": None, "response_status": 500, "error": "status",
    "created_at": "2026-01-31T12:00:00Z", "finished_at": "2026-01-31T13:00:00Z",
}  # fmt: skip
TITLES = "DELIVERY  STATUS  TYPE                SUBJECT  ATTEMPTS  ANSWER  CREATED"
LINE = "msg_1     failed  unlearn_job.failed  job_1    3         500     2026-01-31T12:00:00Z"


def page(*items: dict[str, Any]) -> dict[str, Any]:
    """One page of a list."""
    return {"data": list(items), "has_more": False, "next_cursor": None}


@pytest.mark.parametrize(
    "command", ["list", "create", "update", "delete", "rotate", "test", "deliveries", "replay", "callback-key"]
)
def test_help_of_every_command_teaches_with_an_example(lethe: Run, command: str) -> None:
    outcome = lethe("webhooks", command, "--help")
    assert (outcome.status, f"Example: lethe webhooks {command}" in outcome.stdout) == (0, True)


def test_receivers_are_a_table(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("GET /webhook-endpoints", page(OFF, ENDPOINT))
    assert lethe("webhooks", "list", *client_options).stdout.splitlines() == [
        "ENDPOINT  STATE               URL                            SIGNATURES  EVENTS",
        "we_20     disabled (failing)  https://dsr.example.com/lethe  v1,v1a      unlearn_job.failed",
        "we_1      enabled             https://dsr.example.com/lethe  v1,v1a      all",
    ]
    outcome = lethe("webhooks", "list", "--json", *client_options)
    assert [json.loads(line) for line in outcome.stdout.splitlines()] == [OFF, ENDPOINT]


def test_a_new_receivers_secret_is_alone_on_standard_output(
    lethe: Run, server: Server, client_options: list[str]
) -> None:
    server.on_json("POST /webhook-endpoints", SECRET)
    options = ["--event", "unlearn_job.failed", "--signature", "v1", "--signature", "v1a"]
    outcome = lethe("webhooks", "create", "https://dsr.example.com/lethe", *options, *client_options)
    assert (outcome.status, outcome.stdout) == (0, "whsec_1\n")
    assert outcome.stderr == "id: we_1; public key: whpk_1; the secret is not shown again\n"
    assert json.loads(server.requests[0].body) == {
        "url": "https://dsr.example.com/lethe",
        "events": ["unlearn_job.failed"],
        "signatures": ["v1", "v1a"],
    }
    lethe("webhooks", "create", "https://dsr.example.com/lethe", *client_options)
    assert json.loads(server.requests[1].body) == {"url": "https://dsr.example.com/lethe"}


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (["--to", "https://new.example.com"], {"url": "https://new.example.com"}),
        (["--event", "unlearn_job.failed"], {"events": ["unlearn_job.failed"]}),
        (["--all-events"], {"events": []}),
        (["--signature", "v1a"], {"signatures": ["v1a"]}),
        (["--enable"], {"enabled": True}),
        (["--disable"], {"enabled": False}),
    ],
)
def test_only_what_is_given_is_changed(
    lethe: Run, server: Server, client_options: list[str], options: list[str], body: dict[str, Any]
) -> None:
    server.on_json("PATCH /webhook-endpoints/we_1", ENDPOINT)
    outcome = lethe("webhooks", "update", "we_1", *options, *client_options)
    assert (outcome.status, "we_1      enabled" in outcome.stdout) == (0, True)
    assert json.loads(server.requests[0].body) == body


@pytest.mark.parametrize("options", [[], ["--all-events", "--event", "unlearn_job.failed"]])
def test_a_change_of_nothing_or_of_both_is_a_usage_error(
    lethe: Run, server: Server, client_options: list[str], options: list[str]
) -> None:
    assert lethe("webhooks", "update", "we_1", *options, *client_options).status == 2
    assert server.requests == []


def test_removing_asks_first(
    lethe: Run, server: Server, client_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on("DELETE /webhook-endpoints/we_1", Answer(204, b""))
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(SystemExit(1)))
    assert lethe("webhooks", "delete", "we_1", *client_options).status == 1
    assert server.requests == []
    assert lethe("webhooks", "delete", "we_1", "--yes", *client_options).stdout == "we_1 is removed\n"


def test_new_secrets_are_shown_alone(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("POST /webhook-endpoints/we_1/rotate-secret", SECRET)
    assert lethe("webhooks", "rotate", "we_1", *client_options).stdout == "whsec_1\n"
    path = "/webhook-endpoints/callback-key"
    server.on_json(f"GET {path}", {"public_key": "whpk_2"})
    server.on_json(f"POST {path}/rotate-secret", {"public_key": "whpk_2", "secret": "whsec_2"})
    assert lethe("webhooks", "callback-key", *client_options).stdout == "whpk_2\n"
    outcome = lethe("webhooks", "callback-key", "--rotate", *client_options)
    assert (outcome.stdout, outcome.stderr) == (
        "whsec_2\n",
        "public key: whpk_2; the secret is not shown again\n",
    )


def test_deliveries_of_all_and_of_one(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("GET /webhook-deliveries", page(DELIVERY))
    server.on_json("GET /webhook-endpoints/we_1/deliveries", page(DELIVERY | {"response_status": None}))
    outcome = lethe("webhooks", "deliveries", "--status", "failed", "--subject", "job_1", *client_options)
    assert outcome.stdout.splitlines() == [TITLES, LINE]
    assert server.requests[0].path == "/webhook-deliveries?status=failed&subject=job_1&limit=20"
    outcome = lethe("webhooks", "deliveries", "we_1", *client_options)
    assert outcome.stdout.splitlines() == [TITLES, LINE.replace("500   ", "status")]
    assert lethe("webhooks", "deliveries", "we_1", "--subject", "job_1", *client_options).status == 2
    assert json.loads(lethe("webhooks", "deliveries", "--json", *client_options).stdout) == DELIVERY


@pytest.mark.parametrize(
    ("command", "path"),
    [(["test", "we_1"], "/webhook-endpoints/we_1/test"), (["replay", "msg_1"], "/webhook-deliveries/msg_1/replay")],
)
def test_what_is_sent_is_shown(
    lethe: Run, server: Server, client_options: list[str], command: list[str], path: str
) -> None:
    server.on_json(f"POST {path}", DELIVERY | {"status": "pending", "response_status": None, "error": None})
    outcome = lethe("webhooks", *command, *client_options)
    assert outcome.stdout.splitlines()[1].startswith("msg_1     pending  unlearn_job.failed  job_1    3         -")
    assert [(each.method, each.path) for each in server.requests] == [("POST", path)]
