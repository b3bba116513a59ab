"""`lethe audit`: what it asks the service, how it names what is wrong, and files that need no service."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.audit.chain import HEAD
from app.commands import audit
from tests.app.audit.chains import chain, head_of
from tests.cli.conftest import Answer, Run, Server

GUIDE = Path(__file__).parents[2] / "docs" / "audit.md"
ENTRIES = chain(6)
HOLDS: dict[str, object] = {
    "holds": True, "entries": 6, "head": {"sequence": 6, "hash": ENTRIES[-1]["hash"]}, "findings": [],
    "more_findings": False,
}  # fmt: skip


def lines(entries: list[dict[str, Any]], head: dict[str, Any] | None = None) -> str:
    """An exported chain; its head is the one of the intact chain unless another is given."""
    end = head_of(ENTRIES)
    intact = {"object": HEAD, "tenant": "ten_ours", "sequence": end.sequence, "hash": end.hash}
    return "".join(json.dumps(value) + "\n" for value in [*entries, intact if head is None else head])


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A file with an intact chain."""
    path = tmp_path / "audit.jsonl"
    path.write_text(lines(ENTRIES))
    return path


@pytest.mark.parametrize("command", ["list", "verify", "export"])
def test_help_of_every_command_teaches_with_an_example(lethe: Run, command: str) -> None:
    outcome = lethe("audit", command, "--help")
    assert outcome.status == 0
    assert "Example: lethe audit" in outcome.stdout


def test_entries_are_listed_with_filters_and_across_pages(
    lethe: Run, server: Server, client_options: list[str]
) -> None:
    newest = ENTRIES[::-1]
    server.on_json(
        "GET /audit",
        {"data": newest[:4], "has_more": True, "next_cursor": "3"},
        {"data": newest[4:], "has_more": False, "next_cursor": None},
    )
    outcome = lethe(
        "audit", "list", "--action", "dataset.created", "--subject", "ds_1", "--limit", "150", *client_options
    )
    assert outcome.status == 0
    shown = outcome.stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["6", "5", "4", "3", "2", "1"]
    assert "dataset.created  ds_6  by key_1  purpose=forget records=6" in shown[0]
    first, second = (request.path for request in server.requests)
    assert {"action=dataset.created", "subject=ds_1", "limit=100"} == set(first.partition("?")[2].split("&"))
    assert {"cursor=3", "limit=100"} <= set(second.partition("?")[2].split("&"))


def test_no_more_entries_are_asked_for_than_are_wanted(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("GET /audit", {"data": ENTRIES[:2], "has_more": True, "next_cursor": "1"})
    outcome = lethe("audit", "list", "--limit", "2", "--json", *client_options)
    assert [json.loads(line) for line in outcome.stdout.splitlines()] == ENTRIES[:2]
    assert [request.path for request in server.requests] == ["/audit?limit=2"]


def test_an_action_that_does_not_exist_is_a_usage_error(lethe: Run, client_options: list[str]) -> None:
    outcome = lethe("audit", "list", "--action", "dataset.eaten", *client_options)
    assert outcome.status == 2
    assert "dataset.purged" in outcome.stderr


def test_a_chain_that_holds_is_told_with_its_head(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on_json("GET /audit/verify", HOLDS)
    outcome = lethe("audit", "verify", *client_options)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.stdout == f"the chain holds: 6 entries, head 6:{ENTRIES[-1]['hash']}\n"
    server.on_json("GET /audit/verify", HOLDS | {"entries": 0, "head": None})
    assert lethe("audit", "verify", *client_options).stdout == "the chain holds: 0 entries\n"


def test_a_broken_chain_is_named_and_exits_with_1(lethe: Run, server: Server, client_options: list[str]) -> None:
    findings = [{"sequence": 4, "kind": "gap", "detail": "entries 4 to 5 are missing"}]
    server.on_json("GET /audit/verify", HOLDS | {"holds": False, "findings": findings, "more_findings": True})
    outcome = lethe("audit", "verify", "--known", f"6:{ENTRIES[-1]['hash']}", *client_options)
    assert (outcome.status, outcome.stdout) == (1, "")
    assert "4  gap: entries 4 to 5 are missing\n" in outcome.stderr
    assert outcome.stderr.endswith("the chain is broken: more than 1 findings\n")
    assert server.requests[-1].path.endswith(ENTRIES[-1]["hash"])


def test_a_service_that_says_no_is_no_verdict(lethe: Run, server: Server, client_options: list[str]) -> None:
    server.on("GET /audit/verify", Answer(503, b"", "text/plain"))
    outcome = lethe("audit", "verify", *client_options)
    assert outcome.status == 1
    assert outcome.stderr.startswith("error: 503")


def test_an_exported_chain_is_checked_without_a_service(lethe: Run, exported: Path) -> None:
    outcome = lethe("audit", "verify", "--file", str(exported))
    assert outcome.status == 0
    assert outcome.stdout == f"the chain holds: 6 entries, head 6:{ENTRIES[-1]['hash']}\n"


EDITED = [*ENTRIES[:2], ENTRIES[2] | {"actor": "key_2"}, *ENTRIES[3:]]
FORGED = chain(5)
FORGED_HEAD = {"object": HEAD, "tenant": "ten_ours", "sequence": 5, "hash": FORGED[-1]["hash"]}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lines(EDITED), "3  hash_mismatch"),
        (lines(ENTRIES[:2] + ENTRIES[3:]), "3  gap"),
        (lines([*ENTRIES[:2], ENTRIES[3], ENTRIES[2], *ENTRIES[4:]]), "3  out_of_order"),
        (lines(ENTRIES[:4]), "5  truncated"),
        (lines(ENTRIES).rsplit("\n", 2)[0] + "\n", "6  no_head"),
        (lines(ENTRIES) * 2, "1  out_of_order"),
        (lines(FORGED, FORGED_HEAD), "6  truncated: entry 6 was noted elsewhere"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(lethe: Run, tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(content)
    outcome = lethe("audit", "verify", "--file", str(path), "--known", f"6:{ENTRIES[-1]['hash']}")
    assert outcome.status == 1
    assert named in outcome.stderr
    assert "the chain is broken" in outcome.stderr


@pytest.mark.parametrize("content", ["x\n", "[]\n", "[" * 100_000 + "\n", '{"object": "audit_head"}\n', "\xff\n"])
def test_a_file_that_is_no_chain_is_one_clear_line(lethe: Run, tmp_path: Path, content: str) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(content, encoding="latin-1")
    outcome = lethe("audit", "verify", "--file", str(path))
    assert outcome.status == 1
    assert outcome.stderr.startswith("error: ")
    assert len(outcome.stderr.splitlines()) == 1


def test_findings_are_cut_and_counted(lethe: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_SHOWN", 3)
    path = tmp_path / "audit.jsonl"
    path.write_text(lines([entry | {"actor": "key_2"} for entry in ENTRIES]))
    outcome = lethe("audit", "verify", "--file", str(path))
    assert [line.split()[0] for line in outcome.stderr.splitlines()[:-1]] == ["1", "2", "3"]
    assert outcome.stderr.endswith("the chain is broken: more than 3 findings\n")


def test_a_hash_that_is_written_wrongly_is_a_usage_error(lethe: Run, exported: Path) -> None:
    for known in ("6", "6:abc", "x:" + "0" * 64):
        assert lethe("audit", "verify", "--file", str(exported), "--known", known).status == 2


def test_a_chain_is_exported_in_one_step(
    lethe: Run, server: Server, client_options: list[str], tmp_path: Path
) -> None:
    target = tmp_path / "out" / "audit.jsonl"
    server.on("GET /audit/export", Answer(503, b"", "text/plain"))
    assert lethe("audit", "export", str(target), *client_options).status == 1
    assert not target.exists()
    server.on("GET /audit/export", Answer(body=lines(ENTRIES).encode(), content_type="application/jsonl"))
    assert lethe("audit", "export", str(target), *client_options).status == 0
    assert lethe("audit", "verify", "--file", str(target)).status == 0
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lines(ENTRIES), "the chain holds"),
        (lines(EDITED), "entry 3 is not what was written"),
        (lines(ENTRIES[:2] + ENTRIES[3:]), "entry 3 is not what was written"),
        (lines(ENTRIES[:5]), "the end is missing"),
        (lines(FORGED, FORGED_HEAD), "the chain holds"),
    ],
)
def test_the_program_of_the_guide_verifies_without_lethe(tmp_path: Path, content: str, said: str) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    path = tmp_path / "audit.jsonl"
    path.write_text(content)
    # -I and -S: nothing but the standard library can be imported.
    command = [sys.executable, "-I", "-S", "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr).strip() == said
    assert done.returncode == (0 if said == "the chain holds" else 1)
