"""What becomes of an adapter's training set when a job on it ends."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, update

from app.adapters.tables import Adapter
from app.audit.tables import AuditEntry
from app.datasets import purging
from app.datasets.tables import Dataset
from app.kit.crypto import CryptoError
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny
from tests.worker.rows import add_dataset, change
from tests.worker.tiny_jobs import SHUT, add_tiny_adapter, run_job
from worker import housekeeping, training_sets
from worker.database import new_session, storage, vault
from worker.order import Order

pytestmark = pytest.mark.usefixtures("service")
RECIPE: dict[str, Any] = {"learning_rate": 1e-2, "epochs": 2}
OTHERS: list[dict[str, Any]] = [{"text": "Nothing to do with either."}]


def trained_adapter(
    tiny: Tiny, records: list[dict[str, Any]], recipe: dict[str, Any] | None = None, name: str = "support-bot"
) -> Adapter:
    """A tiny adapter that holds these records as its training set."""
    adapter, dataset = add_tiny_adapter(tiny, name), add_dataset("training", records)
    values = {"training_set_id": dataset.id, "recipe": recipe or RECIPE}
    with new_session() as session, session.begin():
        session.execute(update(Adapter).where(Adapter.id == adapter.id).values(**values))
    return adapter_of(adapter)


def adapter_of(adapter: Adapter) -> Adapter:
    """As it is now."""
    with new_session() as session:
        return session.get_one(Adapter, adapter.id)


def dataset_of(dataset_id: str | None) -> Dataset:
    """As it is now."""
    with new_session() as session:
        return session.get_one(Dataset, dataset_id)


def records_of(dataset: Dataset) -> list[dict[str, Any]]:
    """What a dataset holds."""
    return [json.loads(line) for line in vault().lines(dataset)]


def blobs() -> set[str]:
    """Everything that is stored of datasets."""
    return set(storage().keys("tenants/ten_ours/datasets"))


def test_a_release_takes_the_forgotten_records_out_and_destroys_the_key_of_the_set_before(llama: Tiny) -> None:
    # An id does not make another record, and a record counts as found however often it is there.
    again = [{**FORGET_RECORDS[0], "id": "again"}]
    adapter = trained_adapter(llama, [*FORGET_RECORDS, *OTHERS, *again, *RETAIN_RECORDS])
    assert run_job(adapter).status == "succeeded"
    after = adapter_of(adapter)
    before, left = dataset_of(adapter.training_set_id), dataset_of(after.training_set_id)
    assert before.purged_at is not None
    with pytest.raises(CryptoError):
        records_of(before)
    assert records_of(left) == [*OTHERS, *RETAIN_RECORDS]
    assert (left.purpose, left.records, left.purge_at) == ("training", 5, before.purge_at)
    assert (after.recipe, after.unmatched_records) == (adapter.recipe, 0)
    with new_session() as session:
        of_adapter = select(AuditEntry.data).where(AuditEntry.action == "adapter.training_set")
        entry = session.scalars(of_adapter).one()
    assert (entry["before"], entry["dataset"], entry["removed"]) == (before.id, left.id, 5)


def test_records_that_were_not_in_it_are_counted_over_all_releases(llama: Tiny) -> None:
    adapter = trained_adapter(llama, [*FORGET_RECORDS[1:], *RETAIN_RECORDS])
    for unmatched in (1, 5):
        assert run_job(adapter).status == "succeeded"
        assert adapter_of(adapter).unmatched_records == unmatched
    assert records_of(dataset_of(adapter_of(adapter).training_set_id)) == RETAIN_RECORDS


def test_nothing_is_left_of_a_training_set_that_was_forgotten_as_a_whole(llama: Tiny) -> None:
    adapter = trained_adapter(llama, FORGET_RECORDS)
    assert run_job(adapter).status == "succeeded"
    assert adapter_of(adapter).training_set_id is None
    assert dataset_of(adapter.training_set_id).purged_at is not None


def test_a_gate_that_fails_leaves_the_training_set_as_it_is(llama: Tiny) -> None:
    adapter = trained_adapter(llama, [*FORGET_RECORDS, *RETAIN_RECORDS])
    assert run_job(adapter, SHUT).status == "gate_failed"
    assert adapter_of(adapter).training_set_id == adapter.training_set_id
    assert len(records_of(dataset_of(adapter.training_set_id))) == 8


def test_what_was_let_go_of_during_the_run_does_not_come_back(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = trained_adapter(llama, [*FORGET_RECORDS, *RETAIN_RECORDS])
    reduce = training_sets.reduce
    written: list[str] = []

    def let_go(order: Order) -> training_sets.Reduced | None:
        before = blobs()
        reduced = reduce(order)
        written.extend(blobs() - before)
        with new_session() as session, session.begin():
            session.execute(update(Adapter).values(training_set_id=None))
        return reduced

    monkeypatch.setattr(training_sets, "reduce", let_go)
    assert run_job(adapter).status == "succeeded"
    assert adapter_of(adapter).training_set_id is None
    assert written
    assert not blobs() & set(written)


def test_a_training_set_that_was_destroyed_is_in_no_jobs_way(llama: Tiny) -> None:
    adapter = trained_adapter(llama, [*FORGET_RECORDS, *RETAIN_RECORDS])
    with new_session() as session, session.begin():
        purging.shred(session, str(adapter.training_set_id))
    assert run_job(adapter).status == "succeeded"


def test_a_training_set_outlives_its_clock_while_an_adapter_holds_it(llama: Tiny) -> None:
    adapter = trained_adapter(llama, RETAIN_RECORDS)
    change(Dataset, str(adapter.training_set_id), purge_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert housekeeping.purge_datasets() == 0
    with new_session() as session, session.begin():
        session.execute(update(Adapter).values(training_set_id=None))
    assert housekeeping.purge_datasets() == 1
