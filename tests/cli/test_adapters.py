"""`lethe adapters`, over a real socket."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Answer, Run, Server

ALIAS: dict[str, Any] = {"adapter": "bot", "alias": "production", "version": 2, "status": "ready"}
ADAPTER: dict[str, Any] = {
    "name": "bot",
    "base_model": "acme/base",
    "head": 2,
    "head_status": "ready",
    "versions": 2,
    "default_retain_set": None,
    "training_set": "ds_1",
    "unmatched_records": 0,
    "serving": {
        "base_model": "acme/base",
        "revision": "abc",
        "rank": 24,
        "max_lora_rank": 32,
        "target_modules": ["q_proj", "v_proj"],
    },
}
VERSION: dict[str, Any] = {"version": 2, "status": "ready", "bytes": 10, "sha256": "a" * 64}


def page(*items: dict[str, Any]) -> dict[str, Any]:
    """One page of a list."""
    return {"data": list(items), "has_more": False, "next_cursor": None}


@pytest.mark.parametrize(
    "command", ["list", "show", "versions", "alias", "lineage", "link", "purge", "drop-training-set"]
)
def test_help_of_every_command_teaches_with_an_example(lethe: Run, command: str) -> None:
    outcome = lethe("adapters", command, "--help")
    assert (outcome.status, "Example: " in outcome.stdout) == (0, True)


def test_list_and_versions_are_a_line_each(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("GET /adapters", page(ADAPTER))
    server.on_json("GET /adapters/bot/versions", page(VERSION))
    outcome = lethe("adapters", "list", *client_options)
    assert outcome.stdout == "bot  on acme/base  head 2 of 2 versions\n"
    outcome = lethe("adapters", "versions", "bot", *client_options)
    assert outcome.stdout == f"2  ready  10 bytes  sha256 {'a' * 64}\n"
    outcome = lethe("adapters", "versions", "bot", "--json", *client_options)
    assert json.loads(outcome.stdout) == VERSION


def test_show_tells_what_a_server_needs_and_which_alias_to_move(
    lethe: Run, server: Server, client_options: list[str]
) -> None:
    server.on_json("GET /adapters/bot", ADAPTER)
    old = ALIAS | {"alias": "canary", "version": 1, "status": "superseded"}
    server.on_json("GET /adapters/bot/aliases", page(ALIAS, old))
    outcome = lethe("adapters", "show", "bot", *client_options)
    for words in ("acme/base at abc", "--max-lora-rank 32", "production -> 2,", "canary -> 1 (superseded: move it)"):
        assert words in outcome.stdout
    outcome = lethe("adapters", "show", "bot", "--json", *client_options)
    assert json.loads(outcome.stdout) == ADAPTER | {"aliases": [ALIAS, old]}


def test_an_alias_is_set_shown_and_taken_away(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("PUT /adapters/bot/aliases/production", ALIAS)
    server.on_json("GET /adapters/bot/aliases/production", ALIAS)
    server.on("DELETE /adapters/bot/aliases/production", Answer(204, b""))
    server.on_json("GET /adapters/bot/aliases", page(ALIAS))
    for arguments in (["production", "2"], ["production"], []):
        outcome = lethe("adapters", "alias", "bot", *arguments, *client_options)
        assert (outcome.status, outcome.stdout) == (0, "production -> 2\n")
    assert json.loads(server.requests[0].body) == {"version": 2}
    outcome = lethe("adapters", "alias", "bot", "production", "--remove", *client_options)
    assert (outcome.status, outcome.stdout) == (0, "")
    assert server.requests[-1].method == "DELETE"
    assert lethe("adapters", "alias", "bot", "--remove", *client_options).status == 2
    assert lethe("adapters", "alias", "bot", "production", "2", "--remove", *client_options).status == 2


def test_lineage_is_read_to_its_end(lethe: Run, server: Server, client_options: list[str]) -> None:
    job = {"id": "job_1", "method": "blur", "verdict": "passed", "subject_request_id": "dsr-7"}
    node = {"version": 2, "status": "ready", "created_at": "2026-01-31T12:00:00Z", "jobs": [job]}
    first = {
        "nodes": [node], "edges": [{"source": 1, "result": 2, "run_id": "run_1"}], "has_more": True,
        "next_cursor": "next",
    }  # fmt: skip
    last = {"nodes": [node | {"version": 1, "jobs": []}], "edges": [], "has_more": False, "next_cursor": None}
    server.on_json("GET /adapters/bot/lineage", first, last)
    outcome = lethe("adapters", "lineage", "bot", *client_options)
    assert outcome.stdout.splitlines() == [
        "2  ready  2026-01-31T12:00:00Z  from 1 by  job_1 blur passed dsr-7",
        "1  ready  2026-01-31T12:00:00Z  uploaded",
    ]
    assert server.requests[1].path.endswith("&cursor=next")


def test_a_link_is_the_only_thing_on_standard_output(lethe: Run, server: Server, client_options: list[str]) -> None:
    made = {"url": "http://x/downloads/t", "version": 2, "sha256": "a" * 64, "expires_at": "2026-01-31T12:00:00Z"}
    server.on_json("POST /adapters/bot/versions/head/links", made)
    outcome = lethe("adapters", "link", "bot", "--expires-in", "60", *client_options)
    assert (outcome.status, outcome.stdout) == (0, "http://x/downloads/t\n")
    assert json.loads(server.requests[0].body) == {"expires_in": 60}


def test_purging_asks_first(
    lethe: Run, server: Server, client_options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on("DELETE /adapters/bot/versions/1", Answer(204, b""))
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(SystemExit(1)))
    assert lethe("adapters", "purge", "bot", "1", *client_options).status == 1
    assert server.requests == []
    outcome = lethe("adapters", "purge", "bot", "1", "--yes", *client_options)
    assert (outcome.status, outcome.stdout) == (0, "bot version 1 is purged\n")
