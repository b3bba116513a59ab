"""`lethe tenants create`, `list` and `add-key`: the operator's, on the database itself."""

from typing import Annotated

import typer

from app.client import ClientError
from app.commands.service import configured

commands = typer.Typer(
    help="Tenants, for the operator: works on the database named by LETHE_DATABASE_URL.", no_args_is_help=True
)
NameArgument = Annotated[str, typer.Argument(help="Name of the tenant.")]


@commands.command()
def create(name: NameArgument) -> None:
    """Create a tenant and print its first API key, which may do everything, this once.

    Example: docker compose run --rm api lethe tenants create acme
    """
    from app.auth.bootstrap import TenantError, create_tenant

    try:
        typer.echo(create_tenant(configured(), name))
    except TenantError as error:
        raise ClientError(str(error)) from None


@commands.command("list")
def list_tenants() -> None:
    """Show every tenant: its id and its name.

    Example: docker compose run --rm api lethe tenants list
    """
    from app.auth.bootstrap import tenants

    for tenant_id, name in tenants(configured()):
        typer.echo(f"{tenant_id}  {name}")


@commands.command("add-key")
def add_key(name: NameArgument) -> None:
    """Make another API key for a tenant that has lost its own, and print it this once.

    Example: docker compose run --rm api lethe tenants add-key acme
    """
    from app.auth.bootstrap import TenantError, add_admin_key

    try:
        typer.echo(add_admin_key(configured(), name))
    except TenantError as error:
        raise ClientError(str(error)) from None
