"""`lethe up`, `migrate`, `bootstrap` and `demo`."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from app.commands.connection import DEFAULT_DATA_DIR
from app.settings import Settings, get_settings

# Commands import what only they need, so that client commands start at once and without the server's wheels.


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    data_dir: Annotated[Path, typer.Option(file_okay=False, help="Where everything is kept.")] = DEFAULT_DATA_DIR,
    models: Annotated[
        list[Path] | None,
        typer.Option(exists=True, file_okay=False, help="Folder with base models; may be repeated."),
    ] = None,
) -> None:
    """Run the whole service on this machine: Postgres, Redis, the API and two workers.

    Example: lethe up --models ./models
    """
    from app.embedded import supervisor

    options = supervisor.UpOptions(host, port, data_dir, tuple(models or ()))
    raise typer.Exit(supervisor.up(options))


def migrate() -> None:
    """Bring the database named by LETHE_DATABASE_URL to the newest schema. Safe to repeat.

    Example: docker compose run --rm migrate
    """
    from app.database import upgrade_schema

    upgrade_schema(configured().database_url.get_secret_value())
    typer.echo("the database is up to date")


def bootstrap() -> None:
    """Create the tenant "default" and its first API key, and print the key this once.

    Example: docker compose run --rm api lethe bootstrap
    """
    from app.auth.bootstrap import ensure_first_key

    key = ensure_first_key(configured())
    if key is None:
        typer.echo("there is a key already, nothing was changed", err=True)
    else:
        typer.echo(key)


def configured() -> Settings:
    """The settings from the environment; a usage error that names what is wrong, never a value."""
    try:
        return get_settings()
    except ValidationError as error:
        lines = [f"LETHE_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
        raise typer.BadParameter("; ".join(lines), param_hint="environment") from None


def demo(
    data_dir: Annotated[Path, typer.Option(file_okay=False, help="Where everything is kept.")] = Path(".lethe/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running until Ctrl-C.")] = False,
) -> None:
    """Unlearn from a small adapter with the real service, then check its numbers independently.

    Example: lethe demo
    """
    from app.demo.run import run_demo

    raise typer.Exit(run_demo(data_dir, keep=keep))
