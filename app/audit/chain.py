"""The chain itself, without a database: how an entry is hashed, and how a broken chain is found.

An entry is a JSON object as ``GET /audit`` shows it. Its hash covers every field of it::

    hash = sha256(previous_hash ‖ JCS(entry without previous_hash and hash))

with ``previous_hash`` as 32 bytes, all zero for the first entry, and JCS the canonical JSON of RFC 8785.
docs/audit.md says the same to those who verify without this code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import rfc8785

# An entry as JSON. It may come from a file that somebody changed, so nothing about it is certain.
Entry = Mapping[str, Any]

GENESIS = "0" * 64
ENTRY, HEAD = "audit_entry", "audit_head"
# What must not be in a chain cannot be: no blank, no capital, nothing but ids, digests and words of our own.
_WORD = re.compile(r"[a-z0-9][a-z0-9._:-]{0,127}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LARGEST = 2**53 - 1

Kind = Literal[
    "hash_mismatch",
    "wrong_link",
    "gap",
    "out_of_order",
    "replaced",
    "truncated",
    "beyond_head",
    "wrong_head",
    "no_head",
    "foreign",
    "unreadable",
]


@dataclass(frozen=True)
class Head:
    """The newest entry: its number, 0 when there is none, and its hash."""

    sequence: int
    hash: str


@dataclass(frozen=True)
class Finding:
    """Something wrong with a chain: at which sequence number, and what."""

    sequence: int
    kind: Kind
    detail: str


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, always with six digits of a second: one moment has one text."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def check_data(value: object) -> None:
    """Check that a value is made of ids, digests, counts and words of our own alone.

    Raises:
        ValueError: text that might be a person's, a number with a fraction, or one beyond 53 bits.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            check_data(key)
            check_data(item)
    elif isinstance(value, list):
        for item in value:
            check_data(item)
    elif isinstance(value, str):
        if not _WORD.fullmatch(value):
            raise ValueError("an audit entry holds ids, digests and words of our own, no other text")
    elif isinstance(value, int):
        if abs(value) > _LARGEST:
            raise ValueError("a number in an audit entry has at most 53 bits")
    elif value is not None:
        raise ValueError(f"an audit entry holds no {type(value).__name__}")


def entry_hash(entry: Entry) -> str:
    """The hash of an entry that names the one before it.

    Raises:
        ValueError: the entry has no canonical form, or its previous_hash is none.
    """
    return hashlib.sha256(bytes.fromhex(entry["previous_hash"]) + hashed_text(entry)).hexdigest()


def hashed_text(entry: Entry) -> bytes:
    """What is hashed of an entry, behind the hash of the one before it. Raises ValueError: no canonical form."""
    return rfc8785.dumps({name: value for name, value in entry.items() if name not in ("previous_hash", "hash")})


def document_digest(document: Mapping[str, Any]) -> str:
    """The sha256 of a document's canonical JSON, by which an entry names it.

    Raises:
        ValueError: it has no canonical form, such as with a number that is not finite.
    """
    return hashlib.sha256(rfc8785.dumps(dict(document))).hexdigest()


class Verifier:
    """Checks entries one after the other, so that a chain of any length needs no memory.

    Args:
        known: hashes by sequence number that were noted elsewhere, such as in an attestation. Only these help
            against somebody who rewrites the whole chain and its head.
    """

    def __init__(self, known: Mapping[int, str] | None = None) -> None:
        self.entries = 0
        self._known = dict(known or {})
        self._tenant: object = None
        self._last = Head(0, GENESIS)

    def check(self, entry: Entry) -> Iterator[Finding]:
        """What is wrong with the next entry, by itself and in its place."""
        self.entries += 1
        expected = self._last.sequence + 1
        if not _is_readable(entry):
            yield Finding(expected, "unreadable", "what stands here is no audit entry")
            return
        sequence, stored = entry["sequence"], entry["hash"]
        yield from self._check_content(entry)
        if sequence < expected:
            yield Finding(sequence, "out_of_order", f"entry {sequence} stands after entry {self._last.sequence}")
            return
        if sequence > expected:
            yield Finding(expected, "gap", f"{_named(expected, sequence - 1)} missing")
        elif entry["previous_hash"] != self._last.hash:
            before = f"entry {expected - 1}" if expected > 1 else "the start of a chain"
            yield Finding(sequence, "wrong_link", f"entry {sequence} does not follow {before} as it stands")
        self._last = Head(sequence, stored)

    def finish(self, head: Head | None) -> Iterator[Finding]:
        """What is wrong at the end, compared with the stored head."""
        last = self._last
        if head is None:
            if self.entries:
                yield Finding(last.sequence, "no_head", "there are entries but no head: later ones may be missing")
        elif head.sequence > last.sequence:
            yield Finding(
                last.sequence + 1,
                "truncated",
                f"{_named(last.sequence + 1, head.sequence)} missing: the head is entry {head.sequence}",
            )
        elif head.sequence < last.sequence:
            detail = f"{_named(head.sequence + 1, last.sequence)} beyond the head, which is entry {head.sequence}"
            yield Finding(head.sequence + 1, "beyond_head", detail)
        elif head.hash != last.hash:
            yield Finding(last.sequence, "wrong_head", f"entry {last.sequence} does not have the hash of the head")
        reached = max(last.sequence, head.sequence if head else 0)
        for sequence in sorted(known for known in self._known if known > reached):
            yield Finding(sequence, "truncated", f"entry {sequence} was noted elsewhere and is missing")

    def _check_content(self, entry: Entry) -> Iterator[Finding]:
        sequence, stored = entry["sequence"], entry["hash"]
        if self._tenant is None:
            self._tenant = entry["tenant"]
        if entry["tenant"] != self._tenant:
            yield Finding(sequence, "foreign", f"entry {sequence} belongs to the chain of another tenant")
        try:
            intact = entry_hash(entry) == stored
        except ValueError:
            intact = False
        if not intact:
            yield Finding(sequence, "hash_mismatch", f"entry {sequence} does not have its hash: it was edited")
        if self._known.get(sequence, stored) != stored:
            yield Finding(sequence, "replaced", f"entry {sequence} does not have the hash that was noted elsewhere")


def verify(entries: Iterable[Entry], head: Head | None, known: Mapping[int, str] | None = None) -> Iterator[Finding]:
    """Everything that is wrong with a chain, in the order of its entries; nothing when it holds."""
    verifier = Verifier(known)
    for entry in entries:
        yield from verifier.check(entry)
    yield from verifier.finish(head)


def _is_readable(entry: object) -> bool:
    if not isinstance(entry, Mapping) or entry.get("object") != ENTRY:
        return False
    sequence = entry.get("sequence")
    hashes = (entry.get("previous_hash"), entry.get("hash"))
    return (
        type(sequence) is int
        and sequence > 0
        and isinstance(entry.get("tenant"), str)
        and all(isinstance(value, str) and _HASH.fullmatch(value) for value in hashes)
    )


def _named(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
