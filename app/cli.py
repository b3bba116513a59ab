"""The command line `lethe`. Exit status: 0 done, 1 failed, 2 wrong usage."""

import sys

import typer

from app.client import ClientError
from app.commands import (
    adapters,
    audit,
    doctor,
    encryption,
    events,
    jobs,
    keys,
    registry,
    report,
    service,
    steering,
    tenants,
    verify,
    webhooks,
)
from app.embedded.process import EmbeddedError

# Tracebacks with local variables would print keys and records.
app = typer.Typer(
    name="lethe",
    help="Remove chosen records from LoRA adapters, and measure what is left.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(service.up)
app.command()(service.demo)
app.command()(jobs.submit)
app.command()(jobs.status)
app.command("list")(steering.list_jobs)
app.command()(events.events)
app.command()(steering.cancel)
app.command()(steering.retry)
app.command()(steering.approve)
app.command()(steering.deny)
app.command()(steering.extend)
app.command()(jobs.download)
app.command()(report.report)
app.command("register-base")(registry.register_base)
app.command("register-adapter")(registry.register_adapter)
app.add_typer(adapters.commands, name="adapters")
app.add_typer(audit.commands, name="audit")
app.add_typer(keys.commands, name="keys")
app.add_typer(tenants.commands, name="tenants")
app.add_typer(webhooks.commands, name="webhooks")
app.command()(verify.verify)
app.command()(service.migrate)
app.command()(service.bootstrap)
app.command()(doctor.doctor)
app.command()(encryption.rewrap)
app.command()(encryption.scrub)
app.command("generate-signing-key")(verify.generate_signing_key)
app.command("generate-opendsr-credentials")(verify.generate_opendsr_credentials)


def main() -> None:
    """Runs a command; an expected failure becomes one message and exit status 1."""
    try:
        app()
    except (ClientError, EmbeddedError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
