"""Runs that are interrupted and go on from their checkpoints, to the bytes of a run that was not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import select

from app import outbox
from app.datasets.tables import Dataset
from app.jobs import transitions
from app.jobs.tables import OutboxMessage, Run, UnlearnJob
from app.kit.crypto import CryptoError
from app.settings import get_settings
from tests.conftest import forget_settings
from tests.worker.conftest import Tiny
from tests.worker.rows import change, job_of, messages, run_of
from tests.worker.tiny_jobs import OPEN, SHUT, add_tiny_adapter, evaluation_of, run_job, tiny_job, versions
from worker import housekeeping
from worker.checkpoints import CheckpointStore, runs_with_checkpoints
from worker.database import new_session, storage, vault
from worker.execution import execute
from worker.lease import Claim, Fenced, Lease, claim
from worker.progress import Progress
from worker.recipe import carry_out
from worker.unlearning.checkpoint import MAGIC, Checkpoint
from worker.watching import RunWatcher

pytestmark = pytest.mark.usefixtures("service")
PAST = datetime(2020, 1, 1, tzinfo=UTC)
STEPS = {"steps": 8}


class Killed(BaseException):
    """A worker that is gone in the middle of a step."""


@dataclass
class Interruption:
    """Steps that were taken, and what happens at some of them."""

    steps: list[int] = field(default_factory=list)
    at: dict[int, Callable[[], None]] = field(default_factory=dict)
    stopping: bool = False

    def stop(self) -> None:
        """Tell the worker to stop."""
        self.stopping = True

    def kill(self) -> None:
        """End the worker."""
        raise Killed


@pytest.fixture
def happening(monkeypatch: pytest.MonkeyPatch) -> Interruption:
    """Every step leaves a checkpoint, and is told of here."""
    monkeypatch.setenv("LETHE_CHECKPOINT_SECONDS", "0.000001")
    forget_settings()
    found, on_step = Interruption(), RunWatcher.on_step

    def watched(watcher: RunWatcher, step: int, total: int) -> None:
        found.steps.append(step)
        found.at.get(step, lambda: None)()
        on_step(watcher, step, total)

    monkeypatch.setattr(RunWatcher, "on_step", watched)
    return found


def attempt(job: UnlearnJob, happening: Interruption) -> UnlearnJob:
    """Execute a job's run on a worker of its own; the job afterwards."""
    happening.steps.clear()
    happening.stopping = False
    execute(job.run_id, "w", get_settings(), carry_out, lambda: happening.stopping)
    return job_of(job)


def abandon(job: UnlearnJob, happening: Interruption, step: int) -> None:
    """A worker takes the run and is killed at a step; its lease runs out, and the run is queued again."""
    happening.at = {step: happening.kill}
    with pytest.raises(Killed):
        attempt(job, happening)
    happening.at = {}
    change(Run, job.run_id, lease_until=PAST)
    assert housekeeping.reap_runs() == 1


@cache
def uninterrupted(tiny: Tiny) -> str:
    """Digest of the weights that the same job gives in one go."""
    adapter = add_tiny_adapter(tiny, "undisturbed")
    assert run_job(adapter, method=STEPS).status == "succeeded"
    return versions(adapter)[1].weights_sha256


def checkpoints_of(job: UnlearnJob) -> list[str]:
    """Keys of a run's checkpoints."""
    return storage().keys(f"checkpoints/{job.run_id}")


def path_of(key: str) -> Path:
    """The file behind a storage key."""
    return get_settings().storage_dir / key


def delete_what_is_due() -> None:
    """What the light worker does with the messages that wait for it."""
    with new_session() as session, session.begin():
        for message in session.scalars(select(OutboxMessage)).all():
            if message.task == outbox.DELETE_CHECKPOINTS_TASK:
                housekeeping.delete_checkpoints(message.argument)
            session.delete(message)


def store_of(job: UnlearnJob, number: int) -> CheckpointStore:
    """The checkpoints as another attempt of the present life sees them."""
    run = run_of(job)
    assert run.started_at is not None
    held = Claim(run.id, number, run.tenant_id, run.adapter_id, run.started_at)
    with new_session() as session:
        return CheckpointStore(held, session.get_one(Dataset, job.forget_set_id), storage(), vault())


def test_a_run_that_was_handed_back_ends_with_the_bytes_of_one_that_was_not(
    llama: Tiny, happening: Interruption, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LETHE_CHECKPOINT_SECONDS")  # the clock is not due; being told to stop is reason enough
    forget_settings()
    expected = uninterrupted(llama)
    adapter = add_tiny_adapter(llama)
    job = tiny_job(adapter, method=STEPS)
    happening.at = {3: happening.stop}
    assert attempt(job, happening).status == "queued"
    assert happening.steps == [1, 2, 3], "it stops at the step's end, not later"
    assert len(checkpoints_of(job)) == 1
    happening.at = {}
    assert attempt(job, happening).status == "succeeded"
    assert happening.steps == [4, 5, 6, 7, 8]
    assert versions(adapter)[1].weights_sha256 == expected
    training = evaluation_of(job).training
    assert training is not None
    assert (training.resumed, training.steps, training.kept_step) == (True, 8, 8)
    assert "going on from step 3, the checkpoint of attempt 1" in messages(job)
    run = run_of(job)
    assert (run.attempt, run.step, run.total_steps, run.percent) == (2, 8, 8, 100.0)


def test_a_run_whose_workers_were_killed_ends_with_the_same_bytes(llama: Tiny, happening: Interruption) -> None:
    expected = uninterrupted(llama)
    adapter = add_tiny_adapter(llama)
    job = tiny_job(adapter, method=STEPS)
    abandon(job, happening, 3)
    abandon(job, happening, 6)
    assert happening.steps == [3, 4, 5, 6], "step 3 had no checkpoint yet"
    assert attempt(job, happening).status == "succeeded"
    assert happening.steps == [6, 7, 8]
    assert versions(adapter)[1].weights_sha256 == expected


def test_a_run_that_stops_at_its_targets_keeps_the_same_point_after_an_interruption(
    llama: Tiny, happening: Interruption
) -> None:
    rule = {"steps": 8, "stop": {"type": "targets", "every": 2, "patience": 10}, "schedule": {"type": "stretch"}}
    out_of_reach = {**OPEN, "training_max_forget_probability": 0}
    adapters = [add_tiny_adapter(llama, name) for name in ("one", "two")]
    whole = run_job(adapters[0], out_of_reach, rule)
    job = tiny_job(adapters[1], out_of_reach, rule)
    abandon(job, happening, 6)
    attempt(job, happening)
    assert happening.steps[0] == 6
    one, two = (evaluation_of(each).training for each in (whole, job))
    assert one is not None
    assert two == one.model_copy(update={"resumed": True})
    assert [probe.step for probe in one.probes] == [0, 2, 4, 6, 8]
    assert len({versions(adapter)[1].weights_sha256 for adapter in adapters}) == 1


def test_a_checkpoint_is_not_readable_in_plain(llama: Tiny, happening: Interruption) -> None:
    job = tiny_job(add_tiny_adapter(llama), method=STEPS)
    abandon(job, happening, 3)
    (key,) = checkpoints_of(job)
    plain, stored = store_of(job, 2).read(1), path_of(key).read_bytes()
    assert plain.startswith(MAGIC)
    for start in range(0, len(plain) - 64, 997):
        assert plain[start : start + 64] not in stored


def test_a_purged_forget_set_takes_its_checkpoints_along(llama: Tiny, happening: Interruption) -> None:
    job = tiny_job(add_tiny_adapter(llama), method=STEPS)
    abandon(job, happening, 3)
    change(Dataset, job.forget_set_id, wrapped_key=None, purged_at=PAST)
    with pytest.raises(CryptoError):
        store_of(job, 2).read(1)


def torn(path: Path, _job: UnlearnJob) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garbage(path: Path, _job: UnlearnJob) -> None:
    path.write_bytes(b"\0" * 5000)


def moved(path: Path, job: UnlearnJob) -> None:
    """The ciphertext of another attempt of the same run, under this one's key."""
    store_of(job, 7).save(store_of(job, 2).read(1))
    path.write_bytes(path.with_name("7").read_bytes())
    path.with_name("7").unlink()


def another_format(_path: Path, job: UnlearnJob) -> None:
    store_of(job, 1).save(b"lethe-checkpoint-9\n" + b"x" * 200)


def another_course(_path: Path, job: UnlearnJob) -> None:
    """Whole, and of other records, another seed or another version of torch."""
    found = Checkpoint.from_bytes(store_of(job, 2).read(1))
    store_of(job, 1).save(replace(found, fingerprint="0" * 64).to_bytes())


@pytest.mark.parametrize("spoil", [torn, garbage, moved, another_format, another_course])
def test_a_checkpoint_that_cannot_be_used_costs_time_and_nothing_else(
    llama: Tiny, happening: Interruption, spoil: Callable[[Path, UnlearnJob], None]
) -> None:
    expected = uninterrupted(llama)
    adapter = add_tiny_adapter(llama)
    job = tiny_job(adapter, method=STEPS)
    abandon(job, happening, 5)
    (key,) = checkpoints_of(job)
    spoil(path_of(key), job)
    assert attempt(job, happening).status == "succeeded"
    assert happening.steps[0] == 1
    assert versions(adapter)[1].weights_sha256 == expected
    assert any("cannot be read" in line or "another course" in line for line in messages(job))
    training = evaluation_of(job).training
    assert training is not None
    assert not training.resumed


def test_a_checkpoint_that_cannot_be_read_leaves_the_one_before_it(llama: Tiny, happening: Interruption) -> None:
    job = tiny_job(add_tiny_adapter(llama), method=STEPS)
    abandon(job, happening, 3)
    abandon(job, happening, 6)
    older, newer = checkpoints_of(job)
    assert older < newer
    torn(path_of(newer), job)
    attempt(job, happening)
    assert happening.steps[0] == 3


@pytest.mark.parametrize("policy", [None, SHUT])
def test_nothing_is_left_after_the_end(llama: Tiny, happening: Interruption, policy: dict[str, float] | None) -> None:
    job = tiny_job(add_tiny_adapter(llama), policy, method=STEPS)
    attempt(job, happening)
    assert checkpoints_of(job)
    delete_what_is_due()
    assert runs_with_checkpoints(storage()) == set()
    assert not (get_settings().storage_dir / "checkpoints" / job.run_id).exists()


def test_nothing_is_left_of_a_run_that_is_cancelled_while_it_waits_for_its_next_worker(
    llama: Tiny, happening: Interruption
) -> None:
    job = tiny_job(add_tiny_adapter(llama), method=STEPS)
    abandon(job, happening, 4)
    change(Run, job.run_id, cancel_requested_at=PAST, status="running", lease_until=PAST)
    housekeeping.reap_runs()
    assert job_of(job).status == "cancelled"
    delete_what_is_due()
    assert checkpoints_of(job) == []


def test_a_retried_run_starts_anew_whatever_the_ended_one_left(llama: Tiny, happening: Interruption) -> None:
    adapter = add_tiny_adapter(llama)
    job = tiny_job(adapter, SHUT, method=STEPS)
    assert attempt(job, happening).status == "gate_failed"
    old = checkpoints_of(job)
    with new_session() as session, session.begin():
        assert session.scalars(transitions.retry(job.run_id)).one()
        session.execute(transitions.follow(job.run_id, "queued")).all()
    happening.at = {4: happening.kill}
    with pytest.raises(Killed):
        attempt(job, happening)
    assert happening.steps == [1, 2, 3, 4]
    new = [key for key in checkpoints_of(job) if key not in old]
    # The message of the first end comes late: it takes away what that left, not what the live run needs.
    delete_what_is_due()
    assert checkpoints_of(job) == new
    assert len(new) == 1


def test_a_worker_that_was_fenced_stores_nothing(llama: Tiny, happening: Interruption) -> None:
    job = tiny_job(add_tiny_adapter(llama), method=STEPS)
    abandon(job, happening, 3)
    kept = Checkpoint.from_bytes(store_of(job, 2).read(1))
    held = claim(job.run_id, "w", timedelta(seconds=60))
    assert held is not None
    lease = Lease(held, timedelta(seconds=60), 30.0)
    watcher = RunWatcher(lease, Progress(lease), store_of(job, held.attempt), 60.0)
    change(Run, job.run_id, attempt=9)
    with pytest.raises(Fenced):
        lease.event("anything")
    with pytest.raises(Fenced):
        watcher.on_checkpoint(kept)
    assert [key.rsplit("/", 1)[1] for key in checkpoints_of(job)] == ["1"]


def test_what_a_zombie_stores_is_in_nobodys_way_and_is_swept(llama: Tiny, happening: Interruption) -> None:
    expected = uninterrupted(llama)
    adapter = add_tiny_adapter(llama)
    job = tiny_job(adapter, method=STEPS)
    abandon(job, happening, 3)
    zombie, late = store_of(job, 1), store_of(job, 2).read(1)
    happening.at = {6: lambda: zombie.save(late)}
    assert attempt(job, happening).status == "succeeded"
    assert versions(adapter)[1].weights_sha256 == expected
    delete_what_is_due()
    zombie.save(late)
    with new_session() as session:
        assert session.get_one(Dataset, job.forget_set_id).wrapped_key is None, "so that it opens no more"
    assert housekeeping.sweep_checkpoints() == 1
    assert runs_with_checkpoints(storage()) == set()


def test_the_sweep_leaves_live_runs_alone(llama: Tiny, happening: Interruption) -> None:
    job = tiny_job(add_tiny_adapter(llama), method=STEPS)
    abandon(job, happening, 3)
    before = checkpoints_of(job)
    housekeeping.sweep_checkpoints()
    assert checkpoints_of(job) == before != []


def test_a_disk_that_is_full_stops_no_training_and_is_told_of_once(
    llama: Tiny, happening: Interruption, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError("no space left in /srv/lethe")

    monkeypatch.setattr(CheckpointStore, "save", full)
    job = tiny_job(add_tiny_adapter(llama), method=STEPS)
    assert attempt(job, happening).status == "succeeded"
    told = [line for line in messages(job) if "no checkpoint can be stored" in line]
    assert told == ["no checkpoint can be stored (OSError); training goes on without"]


def test_a_step_that_takes_too_long_is_not_waited_for(
    llama: Tiny, happening: Interruption, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.recipe.PATIENCE_SECONDS", 0.0)
    job = tiny_job(add_tiny_adapter(llama), method=STEPS)
    happening.at = {3: happening.stop}
    assert attempt(job, happening).status == "queued"
    happening.at = {}
    attempt(job, happening)
    assert happening.steps[0] == 3, "the checkpoint of step 2 was the last"


def test_checkpoints_are_taken_on_the_clock(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[bytes] = []
    monkeypatch.setattr(CheckpointStore, "save", lambda _store, data: stored.append(data))
    assert run_job(add_tiny_adapter(llama), method=STEPS).status == "succeeded"
    assert stored == [], "a minute has not passed"
