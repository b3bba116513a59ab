"""Does an archive hold what was attested? Offline, from the archive and the trusted keys alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ValidationError

from app.attestations.archive import ArchiveError, Contents, read_contents
from app.attestations.schemas import KeyList
from app.attestations.statement import (
    ATTESTATION_FILE,
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    SUBJECTS,
    WEIGHTS_FILE,
    Predicate,
    Statement,
)
from app.kit.signing import PublicKey, SigningError, open_envelope


class VerificationError(Exception):
    """Something does not hold; the text says what, on one line."""


@dataclass(frozen=True)
class Proof:
    """What was proved: these files are what a trusted key made this statement about.

    Attributes:
        payload: the statement as it was signed.
    """

    statement: Statement
    payload: bytes
    key_id: str

    def sentence(self) -> str:
        """The proof on one line."""
        facts = self.statement.predicate
        weights = next(subject for subject in self.statement.subject if subject.name == WEIGHTS_FILE)
        exact = ", without which it was trained anew (exact)" if facts.exact else ""
        line = (
            f"verified: {WEIGHTS_FILE} sha256 {weights.digest.sha256} is the result of {facts.job}, which passed "
            f"policy {facts.policy.name} v{facts.policy.version} ({len(facts.checks)} checks) on "
            f"{facts.datasets.forget.records} forget records{exact}; "
            f"signed {facts.times.signed_at:%Y-%m-%dT%H:%M:%SZ} by key {self.key_id}"
        )
        # What a terminal would obey does not get there, whoever signed it.
        return "".join(character if character.isprintable() else "?" for character in line)


def read_keys(path: Path) -> list[PublicKey]:
    """The keys of a file that holds the answer of ``GET /keys``.

    Raises:
        VerificationError: it is no such file, holds no key, or a key that is not the one that it says.
    """
    try:
        listed = KeyList.model_validate_json(path.read_bytes()).data
        keys = [PublicKey.from_base64(one.public_key) for one in listed]
        twins = [PublicKey.from_pem(one.public_key_pem) for one in listed]
    except (OSError, ValueError):
        raise VerificationError(f"{path} is not the answer of GET /keys") from None
    if not keys:
        raise VerificationError(f"{path} holds no key")
    for one, key, twin in zip(listed, keys, twins, strict=True):
        if not one.key_id == key.key_id == twin.key_id:
            raise VerificationError(f"{path}: a key does not have the id that stands beside it")
    return keys


def verify_archive(archive: BinaryIO, keys: Iterable[PublicKey]) -> Proof:
    """Check a downloaded archive against the attestation in it.

    Args:
        archive: the tar.gz, positioned at its start.
        keys: those that are trusted.

    Raises:
        VerificationError: which file, signature or field does not hold.
    """
    try:
        contents = read_contents(archive)
        signed = open_envelope(contents.attestation, keys)
    except ArchiveError as error:
        raise VerificationError(str(error)) from None
    except SigningError as error:
        raise VerificationError(f"{ATTESTATION_FILE}: {error}") from None
    if signed.payload_type != PAYLOAD_TYPE:
        raise VerificationError(f"{ATTESTATION_FILE} is signed, but is no in-toto statement (payloadType)")
    statement = _statement(signed.payload)
    _compare_files(statement, contents)
    _check_predicate(statement.predicate, contents)
    return Proof(statement, signed.payload, signed.key.key_id)


class _Head(BaseModel):
    """What has to be looked at first."""

    predicateType: str  # noqa: N815 - the specification's name


def _statement(payload: bytes) -> Statement:
    try:
        head = _Head.model_validate_json(payload)
        if head.predicateType != PREDICATE_TYPE:
            raise VerificationError(f"{ATTESTATION_FILE} states another thing than unlearning (predicateType)")
        statement = Statement.model_validate_json(payload)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise VerificationError(f"{ATTESTATION_FILE} is signed, but cannot be read ({where or 'no JSON'})") from None
    if statement.type != STATEMENT_TYPE:
        raise VerificationError(f"{ATTESTATION_FILE} is signed, but is no in-toto Statement v1 (_type)")
    return statement


def _compare_files(statement: Statement, contents: Contents) -> None:
    attested = {subject.name: subject.digest.sha256 for subject in statement.subject}
    if len(statement.subject) != len(SUBJECTS) or set(attested) != set(SUBJECTS):
        raise VerificationError(f"{ATTESTATION_FILE} is not about exactly {', '.join(SUBJECTS)} (subject)")
    for name, digest in contents.digests.items():
        if digest != attested[name]:
            raise VerificationError(
                f"{name} is not the attested file: its sha256 is {digest}, attested is {attested[name]}"
            )


def _check_predicate(facts: Predicate, contents: Contents) -> None:
    if facts.evaluation.weights_sha256 != contents.digests[WEIGHTS_FILE]:
        raise VerificationError(f"{WEIGHTS_FILE} is not the file that was evaluated (evaluation.weights_sha256)")
    failed = [check.name for check in facts.checks if not check.passed]
    if failed:
        raise VerificationError(f"{ATTESTATION_FILE} says passed, but a check of it failed: {failed[0]!r:.100}")
