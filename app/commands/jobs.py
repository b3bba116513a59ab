"""`lethe submit`, `status` and `download`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from app.client import Job, LetheClient
from app.commands.connection import DEFAULT_DATA_DIR, DataDirOption, KeyOption, UrlOption, connect
from app.commands.progress import describe, follow
from app.commands.transfer import shown
from app.fetching import fetch

MAX_INLINE_RECORDS = 1000
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


def submit(
    forget: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Records to remove, JSON Lines.")],
    adapter: Annotated[str | None, typer.Option(help="Adapter to unlearn from.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Base model that itself knows the records; a fresh LoRA is put on it.")
    ] = None,
    result_adapter: Annotated[str | None, typer.Option(help="Name of the adapter that this becomes.")] = None,
    retain: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Records to keep, JSON Lines.")
    ] = None,
    holdout: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Look-alikes that were never trained on.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the run repeatable; drawn when absent.")] = None,
    policy: Annotated[str | None, typer.Option(help="Name of a policy, or its thresholds as JSON.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Name of a method, such as auto or retrain, or its settings as JSON.")
    ] = None,
    subject_request_id: Annotated[str | None, typer.Option(help="The controller's id of the request.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job; exit 1 unless it succeeds.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the job would come to, as JSON, and create nothing.")
    ] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Upload the records, start an unlearn job and print its id, or say what it would come to.

    Example: lethe submit --adapter support-bot --forget forget.jsonl --retain retain.jsonl --wait
    """
    if (adapter is None) == (base_model is None) or (base_model is None) != (result_adapter is None):
        raise typer.BadParameter("give either --adapter, or --base-model and --result-adapter")
    options = {
        "adapter": adapter,
        "base_model": base_model,
        "result_adapter": result_adapter,
        "seed": seed,
        "subject_request_id": subject_request_id,
    }
    body: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if policy is not None:
        body["policy"] = parse_object(policy, "--policy") if policy.lstrip().startswith("{") else policy
    if method is not None:
        named = not method.lstrip().startswith("{")
        body["method"] = {"type": method} if named else parse_object(method, "--method")
    files = {"forget": forget, "retain": retain, "holdout": holdout}
    with connect(url, api_key, data_dir) as client:
        if dry_run:
            show_plan(client.plan(body | inline_sets(files)))
            return
        body |= upload_sets(client, files)
        job = client.submit(body)
        typer.echo(job.id)
        if wait:
            finish(watch(client, job.id))


def upload_sets(client: LetheClient, files: dict[str, Path | None]) -> dict[str, str]:
    """Uploads each given file; the job's `*_set` fields."""
    return {
        f"{purpose}_set": client.upload_dataset(path, purpose) for purpose, path in files.items() if path is not None
    }


def inline_sets(files: dict[str, Path | None]) -> dict[str, Any]:
    """The same fields with the records in them, for a request that stores none."""
    fields: dict[str, Any] = {}
    for purpose, path in files.items():
        if path is None:
            continue
        try:
            records = [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
        except ValueError as error:
            raise typer.BadParameter("not JSON Lines", param_hint=f"--{purpose}") from error
        if len(records) > MAX_INLINE_RECORDS:
            why = f"a dry run takes at most {MAX_INLINE_RECORDS} records of a file, since it uploads none"
            raise typer.BadParameter(why, param_hint=f"--{purpose}")
        fields[f"{purpose}_set"] = {"records": records}
    return fields


def show_plan(plan: dict[str, Any]) -> None:
    """The plan on standard output, for programs; its warnings on standard error, for people."""
    typer.echo(json.dumps(plan, indent=2))
    for warning in plan.get("warnings", []):
        typer.echo(f"note: {warning['message']}", err=True)


def parse_object(text: str, option: str) -> dict[str, Any]:
    """A JSON object from the command line; a usage error otherwise."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=option) from error
    if not isinstance(value, dict):
        raise typer.BadParameter("must be a JSON object", param_hint=option)
    return value


def status(
    job_id: JobArgument,
    watch_job: Annotated[bool, typer.Option("--watch", help="Follow the job; exit 1 unless it succeeds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the job as the service gives it.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show where a job stands.

    Example: lethe status job_01J8Z3 --watch
    """
    with connect(url, api_key, data_dir) as client:
        job = watch(client, job_id) if watch_job else client.job(job_id)
    typer.echo(job.model_dump_json(indent=2, exclude_unset=True) if as_json else summary(job))
    if watch_job:
        finish(job)


def watch(client: LetheClient, job_id: str) -> Job:
    """Follows on standard error, so that standard output stays for programs."""
    job = follow(client, job_id, Console(stderr=True, highlight=False))
    for message in client.warnings(job_id):
        typer.echo(f"note: {message}", err=True)
    return job


def finish(job: Job) -> None:
    """Exit status 1 unless the job succeeded, with the reason on standard error."""
    if job.status == "succeeded":
        return
    reason = f": {job.error.message} [{job.error.code}]" if job.error else ""
    typer.echo(f"job {job.id} ended as {job.status}{reason}", err=True)
    raise typer.Exit(1)


def summary(job: Job) -> str:
    """A few aligned lines."""
    result = f" -> {job.result_version}" if job.result_version is not None else ""
    rows = {
        "job": job.id,
        "status": job.status if job.finished else f"{job.status} ({describe(job)})",
        "cancel": f"asked for {job.cancel_requested_at}" if job.cancel_requested_at and not job.finished else None,
        "verdict": job.verdict,
        "adapter": f"{job.adapter}, version {job.source_version or '-'}{result}",
        "method": _method(job),
        "request": job.subject_request_id,
        "due": f"{job.due_at} (overdue)" if job.overdue else job.due_at,
        "created": job.created_at,
        "finished": job.finished_at,
        "error": f"{job.error.message} [{job.error.code}]" if job.error else None,
    }
    return "\n".join(f"{name:<9}{value}" for name, value in rows.items() if value is not None)


def _method(job: Job) -> str | None:
    """The method, and why it is that one where there was something to choose."""
    name = job.method.get("type")
    exact = {True: ", exact", False: ", not exact", None: ""}[job.exact] if name == "retrain" else ""
    return f"{name}{exact} ({job.costs['reason']})" if name and job.costs else name


def download(
    target: Annotated[str, typer.Argument(metavar="JOB|ADAPTER[@VERSION]", help="What to download.")],
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="The archive's file.")],
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Download an adapter as tar.gz and check its sha256 before the file appears.

    A download that was cut off goes on where it ended when the command is run again.

    Example: lethe download support-bot@head -o support-bot.tar.gz
    """
    console = Console(stderr=True, highlight=False)
    with connect(url, api_key, data_dir) as client, shown(console) as show:
        digest = fetch(client, download_path(target), output, show)
    typer.echo(f"{output}  sha256 {digest}")


def download_path(target: str) -> str:
    """The path of a job's result, or of an adapter's version (the head when none is named)."""
    if target.startswith("job_"):
        return f"/unlearn-jobs/{target}/adapter"
    name, _, version = target.partition("@")
    return f"/adapters/{name}/versions/{version or 'head'}/download"
