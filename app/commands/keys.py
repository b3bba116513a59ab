"""`lethe keys create`, `list`, `revoke` and `rotate`."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from app.auth.scopes import SCOPES
from app.commands.connection import DEFAULT_DATA_DIR, DataDirOption, KeyOption, UrlOption, connect

commands = typer.Typer(help="Make, list, revoke and rotate the tenant's API keys.", no_args_is_help=True)
KeyIdArgument = Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of the key, as `list` shows it.")]


@commands.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[list[str], typer.Option(help="What the key may do; may be repeated.")],
    expires_in_days: Annotated[int | None, typer.Option(min=1, help="When it expires; never if left out.")] = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Make a key and print it this once; its id goes to standard error.

    Example: lethe keys create portal --scope jobs:write --scope jobs:read
    """
    unknown = [given for given in scope if given not in SCOPES]
    if unknown:
        raise typer.BadParameter(f"no such scope; there are {', '.join(SCOPES)}", param_hint="--scope")
    body: dict[str, Any] = {"name": name, "scopes": scope}
    if expires_in_days is not None:
        body["expires_at"] = (datetime.now(UTC) + timedelta(days=expires_in_days)).isoformat()
    with connect(url, api_key, data_dir) as client:
        show_secret(client.create_key(body))


@commands.command("list")
def list_keys(
    limit: Annotated[int, typer.Option(min=1, help="Most keys.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print keys as JSON Lines.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show the tenant's keys, newest first.

    Example: lethe keys list
    """
    with connect(url, api_key, data_dir) as client:
        keys = client.keys(limit)
    for key in keys:
        typer.echo(json.dumps(key) if as_json else line(key))


@commands.command()
def revoke(
    key_id: KeyIdArgument,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """End a key at once.

    Example: lethe keys revoke key_01J8Z3
    """
    with connect(url, api_key, data_dir) as client:
        typer.echo(line(client.revoke_key(key_id)))


@commands.command()
def rotate(
    key_id: KeyIdArgument,
    grace_hours: Annotated[
        float, typer.Option(min=0, max=720, help="How long the old secret stays good; 0 ends it now.")
    ] = 24.0,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Give a key a new secret and print it this once.

    Example: lethe keys rotate key_01J8Z3
    """
    with connect(url, api_key, data_dir) as client:
        show_secret(client.rotate_key(key_id, round(grace_hours * 3600)))


def show_secret(key: dict[str, Any]) -> None:
    """The secret alone on standard output, so that it can be piped to where it belongs."""
    typer.echo(key["key"])
    typer.echo(f"id: {key['id']}; the key is not shown again", err=True)


def line(key: dict[str, Any]) -> str:
    """A key for a person's eyes."""
    used = key["last_used_at"] or "never"
    ends = f"revoked {key['revoked_at']}" if key["revoked_at"] else f"expires {key['expires_at'] or 'never'}"
    return f"{key['id']}  {key['name']}  {','.join(key['scopes'])}  used {used}  {ends}"
