"""Chains made by hand, as `app.audit.record` would write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from app.audit.chain import ENTRY, GENESIS, Head, entry_hash, timestamp

START = datetime(2026, 1, 31, 12, tzinfo=UTC)


def chain(length: int, tenant: str = "ten_ours") -> list[dict[str, Any]]:
    """An intact chain."""
    entries: list[dict[str, Any]] = []
    for sequence in range(1, length + 1):
        entry = {
            "object": ENTRY,
            "tenant": tenant,
            "sequence": sequence,
            "at": timestamp(START + timedelta(seconds=sequence)),
            "action": "dataset.created",
            "subject": {"type": "dataset", "id": f"ds_{sequence}"},
            "actor": "key_1",
            "data": {"purpose": "forget", "records": sequence, "digest": f"{sequence:064x}"},
            "previous_hash": entries[-1]["hash"] if entries else GENESIS,
        }
        entries.append(entry | {"hash": entry_hash(entry)})
    return entries


def head_of(entries: list[dict[str, Any]]) -> Head:
    """The head that belongs to a chain."""
    return Head(entries[-1]["sequence"], entries[-1]["hash"]) if entries else Head(0, GENESIS)


def rehash(entries: list[dict[str, Any]]) -> None:
    """What a careful forger does: make every entry fit the one before."""
    previous = GENESIS
    for entry in entries:
        entry["previous_hash"] = previous
        previous = entry["hash"] = entry_hash(entry)
