"""A release as a worker would make it, by hand: small files, an evaluation, an attestation, an archive."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.attestations import statement
from app.attestations.schemas import KeyList, KeyRead
from app.attestations.statement import ATTESTATION_FILE, PAYLOAD_TYPE, WEIGHTS_FILE, Facts, build_statement
from app.kit.signing import PrivateKey, PublicKey

KEY = PrivateKey.parse("MC4CAQAwBQYDK2VwBCIEI" + "A" * 42 + "E=")
FILES = {
    "README.md": b"# support-bot\n\nA LoRA adapter.\n",
    "adapter_config.json": b'{"peft_type": "LORA", "r": 8}\n',
    WEIGHTS_FILE: bytes(range(256)) * 3,
}
MOMENT = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


def sha256(data: bytes) -> str:
    """Hex."""
    return hashlib.sha256(data).hexdigest()


def evaluation(**changes: Any) -> dict[str, Any]:
    """An evaluation as it is stored, as far as a statement reads it."""
    check = {
        "probe": "recall", "name": "forget_probability", "description": "mean answer probability", "value": 0.07,
        "limit": 0.2, "comparison": "<=", "margin": 0.13, "records": 32, "passed": True, "low": 0.05, "high": 0.1,
    }  # fmt: skip
    means = {"records": 32, "probability": 0.07}
    return {
        "source_version": 1,
        "result_weights_sha256": sha256(FILES[WEIGHTS_FILE]),
        "models": {"base": {"forget": means}, "source": {"forget": means}, "result": {"forget": means}},
        "gate": {"verdict": "passed", "checks": [check, check | {"name": "forget_rouge_l_recall"}]},
        "policy": {"name": "default", "version": 3, "max_forget_probability": 0.2},
        "method": {"type": "blur", "forget_loss": {"type": "npo", "beta": 0.05}, "learning_rate": 1e-05},
        "seed": 7,
        "sampled_to": 400,
        "environment": {"device": "cpu", "torch": "2.13.0", "lethe": "0.1.0"},
        "training": {"steps": 40, "kept_step": 30, "reason": "targets_met", "probes": [{"step": 0}]},
        "tries": [{"number": 1, "change": "", "method": {}, "steps": 40, "verdict": "passed", "missed": []}],
        "records": {"forget": [{"record": 1, "result": {"probability": 0.07}}]},
        "warnings": ["a warning"],
        "not_tested": ["merged weights"],
        **changes,
    }


def facts(**changes: Any) -> Facts:
    """What a statement is made of."""
    named = {name: number * "0" + (64 - number) * "1" for number, name in enumerate(("forget", "retain"))}
    return replace(
        Facts(
            job="job_1",
            run="run_1",
            attempt=1,
            times=statement.Times(started_at=MOMENT, evaluated_at=MOMENT, signed_at=MOMENT),
            files={name: sha256(data) for name, data in FILES.items()},
            adapter=statement.AdapterFacts(name="support-bot", version=2),
            base_model=statement.BaseModelFacts(name="acme/base-1b", revision=None, sha256="b" * 64),
            source=statement.VersionFacts(version=1, weights_sha256="c" * 64, archive_sha256="d" * 64),
            control=None,
            datasets=statement.Datasets.model_validate(
                {name: {"id": f"ds_{name}", "records": 32, "salted_digest": salt} for name, salt in named.items()}
            ),
            evaluation_id="ev_1",
            evaluation=evaluation(),
            audit_head=statement.AuditHead(sequence=12, hash="e" * 64),
            limits=("Approximate unlearning.",),
        ),
        **changes,
    )


def stated() -> dict[str, Any]:
    """The statement as JSON."""
    parsed: dict[str, Any] = json.loads(build_statement(facts()).payload())
    return parsed


def signed(payload: bytes | None = None, key: PrivateKey = KEY, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """The attestation's file."""
    return key.sign(build_statement(facts()).payload() if payload is None else payload, payload_type)


def packed(members: Sequence[tuple[str, bytes]] | Mapping[str, bytes]) -> bytes:
    """A tar of these members, in this order."""
    pairs = members.items() if isinstance(members, Mapping) else members
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in pairs:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def zipped(tar: bytes) -> io.BytesIO:
    """A tar.gz, ready to be read."""
    return io.BytesIO(gzip.compress(tar, compresslevel=1, mtime=0))


def release(**changes: bytes) -> dict[str, bytes]:
    """Every file of a release by name; `changes` replaces some after signing."""
    return {**FILES, ATTESTATION_FILE: signed(), **changes}


def keys_file(path: Path, *keys: PublicKey, retired_at: datetime | None = None) -> Path:
    """What GET /keys would answer, in a file."""
    listed = [
        KeyRead(
            key_id=key.key_id, public_key=key.base64, public_key_pem=key.pem, created_at=MOMENT, retired_at=retired_at
        )
        for key in keys
    ]
    path.write_text(KeyList(data=listed).model_dump_json())
    return path


def parts(envelope: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """An envelope and the statement in it, as JSON."""
    outer = json.loads(envelope)
    return outer, json.loads(base64.b64decode(outer["payload"]))
