"""`lethe keys` and `lethe tenants`: what they ask, what they print where."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from app.settings import Settings
from tests.cli.conftest import Answer, Run, Server

KEY: dict[str, object] = {
    "object": "api_key", "id": "key_1", "name": "portal", "scopes": ["jobs:write", "jobs:read"],
    "created_at": "2026-01-01T00:00:00Z", "expires_at": None, "last_used_at": None, "rotated_at": None,
    "previous_until": None, "revoked_at": None,
}  # fmt: skip
SECRET = "lethe_" + "s" * 39


@pytest.mark.parametrize("command", ["keys create", "keys list", "keys revoke", "keys rotate", "tenants create"])
def test_help_of_every_command_teaches_with_an_example(lethe: Run, command: str) -> None:
    outcome = lethe(*command.split(), "--help")
    assert outcome.status == 0
    assert f"lethe {command}" in outcome.stdout


def test_a_new_key_is_alone_on_standard_output(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("POST /api-keys", KEY | {"key": SECRET})
    scopes = ["--scope", "jobs:write", "--scope", "jobs:read"]
    outcome = lethe("keys", "create", "portal", *scopes, "--expires-in-days", "30", *client_options)
    assert (outcome.status, outcome.stdout) == (0, SECRET + "\n")
    assert "key_1" in outcome.stderr
    body = json.loads(server.requests[-1].body)
    expires = datetime.fromisoformat(body.pop("expires_at"))
    assert timedelta(days=29) < expires - datetime.now(UTC) <= timedelta(days=30)
    assert body == {"name": "portal", "scopes": ["jobs:write", "jobs:read"]}


def test_a_scope_that_does_not_exist_is_a_usage_error(lethe: Run, server: Server, client_options: list[str]) -> None:
    outcome = lethe("keys", "create", "portal", "--scope", "root", *client_options)
    assert outcome.status == 2
    assert "adapters:write" in outcome.stderr
    assert server.requests == []


def test_keys_are_listed_across_pages(lethe: Run, server: Server, client_options: list[str]) -> None:
    old = KEY | {"id": "key_0", "revoked_at": "2026-02-01T00:00:00Z", "last_used_at": "2026-01-31T00:00:00Z"}
    first = {"data": [KEY], "has_more": True, "next_cursor": "c1"}
    server.on_json("GET /api-keys", first, {"data": [old], "has_more": False, "next_cursor": None})
    outcome = lethe("keys", "list", *client_options)
    assert outcome.stdout.splitlines() == [
        "key_1  portal  jobs:write,jobs:read  used never  expires never",
        "key_0  portal  jobs:write,jobs:read  used 2026-01-31T00:00:00Z  revoked 2026-02-01T00:00:00Z",
    ]
    assert server.requests[-1].path.endswith("cursor=c1")


def test_a_rotation_asks_for_the_grace_in_seconds(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("POST /api-keys/key_1/rotate", KEY | {"key": SECRET})
    outcome = lethe("keys", "rotate", "key_1", "--grace-hours", "0.5", *client_options)
    assert outcome.stdout == SECRET + "\n"
    assert json.loads(server.requests[-1].body) == {"grace_seconds": 1800}


def test_a_refused_revocation_is_one_message(lethe: Run, server: Server, client_options: list[str]) -> None:
    problem = {"title": "Conflict", "detail": "this is the last live key", "code": "conflict"}
    answer = Answer(409, json.dumps(problem).encode(), "application/problem+json")
    server.on("POST /api-keys/key_1/revoke", answer)
    outcome = lethe("keys", "revoke", "key_1", *client_options)
    assert (outcome.status, outcome.stdout) == (1, "")
    assert "last live key" in outcome.stderr


def test_an_operator_creates_tenants_on_the_database(lethe: Run, service: Settings) -> None:
    assert service.database_url
    outcome = lethe("tenants", "create", "acme")
    assert outcome.status == 0
    assert outcome.stdout.startswith("lethe_")
    assert lethe("tenants", "list").stdout.split()[1] == "acme"
    again = lethe("tenants", "create", "acme")
    assert (again.status, again.stdout) == (1, "")
    assert lethe("tenants", "add-key", "acme").stdout.startswith("lethe_")
    assert lethe("tenants", "add-key", "nobody").status == 1
