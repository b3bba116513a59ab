"""What the doctor finds after processes have died, and what it repairs."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import select, update

from app import outbox
from app.adapters.tables import Adapter, AdapterVersion
from app.datasets import purging
from app.datasets.tables import Dataset
from app.jobs.tables import OutboxMessage, Run, UnlearnJob, WorkerHeartbeat
from app.settings import Settings, get_settings
from tests.worker.rows import add_adapter, add_dataset, add_job, change, job_of, run_of
from worker.database import new_session, storage
from worker.doctor.__main__ import examine, main
from worker.heartbeat import WorkerName, beat
from worker.lease import claim

PAST = datetime(2020, 1, 1, tzinfo=UTC)
HOUR = 3600.0


@pytest.fixture(autouse=True)
def served(service: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both queues have a worker, and no folder of another test is looked at."""
    for queue in (outbox.GPU_QUEUE, outbox.LIGHT_QUEUE):
        beat(WorkerName(f"{queue}@here", queue))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def put(key: str, *, old: bool = True) -> Path:
    """A blob, and its file."""
    with storage().create(key) as sink:
        sink.write(b"x")
    path = get_settings().storage_dir / key
    if old:
        age(path)
    return path


def age(path: Path) -> None:
    """Have a file written two hours ago."""
    long_ago = time.time() - 2 * HOUR
    os.utime(path, (long_ago, long_ago))


def whole_adapter(name: str = "support-bot") -> Adapter:
    """An adapter whose version has its bytes."""
    adapter = add_adapter(name, weights_key=f"tenants/t/{name}/weights", archive_key=f"tenants/t/{name}/archive")
    for part in ("weights", "archive"):
        put(f"tenants/t/{name}/{part}")
    return adapter


def found() -> list[tuple[str, str]]:
    """Kind and subject of everything that is found."""
    return [(each.kind, each.subject) for each in examine(HOUR)]


def repair() -> int:
    """Repair; the exit status."""
    return main(["--repair", "--min-age", str(HOUR), "--json"])


def test_a_service_at_work_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    job = add_job(whole_adapter())
    held = claim(job.run_id, "w", timedelta(minutes=1))
    assert held is not None
    put(f"tenants/t/runs/{job.run_id}/{held.attempt}/weights")
    put(f"checkpoints/{job.run_id}/life/1")
    put("tenants/t/datasets/ds_upload/records", old=False)
    assert main(["--min-age", str(HOUR)]) == 0
    assert capsys.readouterr().out == "all is well\n"


def test_bytes_that_no_row_names_go_once_nobody_can_be_at_them(capsys: pytest.CaptureFixture[str]) -> None:
    job = add_job(whole_adapter())
    claim(job.run_id, "w", timedelta(minutes=1))
    old = put("tenants/t/datasets/ds_upload/records")
    young = put("tenants/t/datasets/ds_other/records", old=False)
    result = put(f"tenants/t/runs/{job.run_id}/0/weights", old=False)
    unknown = put("tenants/t/runs/run_unknown/1/weights", old=False)
    left = put("checkpoints/run_unknown/life/1", old=False)
    torn = old.with_name(".writing-abc")
    torn.touch()
    age(torn)
    gone = [old, result, unknown, left, torn]
    assert len(found()) == len(gone)
    assert main(["--min-age", str(HOUR)]) == 1
    assert all(path.exists() for path in gone), "it only looked"
    assert "with --repair" in capsys.readouterr().out
    assert repair() == 0
    assert [path.exists() for path in (*gone, young)] == [False] * len(gone) + [True]


def test_bytes_of_what_was_purged_go_at_once() -> None:
    dataset = add_dataset_of_tenant()
    with new_session() as session, session.begin():
        purging.shred(session, dataset.id)
    assert set(found()) == {("blob_without_row", key) for key in (dataset.blob_key, dataset.digests_key)}
    assert repair() == 0
    assert storage().keys(dataset.blob_key.rsplit("/", 1)[0]) == []


def add_dataset_of_tenant() -> Dataset:
    """A dataset that nothing uses."""
    whole_adapter()
    return add_dataset("retain", [{"text": "x"}])


def test_a_row_that_appears_while_the_doctor_looks_keeps_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_adapter()
    path = put("tenants/t/late/weights")
    (finding,) = examine(HOUR)
    with new_session() as session, session.begin():
        session.execute(update(AdapterVersion).values(weights_key="tenants/t/late/weights"))
    assert finding.repair is not None
    finding.repair()
    assert path.exists()


def test_a_dataset_without_bytes_loses_its_key_unless_a_live_job_needs_it() -> None:
    job = add_job(whole_adapter())
    add_job(whole_adapter("other"))
    with new_session() as session:
        storage().delete(session.get_one(Dataset, job.forget_set_id).blob_key)
    assert found() == [("dataset_without_bytes", job.forget_set_id)]
    assert repair() == 1
    change(UnlearnJob, job.id, status="cancelled")
    change(Run, job.run_id, status="cancelled")
    assert repair() == 0
    with new_session() as session:
        assert session.get_one(Dataset, job.forget_set_id).wrapped_key is None


def test_a_storage_that_is_not_mounted_costs_no_keys() -> None:
    job = add_job(whole_adapter())
    storage().delete_all("tenants")
    assert found() == [("storage_missing", "storage")]
    assert repair() == 1
    with new_session() as session:
        assert session.get_one(Dataset, job.forget_set_id).wrapped_key is not None


def test_a_version_without_bytes_is_left_to_a_person() -> None:
    whole_adapter()
    with new_session() as session:
        version = session.scalars(select(AdapterVersion)).one()
    storage().delete(version.weights_key)
    assert found() == [("version_without_bytes", version.id)]
    assert repair() == 1


@pytest.mark.parametrize(("content", "kind"), [(b"longer", "version_with_other_bytes"), (b"y", None)])
def test_bytes_that_are_not_those_of_the_row(content: bytes, kind: str | None) -> None:
    whole_adapter()
    with new_session() as session:
        version = session.scalars(select(AdapterVersion)).one()
    with storage().create(version.archive_key) as sink:
        sink.write(content)
    assert [each.kind for each in examine(HOUR)] == ([kind] if kind else [])
    assert [each.kind for each in examine(HOUR, digests=True)] == ["version_with_other_bytes"]


def test_a_lease_that_nobody_looks_at_is_taken_back() -> None:
    job = add_job(whole_adapter())
    claim(job.run_id, "w", timedelta(seconds=-30))
    assert found() == [], "the light worker may still come"
    change(Run, job.run_id, lease_until=PAST)
    assert found() == [("expired_lease", job.run_id)]
    assert repair() == 0
    assert (run_of(job).status, job_of(job).status) == ("queued", "queued")


def test_messages_that_wait_are_published(service: Settings) -> None:
    with new_session() as session, session.begin():
        session.execute(outbox.execute_run("run_x"))
    assert found() == []
    with new_session() as session, session.begin():
        session.execute(update(OutboxMessage).values(created_at=PAST))
    assert found() == [("unpublished_messages", "outbox")]
    assert repair() == 0
    with Redis.from_url(service.redis_url.get_secret_value()) as redis:
        (message,) = redis.lrange(outbox.GPU_QUEUE, 0, -1)
    assert json.loads(message)["headers"]["task"] == outbox.RUN_TASK


def test_queues_without_workers_are_told_of_and_rows_that_contradict_each_other() -> None:
    first, second = whole_adapter(), whole_adapter("second")
    job = add_job(first)
    change(UnlearnJob, job.id, status="succeeded")
    with new_session() as session, session.begin():
        session.execute(update(Adapter).where(Adapter.id == second.id).values(head=2))
        session.execute(update(WorkerHeartbeat).values(seen_at=PAST))
    expected = [
        ("rows_disagree", job.id),
        ("rows_disagree", second.id),
        ("no_worker", "default"),
        ("no_worker", "gpu"),
    ]
    assert found() == expected
    assert repair() == 1
    assert found() == expected


def test_what_is_found_can_be_read_by_programs(capsys: pytest.CaptureFixture[str]) -> None:
    put("tenants/t/a")
    assert main(["--min-age", "0", "--json"]) == 1
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told == {
        "findings": [
            {
                "kind": "blob_without_row",
                "subject": "tenants/t/a",
                "detail": "no row names it",
                "remedy": "deleted",
                "left": True,
            }
        ],
        "found": 1,
        "left": 1,
    }
