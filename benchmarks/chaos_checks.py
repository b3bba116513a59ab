"""What must hold once the dust has settled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import psycopg

from benchmarks.chaos_callers import FINAL, Callers
from benchmarks.chaos_service import Service

# Nothing has changed for so long: whatever is not over will never be.
STANDSTILL_SECONDS = 180.0
_LEFTOVERS = {"blob_without_row", "unfinished_blob", "checkpoint_of_ended_run", "abandoned_folder"}
_CONTRADICTIONS = {
    "a run with two results": """
        SELECT run_id FROM adapter_versions WHERE run_id IS NOT NULL GROUP BY 1 HAVING count(*) > 1""",
    "a person's request with two jobs": "SELECT subject_request_id FROM unlearn_jobs GROUP BY 1 HAVING count(*) > 1",
    "a result without success, or the reverse": """
        SELECT j.id FROM unlearn_jobs j LEFT JOIN adapter_versions v USING (run_id)
        WHERE (j.status = 'succeeded') <> (v.id IS NOT NULL) OR j.result_version <> v.number""",
    "a result whose gate did not pass": """
        SELECT v.id FROM adapter_versions v JOIN runs r ON r.id = v.run_id
        LEFT JOIN evaluations e ON e.run_id = r.id AND e.attempt = r.attempt
        WHERE (e.document -> 'gate' ->> 'verdict') IS DISTINCT FROM 'passed'""",
    "a result that is not attested": """
        SELECT v.id FROM adapter_versions v LEFT JOIN attestations a ON a.version_id = v.id
        WHERE v.run_id IS NOT NULL AND a.id IS NULL""",
    "an erasure that was undone": """
        SELECT id FROM adapter_versions WHERE number > 1 AND source_version IS DISTINCT FROM number - 1
        UNION SELECT a.id FROM adapters a JOIN adapter_versions v ON v.adapter_id = a.id
        GROUP BY a.id HAVING max(v.number) <> a.head OR count(*) <> a.head""",
    "a forget set that is still held": """
        SELECT d.id FROM unlearn_jobs j JOIN datasets d ON d.id = j.forget_set_id
        WHERE j.status = 'succeeded' AND d.purged_at IS NULL""",
    "a job and its run that disagree": """
        SELECT j.id FROM unlearn_jobs j JOIN runs r ON r.id = j.run_id WHERE j.status <> r.status""",
    "an attempt that was started twice, or never": """
        SELECT r.id FROM runs r JOIN unlearn_jobs j ON j.run_id = r.id
        WHERE r.attempt <>
        (SELECT count(*) FROM job_events e WHERE e.job_id = j.id AND e.message LIKE 'started, %')""",
    "changes without an event or without an audit entry": """
        SELECT j.id FROM unlearn_jobs j WHERE
        (SELECT count(*) FROM job_events e WHERE e.job_id = j.id AND e.type = 'status') <>
        (SELECT count(*) FROM audit_entries a WHERE a.subject_id = j.id AND a.action = 'job.status')""",
}
# Two results, or two of anything that there may be one of: these count as done twice.
_DOUBLED = (
    "a run with two results",
    "a person's request with two jobs",
    "an attempt that was started twice, or never",
)


@dataclass
class Findings:
    """What did not hold.

    Attributes:
        lost: promised jobs that are not there, or never ended.
        doubled: what was done twice.
        violations: all of it, in words.
        leftovers: bytes without rows that the doctor removed: allowed.
        resumed: runs that went on from a checkpoint.
        digests: of weights, by the number of the version.
    """

    lost: int = 0
    doubled: int = 0
    violations: list[str] = field(default_factory=list)
    leftovers: int = 0
    resumed: int = 0
    jobs: int = 0
    digests: dict[int, set[str]] = field(default_factory=dict)

    @property
    def resume_identical(self) -> bool:
        """Whether every version has the bytes of the others of its number, and some runs were resumed."""
        return self.resumed > 0 and all(len(digests) == 1 for digests in self.digests.values())


def settle(service: Service, callers: Callers) -> list[str]:
    """Wait until every job has ended; what never does is named."""
    before: Any = None
    since = time.monotonic()
    while True:
        service.revive()
        try:
            with service.connect() as connection:
                now = connection.execute(
                    "SELECT j.id, j.status, r.attempt, r.phase, r.step FROM unlearn_jobs j"
                    " JOIN runs r ON r.id = j.run_id WHERE NOT j.status = ANY(%s) ORDER BY j.id",
                    [list(FINAL)],
                ).fetchall()
        except psycopg.Error:
            time.sleep(0.5)
            continue
        if not now and all(each.released for each in callers.wanted):
            return []
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > STANDSTILL_SECONDS:
            return [f"{row[0]} stays {row[1]}, attempt {row[2]}, {row[3]}, step {row[4]}" for row in now] or [
                "a call"
            ]
        time.sleep(0.5)


def check(service: Service, callers: Callers) -> Findings:
    """Wait for the end of every job, then look at everything."""
    found = Findings()
    stuck = settle(service, callers)
    found.lost += len(stuck)
    found.violations += [f"never ended: {each}" for each in stuck]
    service.wait_until_ready()
    with service.connect() as connection:
        _check_rows(connection, callers, found)
    found.violations += [f"broken promise: {each}" for each in callers.broken_promises]
    callers.broken_promises.clear()
    _check_chain(service, found)
    _ask_doctor(service, found)
    if strangers := service.strangers():
        found.violations.append(f"orphan processes: {strangers}")
    return found


def _check_rows(connection: psycopg.Connection[Any], callers: Callers, found: Findings) -> None:
    jobs = {row[0]: row for row in connection.execute("SELECT id, status, error FROM unlearn_jobs")}
    found.jobs = len(jobs)
    promised = {each.job_id for each in callers.wanted if each.job_id is not None}
    for job_id in promised - jobs.keys():
        found.lost += 1
        found.violations.append(f"{job_id} was promised and is lost")
    for job_id, status, error in jobs.values():
        if status not in ("succeeded", *{"awaiting_approval", "queued", "running"}):
            found.violations.append(f"{job_id} ended {status}: {error}")
    for words, question in _CONTRADICTIONS.items():
        for (subject,) in connection.execute(question):
            found.doubled += words in _DOUBLED
            found.violations.append(f"{words}: {subject}")
    message = "SELECT count(DISTINCT job_id) FROM job_events WHERE message LIKE 'going on from step%'"
    (found.resumed,) = connection.execute(message).fetchone() or (0,)
    for number, digest in connection.execute("SELECT number, weights_sha256 FROM adapter_versions"):
        found.digests.setdefault(number, set()).add(digest)
    if found.resumed and not found.resume_identical:
        counts = {number: len(digests) for number, digests in found.digests.items()}
        found.violations.append(f"bytes that depend on how often a run was interrupted: {counts}")


def _check_chain(service: Service, found: Findings) -> None:
    command = [sys.executable, "-m", "app.cli", "audit", "verify", "--url", service.url, "--api-key", service.keys[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        found.violations.append(f"the audit chain: {done.stdout}{done.stderr}")


def _ask_doctor(service: Service, found: Findings) -> None:
    command = [sys.executable, "-m", "worker.doctor", "--repair", "--json", "--min-age", "0"]
    environment = {**os.environ, **service.environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if not done.stdout:
        found.violations.append(f"the doctor: {done.stderr[-500:]}")
        return
    for each in json.loads(done.stdout)["findings"]:
        if each["kind"] in _LEFTOVERS and not each["left"]:
            found.leftovers += 1
        else:
            found.violations.append(f"{each['kind']} {each['subject']}: {each['detail']}")
