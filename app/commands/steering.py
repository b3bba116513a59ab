"""`lethe list`, `cancel`, `retry`, `approve`, `deny` and `extend`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.client import Job
from app.commands.connection import DEFAULT_DATA_DIR, DataDirOption, KeyOption, UrlOption, connect
from app.commands.jobs import JobArgument, summary
from app.commands.table import table

JsonOption = Annotated[bool, typer.Option("--json", help="Print the job as the service gives it.")]
ReasonOption = Annotated[str | None, typer.Option(help="Why; kept with the job.")]


def list_jobs(
    status: Annotated[list[str] | None, typer.Option(help="Only jobs of this status; may be repeated.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Only jobs on this adapter.")] = None,
    subject_request_id: Annotated[str | None, typer.Option(help="Only jobs of this request of a person.")] = None,
    due_before: Annotated[
        str | None,
        typer.Option(help="Only jobs due before this, such as 2026-01-31T12:00:00Z; latest due first."),
    ] = None,
    overdue: Annotated[
        bool, typer.Option("--overdue", help="Only live jobs whose deadline has passed; latest due first.")
    ] = False,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with that metadata; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print jobs as JSON Lines.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show jobs, newest first.

    Example: lethe list --status queued --status running
    """
    given = {"status": status, "adapter": adapter, "subject_request_id": subject_request_id, "due_before": due_before}
    filters: dict[str, Any] = {name: value for name, value in given.items() if value}
    filters |= {"overdue": "true"} if overdue else {}
    for key, value in map(pair, metadata or ()):
        filters.setdefault(f"metadata[{key}]", []).append(value)
    with connect(url, api_key, data_dir) as client:
        jobs = client.items("/unlearn-jobs", limit, filters)
    if as_json:
        for each in jobs:
            typer.echo(json.dumps(each))
    elif jobs:
        titles = ("JOB", "STATUS", "ADAPTER", "DUE", "REQUEST")
        typer.echo(table(titles, [row(Job.model_validate(each)) for each in jobs]))
    else:
        typer.echo("there are no such jobs", err=True)


def pair(text: str) -> tuple[str, str]:
    """Key and value of `KEY=VALUE`; a usage error otherwise."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter("give KEY=VALUE", param_hint="--metadata")
    return key, value


def row(job: Job) -> tuple[str, ...]:
    """A job's cells."""
    due = f"{job.due_at or '-'}{' (overdue)' if job.overdue else ''}"
    return job.id, job.status, job.adapter, due, job.subject_request_id or "-"


def cancel(
    job_id: JobArgument,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Cancel a job that has not ended. A waiting one ends at once, a running one stops at its next step.

    Example: lethe cancel job_01J8Z3
    """
    steer(job_id, "cancel", None, as_json, url, api_key, data_dir)


def retry(
    job_id: JobArgument,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Queue a job again that ended without success; it starts anew.

    Example: lethe retry job_01J8Z3
    """
    steer(job_id, "retry", None, as_json, url, api_key, data_dir)


def approve(
    job_id: JobArgument,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Let a job start that waits for approval. Takes another key than the submitter's.

    Example: lethe approve job_01J8Z3 --reason "identity verified"
    """
    steer(job_id, "approve", reason, as_json, url, api_key, data_dir)


def deny(
    job_id: JobArgument,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """End a job that waits for approval. Takes another key than the submitter's.

    Example: lethe deny job_01J8Z3 --reason "a legal hold"
    """
    steer(job_id, "deny", reason, as_json, url, api_key, data_dir)


def extend(
    job_id: JobArgument,
    reason: Annotated[str, typer.Option(help="Why; the person has to be told (GDPR Art. 12(3)).")],
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Move a job's deadline by two calendar months, once, before it has passed.

    Example: lethe extend job_01J8Z3 --reason "forty requests at once"
    """
    steer(job_id, "extend", reason, as_json, url, api_key, data_dir)


def steer(
    job_id: str, action: str, reason: str | None, as_json: bool, url: str | None, api_key: str | None, data_dir: Path
) -> None:
    """Ask for a change of a job and show what it is then."""
    body = {"reason": reason} if reason is not None else None
    with connect(url, api_key, data_dir) as client:
        job = client.call("POST", f"/unlearn-jobs/{job_id}/{action}", body)
    typer.echo(json.dumps(job, indent=2) if as_json else summary(Job.model_validate(job)))
