"""Rotating the key-encryption key: everything that the old ring opened, the new key alone opens."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from sqlalchemy import select

from app.audit.tables import AuditEntry
from app.data_keys import rewrap as module
from app.data_keys.rewrap import key_name, rewrap
from app.datasets import purging
from app.datasets.tables import Dataset
from app.datasets.vault import Vault
from app.kit.crypto import CryptoError, KeyRing
from app.settings import Settings
from tests.worker.rows import add_adapter, add_dataset, change
from worker.database import engine as worker_engine
from worker.database import new_session, storage

OLD, NEW = (base64.b64encode(letter * 32).decode() for letter in (b"s", b"n"))
BOTH = KeyRing.parse(f"k2:{NEW},k1:{OLD}")
ONLY_NEW = KeyRing.parse(f"k2:{NEW}")


@pytest.fixture
def datasets(service: Settings) -> list[Dataset]:
    """Five datasets of a service whose only key is k1."""
    add_adapter()
    return [add_dataset("forget", [{"text": f"record {number}"}]) for number in range(5)]


def records(dataset_id: str, ring: KeyRing) -> list[bytes]:
    """The records as whoever has that ring reads them."""
    with new_session() as session:
        return list(Vault(storage(), ring).lines(session.get_one(Dataset, dataset_id)))


def stored(dataset: Dataset) -> bytes:
    """The encrypted records."""
    with storage().open(dataset.blob_key) as blob:
        return blob.read()


def entries(action: str) -> list[AuditEntry]:
    """The audit entries of an action."""
    with new_session() as session:
        return list(session.scalars(select(AuditEntry).where(AuditEntry.action == action)))


def test_after_rewrapping_the_old_key_is_not_needed(datasets: list[Dataset]) -> None:
    blobs = [stored(dataset) for dataset in datasets]
    with pytest.raises(CryptoError):
        records(datasets[0].id, ONLY_NEW)
    (report,) = [one for one in rewrap(worker_engine(), BOTH) if one.column == "datasets.wrapped_key"]
    assert (report.by_key, report.rewrapped, report.unreadable) == ({"k1": 5}, 5, 0)
    for number, dataset in enumerate(datasets):
        assert records(dataset.id, ONLY_NEW) == [b'{"text": "record %d"}' % number]
    assert [stored(dataset) for dataset in datasets] == blobs


def test_a_dry_run_counts_and_changes_nothing(datasets: list[Dataset]) -> None:
    (report,) = [one for one in rewrap(worker_engine(), BOTH, dry_run=True) if one.column == "datasets.wrapped_key"]
    assert (report.by_key, report.rewrapped) == ({"k1": 5}, 0)
    assert records(datasets[0].id, KeyRing.parse(f"k1:{OLD}"))
    assert entries("data_keys.rewrapped") == []


def test_each_batch_is_in_the_audit_chain(datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    rewrap(worker_engine(), BOTH)
    written = entries("data_keys.rewrapped")
    assert [entry.data for entry in written] == [{"table": "datasets", "from": {"k1": count}} for count in (2, 2, 1)]
    assert {(entry.subject_type, entry.subject_id) for entry in written} == {("encryption_key", "k2")}


def test_what_broke_off_goes_on_where_it_was(datasets: list[Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    calls, real = [], module._rewrap_batch

    def breaks_off(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            real(*arguments)
            raise ConnectionError
        return real(*arguments)

    monkeypatch.setattr(module, "_rewrap_batch", breaks_off)
    with pytest.raises(ConnectionError):
        rewrap(worker_engine(), BOTH)
    monkeypatch.setattr(module, "_rewrap_batch", real)
    (report,) = [one for one in rewrap(worker_engine(), BOTH) if one.column == "datasets.wrapped_key"]
    assert (report.by_key, report.rewrapped) == ({"k1": 3, "k2": 2}, 3)
    assert all(records(dataset.id, ONLY_NEW) for dataset in datasets)


def test_a_key_that_was_destroyed_stays_destroyed(datasets: list[Dataset]) -> None:
    with new_session() as session, session.begin():
        purging.shred(session, datasets[0].id)
    rewrap(worker_engine(), BOTH)
    with new_session() as session:
        assert session.get_one(Dataset, datasets[0].id).wrapped_key is None


def test_a_secret_that_no_key_opens_is_counted_and_left_alone(datasets: list[Dataset]) -> None:
    change(Dataset, datasets[2].id, wrapped_key=b"x" * 60)
    (report,) = [one for one in rewrap(worker_engine(), BOTH) if one.column == "datasets.wrapped_key"]
    assert (report.rewrapped, report.unreadable) == (4, 1)


def test_a_worker_that_read_its_row_before_goes_on_with_both_keys(datasets: list[Dataset]) -> None:
    rewrap(worker_engine(), BOTH)
    assert list(Vault(storage(), BOTH).lines(datasets[0]))


def test_ids_that_the_audit_chain_cannot_hold_are_named_by_their_digest() -> None:
    assert key_name("k1") == "k1"
    assert key_name("Key of Jane").startswith("sha256:")
