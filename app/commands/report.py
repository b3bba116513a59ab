"""`lethe report`."""

from pathlib import Path
from typing import Annotated

import typer

from app.commands.connection import DEFAULT_DATA_DIR, DataDirOption, KeyOption, UrlOption, connect


def report(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="The page's file.")] = Path(
        "report.html"
    ),
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Save the report on a job's result: one HTML page that needs nothing else and prints well.

    Example: lethe report job_01J8Z3 -o report.html
    """
    with connect(url, api_key, data_dir) as client:
        client.save_report(job_id, output)
    typer.echo(str(output))
