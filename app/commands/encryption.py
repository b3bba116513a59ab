"""`lethe rewrap` and `scrub`: what operators do with the keys that encrypt datasets."""

from pathlib import Path
from typing import Annotated

import typer

from app.commands.service import configured
from app.embedded.data_directory import DataDirectory
from app.kit.crypto import KeyRing

EmbeddedOption = Annotated[
    Path | None,
    typer.Option("--data-dir", file_okay=False, exists=True, help="Of a running `lethe up`."),
]


def rewrap(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only, change nothing.")] = False,
    data_dir: EmbeddedOption = None,
) -> None:
    """Wrap every data key anew under the first of LETHE_ENCRYPTION_KEYS; exit 1 while another one is still in use.

    Example: lethe rewrap --dry-run
    """
    from app.data_keys.rewrap import rewrap as rewrap_all
    from app.kit.db import make_engine

    url, ring = database_and_keys(data_dir)
    current, left = ring.current, 0
    for report in rewrap_all(make_engine(url), ring, dry_run=dry_run):
        counts = " ".join(f"{key_id}={count}" for key_id, count in report.by_key.items()) or "none"
        done = "" if dry_run else f"; rewrapped {report.rewrapped}, unreadable {report.unreadable}"
        typer.echo(f"{report.column}: {counts}{done}")
        others = sum(count for key_id, count in report.by_key.items() if key_id != current)
        left += others - report.rewrapped
    if left:
        typer.echo(f"{left} are not under {current}: keep the other keys", err=True)
        raise typer.Exit(1)
    typer.echo(f"everything is under {current}; the other keys are no longer needed")


def scrub(data_dir: EmbeddedOption = None) -> None:
    """Remove what destroyed data keys left in the database: old row versions and write-ahead log.

    Example: lethe scrub
    """
    from app.data_keys.scrub import NotScrubbed
    from app.data_keys.scrub import scrub as scrub_all
    from app.kit.db import make_engine

    try:
        done = scrub_all(make_engine(database_and_keys(data_dir)[0]))
    except NotScrubbed as reason:
        typer.echo(f"nothing was removed: {reason}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"old row versions removed, write-ahead log {done.log}; {done.tenants} tenants had keys destroyed")


def database_and_keys(data_dir: Path | None) -> tuple[str, KeyRing]:
    """Where the database is and the encryption keys, from the environment or from an embedded service's folder."""
    if data_dir is None:
        settings = configured()
        return settings.database_url.get_secret_value(), settings.key_ring
    from app.embedded.postgres import EmbeddedPostgres

    keys = DataDirectory(data_dir).secrets().encryption_keys
    return EmbeddedPostgres(data_dir / "postgres").url(), KeyRing.parse(keys)
