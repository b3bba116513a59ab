"""What a statement says, that it says nothing that was not measured, and that others can read it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as InTotoStatement

from app.attestations.statement import PREDICATE_TYPE, SUBJECTS, WEIGHTS_FILE, Predicate, build_statement
from tests.app.attestations.release import (
    FILES,
    KEY,
    evaluation,
    facts,
    keys_file,
    packed,
    release,
    sha256,
    signed,
    stated,
    zipped,
)

GUIDE = (Path(__file__).parents[3] / "docs" / "attestation.md").read_text()


def test_every_file_of_the_archive_is_a_subject() -> None:
    assert {one["name"]: one["digest"] for one in stated()["subject"]} == {
        name: {"sha256": sha256(data)} for name, data in FILES.items()
    }


def test_everything_that_was_done_and_measured_is_stated() -> None:
    predicate, found = stated()["predicate"], evaluation()
    for name in ("method", "seed", "policy", "environment", "warnings", "not_tested"):
        assert predicate[name] == found[name], name
    # With fields that this code does not know by name, such as who measured.
    assert predicate["checks"] == found["gate"]["checks"]
    assert predicate["scores"] == found["models"]
    assert predicate["verdict"] == "passed"
    assert predicate["training"] == {"steps": 40, "kept_step": 30, "reason": "targets_met"}
    assert predicate["tries"] == [{"number": 1, "change": "", "steps": 40, "verdict": "passed", "missed": []}]
    assert predicate["limits"] == ["Approximate unlearning."]
    assert (predicate["job"], predicate["run"], predicate["attempt"]) == ("job_1", "run_1", 1)
    assert predicate["adapter"] == {"name": "support-bot", "version": 2}
    assert predicate["audit_head"] == {"sequence": 12, "hash": "e" * 64}
    assert predicate["times"]["signed_at"] == "2026-03-01T12:30:00Z"


def test_the_evaluation_is_named_by_the_digest_of_its_canonical_json() -> None:
    named = stated()["predicate"]["evaluation"]
    assert named["sha256"] == hashlib.sha256(rfc8785.dumps(evaluation())).hexdigest()
    assert named["id"] == "ev_1"


def test_scores_of_single_records_stay_with_the_tenant() -> None:
    assert '"record"' not in json.dumps(stated())


@pytest.mark.parametrize(
    "changes",
    [
        {"gate": evaluation()["gate"] | {"verdict": "failed"}},
        {"gate": {"verdict": "passed", "checks": [evaluation()["gate"]["checks"][0] | {"passed": False}]}},
        {"gate": {"verdict": "passed", "checks": []}},
        {"result_weights_sha256": "0" * 64},
    ],
)
def test_what_did_not_pass_or_was_not_evaluated_is_not_stated(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"attested|evaluated|checks"):
        build_statement(facts(evaluation=evaluation(**changes)))


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_statement_is_about_all_files_and_no_other(name: str) -> None:
    files = {file: sha256(data) for file, data in FILES.items()}
    with pytest.raises(ValueError, match="exactly"):
        build_statement(facts(files={**files, "x": "0" * 64}))
    del files[name]
    with pytest.raises(ValueError, match="exactly"):
        build_statement(facts(files=files))


def test_a_number_that_is_none_cannot_be_stated() -> None:
    with pytest.raises(ValueError, match=r"."):
        build_statement(facts(evaluation=evaluation(environment={"value": math.nan}))).payload()


def test_the_same_facts_give_the_same_bytes() -> None:
    shuffled = dict(reversed(evaluation().items()))
    assert build_statement(facts(evaluation=shuffled)).payload() == build_statement(facts()).payload()


def test_in_toto_reads_it() -> None:
    read = statement_pb2.Statement()
    json_format.Parse(build_statement(facts()).payload(), read)
    InTotoStatement.copy_from_pb(read).validate()
    assert read.predicate_type == PREDICATE_TYPE
    assert [one.name for one in read.subject] == list(SUBJECTS)
    assert read.predicate["verdict"] == "passed"


def test_the_signature_is_plain_ed25519_over_the_encoding_of_dsse() -> None:
    envelope = json.loads(signed(b"hello world", payload_type="http://example.com/HelloWorld"))
    # The test vector of the specification.
    message = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    Ed25519PublicKey.from_public_bytes(KEY.public.raw).verify(signature, message)


def test_the_guide_describes_every_field() -> None:
    fields = set(Predicate.model_fields)
    for name, field in Predicate.model_fields.items():
        nested = getattr(field.annotation, "model_fields", {})
        fields |= {f"{name}.{inner}" for inner in nested}
    assert [name for name in sorted(fields) if f"`{name}`" not in GUIDE] == []


def independent_check(folder: Path, archive: bytes) -> subprocess.CompletedProcess[str]:
    """Run the guide's own script, which knows nothing of this code."""
    script = re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert script is not None
    assert "lethe" not in script[1].replace("attestation.dsse.json", "")
    (folder / "check.py").write_text(script[1])
    (folder / "adapter.tar.gz").write_bytes(archive)
    keys_file(folder / "keys.json", KEY.public)
    command = [sys.executable, "-I", "check.py", "adapter.tar.gz", "keys.json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_script_in_the_guide_verifies_a_release(tmp_path: Path) -> None:
    done = independent_check(tmp_path, zipped(packed(release())).getvalue())
    assert (done.returncode, done.stderr) == (0, "")
    assert "job_1 passed" in done.stdout


@pytest.mark.parametrize("change", [{WEIGHTS_FILE: b"x"}, {"attestation.dsse.json": signed(b"{}")}])
def test_the_script_in_the_guide_refuses_what_was_changed(tmp_path: Path, change: dict[str, bytes]) -> None:
    assert independent_check(tmp_path, zipped(packed(release(**change))).getvalue()).returncode != 0


def test_the_script_in_the_guide_refuses_another_signature(tmp_path: Path) -> None:
    envelope = json.loads(signed())
    envelope["signatures"][0]["sig"] = json.loads(signed(b"{}"))["signatures"][0]["sig"]
    files = release(**{"attestation.dsse.json": json.dumps(envelope).encode()})
    assert independent_check(tmp_path, zipped(packed(files)).getvalue()).returncode != 0


def test_times_are_in_utc() -> None:
    assert datetime.fromisoformat(stated()["predicate"]["times"]["signed_at"]).tzinfo == UTC
