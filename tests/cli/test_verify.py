"""`lethe verify` and `lethe generate-signing-key`: one line, an exit status, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.attestations.statement import WEIGHTS_FILE
from app.kit.signing import PrivateKey
from tests.app.attestations.release import KEY, keys_file, packed, release, stated, zipped
from tests.cli.conftest import Run


@pytest.fixture
def keys(tmp_path: Path) -> str:
    """A file with the trusted key."""
    return str(keys_file(tmp_path / "keys.json", KEY.public))


def archive(folder: Path, **changes: bytes) -> str:
    """A downloaded archive, some of its files changed after signing."""
    path = folder / "adapter.tar.gz"
    path.write_bytes(zipped(packed(release(**changes))).getvalue())
    return str(path)


def test_what_holds_is_said_in_one_line(lethe: Run, keys: str, tmp_path: Path) -> None:
    outcome = lethe("verify", archive(tmp_path), "--keys", keys)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.stdout.count("\n") == 1
    assert outcome.stdout.startswith("verified: adapter_model.safetensors sha256 ")
    assert "job_1, which passed policy default v3 (2 checks) on 32 forget records" in outcome.stdout


def test_what_does_not_hold_is_said_in_one_line(lethe: Run, keys: str, tmp_path: Path) -> None:
    outcome = lethe("verify", archive(tmp_path, **{WEIGHTS_FILE: b"x"}), "--keys", keys)
    assert (outcome.status, outcome.stdout) == (1, "")
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.startswith("not verified: adapter_model.safetensors is not the attested file")


def test_programs_get_the_statement(lethe: Run, keys: str, tmp_path: Path) -> None:
    outcome = lethe("verify", archive(tmp_path), "--keys", keys, "--json")
    assert outcome.status == 0
    assert json.loads(outcome.stdout) == {"verified": True, "key_id": KEY.public.key_id, "statement": stated()}


def test_programs_get_the_reason(lethe: Run, keys: str, tmp_path: Path) -> None:
    outcome = lethe("verify", archive(tmp_path, **{"README.md": b""}), "--keys", keys, "--json")
    assert outcome.status == 1
    told = json.loads(outcome.stdout)
    assert told["verified"] is False
    assert "README.md" in told["reason"]


def test_a_file_that_holds_no_keys_is_refused(lethe: Run, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}")
    outcome = lethe("verify", archive(tmp_path), "--keys", str(tmp_path / "keys.json"))
    assert outcome.status == 1
    assert "is not the answer of GET /keys" in outcome.stderr


def test_keys_must_be_given(lethe: Run, tmp_path: Path) -> None:
    assert lethe("verify", archive(tmp_path)).status == 2


def test_a_signing_key_is_printed_alone_and_its_id_beside_it(lethe: Run) -> None:
    outcome = lethe("generate-signing-key")
    key = PrivateKey.parse(outcome.stdout.strip())
    assert outcome.stderr == f"key id {key.public.key_id}\n"
    assert lethe("generate-signing-key").stdout != outcome.stdout
