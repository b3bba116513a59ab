"""What Postgres itself saw: triggers note every change of a job's status, and who wrote what of which run."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

from sqlalchemy import Row, select, text

from app.adapters.tables import Adapter, AdapterVersion
from app.attestations.tables import Attestation
from app.audit.tables import AuditEntry
from app.datasets.tables import Dataset
from app.evaluations.tables import EvaluationRow
from app.jobs.tables import LIVE, UNSUCCESSFUL, JobEvent, Run, UnlearnJob
from tests.worker.states.actors import Worker
from worker.database import engine, new_session

_TRIGGERS = """
CREATE TABLE seen_statuses (id bigserial PRIMARY KEY, job_id text, status text);
CREATE TABLE seen_writes (
  id bigserial PRIMARY KEY, actor text, transaction xid8, kind text, run_id text, attempt int, status text);
CREATE FUNCTION see_status() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO seen_statuses (job_id, status) VALUES (NEW.id, NEW.status); RETURN NULL; END $$;
CREATE TRIGGER see_job AFTER INSERT ON unlearn_jobs FOR EACH ROW EXECUTE FUNCTION see_status();
CREATE TRIGGER see_change AFTER UPDATE ON unlearn_jobs FOR EACH ROW
  WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION see_status();
CREATE FUNCTION see_run() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO seen_writes (actor, transaction, kind, run_id, attempt, status) VALUES
    (current_setting('application_name'), pg_current_xact_id(), 'runs', OLD.id, OLD.attempt, OLD.status);
  RETURN NULL; END $$;
CREATE TRIGGER see_run AFTER UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION see_run();
CREATE FUNCTION see_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO seen_writes (actor, transaction, kind, run_id, attempt, status)
    SELECT current_setting('application_name'), pg_current_xact_id(), TG_TABLE_NAME, id, attempt, status FROM runs
    WHERE id = CASE TG_TABLE_NAME
      WHEN 'job_events' THEN (SELECT run_id FROM unlearn_jobs WHERE id = to_jsonb(NEW) ->> 'job_id')
      ELSE to_jsonb(NEW) ->> 'run_id' END;
  RETURN NULL; END $$;
"""
_WATCHED = ("job_events", "evaluations", "adapter_versions", "attestations")
# Where a job's status may go.
_ALLOWED = {
    "awaiting_approval": {"queued", "cancelled"},
    "queued": {"running", "cancelled"},
    "running": {"queued", "succeeded", *UNSUCCESSFUL},
    "succeeded": set[str](),
    **{status: {"queued", "awaiting_approval"} for status in UNSUCCESSFUL},
}
CANCEL_ASKED = "cancelling was asked for"


def set_up() -> None:
    """Have Postgres watch from now on."""
    watched = (
        f"CREATE TRIGGER see_row AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION see_row();"
        for table in _WATCHED
    )
    with engine().begin() as connection:
        connection.execute(text(_TRIGGERS + "".join(watched)))


def check_rows() -> None:
    """Whatever was committed so far fits together."""
    with new_session() as session:
        jobs = session.scalars(select(UnlearnJob)).all()
        runs = {run.id: run for run in session.scalars(select(Run))}
        versions = session.scalars(select(AdapterVersion).order_by(AdapterVersion.number)).all()
        evaluations = {(row.run_id, row.attempt): row for row in session.scalars(select(EvaluationRow))}
        attested = dict(session.execute(select(Attestation.version_id, Attestation.run_id)).all())
        heads = dict(session.execute(select(Adapter.id, Adapter.head)).all())
        sealed = dict(session.execute(select(Dataset.id, Dataset.wrapped_key)).all())
    assert len(jobs) == len(runs)
    assert {job.run_id for job in jobs} == runs.keys(), "a job without a run, or a run without a job"
    for job in jobs:
        assert job.status == runs[job.run_id].status
        if job.status in LIVE:
            assert sealed[job.forget_set_id] is not None, "the records of a live job were destroyed"
            assert sealed[job.retain_set_id] is not None, "the records of a live job were destroyed"
    running = [run.adapter_id for run in runs.values() if run.status == "running"]
    assert len(running) == len(set(running)), "two runs of an adapter at once"
    _check_versions(versions, heads)
    released = {version.run_id: version for version in versions if version.run_id is not None}
    assert len(released) == sum(version.run_id is not None for version in versions), "a run with two results"
    for job in jobs:
        version = released.pop(job.run_id, None)
        assert (version is not None) == (job.status == "succeeded"), "a result without success, or the reverse"
        if version is not None:
            attempt = runs[job.run_id].attempt
            assert job.result_version == version.number
            assert evaluations[job.run_id, attempt].document["gate"]["verdict"] == job.verdict == "passed"
            assert attested[version.id] == job.run_id
    assert not released


def _check_versions(versions: list[AdapterVersion] | Any, heads: dict[str, int]) -> None:
    """Every version comes from the one before it; the newest is the head, and the only one that is handed out."""
    series: dict[str, list[AdapterVersion]] = defaultdict(list)
    for version in versions:
        series[version.adapter_id].append(version)
    for adapter_id, its in series.items():
        assert [version.number for version in its] == list(range(1, heads[adapter_id] + 1))
        assert [version.source_version for version in its[1:]] == [version.number for version in its[:-1]]
        assert [version.status == "ready" for version in its] == [False] * (len(its) - 1) + [True]


def check_histories() -> None:
    """Each change of a job's status is allowed, and has one event and one entry of the audit chain."""
    seen: dict[str, list[str]] = defaultdict(list)
    with engine().connect() as connection:
        for job_id, status in connection.execute(text("SELECT job_id, status FROM seen_statuses ORDER BY id")):
            seen[job_id].append(status)
    with new_session() as session:
        jobs = session.scalars(select(UnlearnJob.id)).all()
        told = session.execute(select(JobEvent.job_id, JobEvent.message).where(JobEvent.type == "status")).all()
        entries = session.scalars(
            select(AuditEntry).where(AuditEntry.subject_type == "unlearn_job").order_by(AuditEntry.sequence)
        ).all()
    assert seen.keys() == set(jobs)
    for job_id, statuses in seen.items():
        assert statuses[0] in ("queued", "awaiting_approval")
        for before, after in pairwise(statuses):
            assert after in _ALLOWED[before], statuses
        events = [message for of, message in told if of == job_id and message != CANCEL_ASKED]
        assert len(events) == len(statuses), (statuses, events)
        mine = [entry for entry in entries if entry.subject_id == job_id]
        assert [entry.action for entry in mine].count("job.accepted") == 1
        # That a job waits in the queue at first is told by its acceptance.
        recorded = [entry.data["status"] for entry in mine if entry.action == "job.status"]
        assert recorded == statuses[statuses[0] == "queued" :]


def check_writes(workers: list[Worker]) -> None:
    """Each worker wrote to its run while it held it, and never else."""
    found: dict[str, list[Row[Any]]] = defaultdict(list)
    with engine().connect() as connection:
        for row in connection.execute(text("SELECT * FROM seen_writes ORDER BY id")):
            found[row.actor].append(row)
    for worker in workers:
        if not found[worker.name]:
            continue
        claim, *others = found[worker.name]
        assert (claim.kind, claim.status) == ("runs", "queued")
        last: set[str] = {claim.transaction}  # of a transaction in which it took or gave up the run
        for row in others:
            assert (row.run_id, row.attempt) == (worker.run_id, claim.attempt + 1), "a write of a stale attempt"
            if row.kind == "runs" and row.status == "running":
                last = {row.transaction}
            assert row.status == "running" or row.transaction in last, "a write after the run was lost"


def snapshot() -> list[tuple[Any, ...]]:
    """Everything that a worker may write, as it is now."""
    tables = ("runs", "unlearn_jobs", "adapters", "datasets", *_WATCHED, "audit_entries", "outbox")
    with engine().connect() as connection:
        return [
            (table, *row)
            for table in tables
            for row in connection.execute(text(f"SELECT t.* FROM {table} t ORDER BY 1, 2, 3"))  # noqa: S608
        ]
