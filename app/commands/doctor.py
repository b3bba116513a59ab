"""`lethe doctor`: what processes that died have left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.commands.service import configured

AGE_SECONDS = 3600.0


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired.")] = False,
    digests: Annotated[
        bool, typer.Option("--digests", help="Read every adapter and compare its digest; takes long.")
    ] = False,
    min_age: Annotated[
        float, typer.Option(min=0, help="Seconds for which nobody has touched what may still be in use.")
    ] = AGE_SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", file_okay=False, exists=True, help="Of a running `lethe up`."),
    ] = None,
) -> None:
    """Look for files without rows, rows without files, and work that nobody does; exit 1 while any is left.

    Example: lethe doctor --repair
    """
    from app.embedded.environment import environment_of

    if data_dir is None:
        configured()
    given = [("--repair", repair), ("--digests", digests), ("--json", as_json)]
    options = ["--min-age", str(min_age), *(name for name, wanted in given if wanted)]
    # The worker's part of the house knows what may be repaired; the command line never loads it.
    command = [sys.executable, "-m", "worker.doctor", *options]
    environment = environment_of(data_dir) if data_dir is not None else {}
    done = subprocess.run(command, env={**os.environ, **environment}, check=False)  # noqa: S603 - our own arguments
    raise typer.Exit(done.returncode)
