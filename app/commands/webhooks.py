"""`lethe webhooks`: receivers, their secrets, and what they were sent."""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from app.commands.connection import DEFAULT_DATA_DIR, DataDirOption, KeyOption, UrlOption, connect
from app.commands.table import table

commands = typer.Typer(help="Receivers of webhooks, their secrets, and what they were sent.", no_args_is_help=True)
EndpointArgument = Annotated[str, typer.Argument(metavar="ENDPOINT", help="Id of the receiver, as `list` shows it.")]
EventOption = Annotated[
    list[str] | None, typer.Option(help="What to tell, such as unlearn_job.succeeded; may be repeated.")
]
SignatureOption = Annotated[
    list[str] | None, typer.Option(help="v1 (HMAC, with the secret) or v1a (Ed25519, public key); may be repeated.")
]
LimitOption = Annotated[int, typer.Option(min=1, help="Most items, newest first.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print what the service answers, as JSON Lines.")]


@commands.command("list")
def list_endpoints(
    limit: LimitOption = 100,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show the receivers, newest first. Secrets are never shown again.

    Example: lethe webhooks list
    """
    with connect(url, api_key, data_dir) as client:
        show(client.items("/webhook-endpoints", limit), ENDPOINT, endpoint, as_json)


@commands.command()
def create(
    to: Annotated[str, typer.Argument(metavar="URL", help="Where to send: a public https URL.")],
    event: EventOption = None,
    signature: SignatureOption = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Add a receiver and print its secret this once; its id and public key go to standard error.

    Without --event it is told of everything.

    Example: lethe webhooks create https://dsr.example.com/lethe --event unlearn_job.succeeded
    """
    body = given(url=to, events=event, signatures=signature)
    with connect(url, api_key, data_dir) as client:
        show_secret(client.call("POST", "/webhook-endpoints", body))


@commands.command()
def update(
    endpoint_id: EndpointArgument,
    to: Annotated[str | None, typer.Option(metavar="URL", help="Where to send from now on.")] = None,
    event: EventOption = None,
    all_events: Annotated[bool, typer.Option("--all-events", help="Tell everything.")] = False,
    signature: SignatureOption = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Switch it on or off.")] = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Change what is given of a receiver, or switch it off and on.

    Example: lethe webhooks update we_01J8Z3 --enable
    """
    if all_events and event:
        raise typer.BadParameter("goes without --event", param_hint="--all-events")
    body = given(url=to, events=[] if all_events else event or None, signatures=signature, enabled=enabled)
    if not body:
        raise typer.BadParameter("give what is to change", param_hint="--to, --event, --signature, --enable")
    with connect(url, api_key, data_dir) as client:
        show([client.call("PATCH", f"/webhook-endpoints/{endpoint_id}", body)], ENDPOINT, endpoint)


@commands.command()
def delete(
    endpoint_id: EndpointArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Remove a receiver and its delivery log.

    Example: lethe webhooks delete we_01J8Z3
    """
    if not yes:
        typer.confirm(f"Remove {endpoint_id} and its delivery log for good?", abort=True, err=True)
    with connect(url, api_key, data_dir) as client:
        client.call("DELETE", f"/webhook-endpoints/{endpoint_id}")
    typer.echo(f"{endpoint_id} is removed")


@commands.command()
def rotate(
    endpoint_id: EndpointArgument,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Give a receiver a new secret and print it this once; the one before signs along for 24 hours.

    Example: lethe webhooks rotate we_01J8Z3
    """
    with connect(url, api_key, data_dir) as client:
        show_secret(client.call("POST", f"/webhook-endpoints/{endpoint_id}/rotate-secret"))


@commands.command("test")
def send_test(
    endpoint_id: EndpointArgument,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Send a receiver the event webhook_endpoint.test; `deliveries` tells what came of it.

    Example: lethe webhooks test we_01J8Z3
    """
    with connect(url, api_key, data_dir) as client:
        show([client.call("POST", f"/webhook-endpoints/{endpoint_id}/test")], DELIVERY, delivery)


@commands.command()
def deliveries(
    endpoint_id: Annotated[
        str | None,
        typer.Argument(metavar="[ENDPOINT]", help="One receiver; all, and callbacks of jobs, if left out."),
    ] = None,
    status: Annotated[str | None, typer.Option(help="Only pending, succeeded or failed ones.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only those about this job; not with ENDPOINT.")] = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show what was sent, and what came of it, newest first.

    Example: lethe webhooks deliveries --status failed
    """
    if endpoint_id and subject:
        raise typer.BadParameter("goes without ENDPOINT", param_hint="--subject")
    path = f"/webhook-endpoints/{endpoint_id}/deliveries" if endpoint_id else "/webhook-deliveries"
    with connect(url, api_key, data_dir) as client:
        show(client.items(path, limit, given(status=status, subject=subject)), DELIVERY, delivery, as_json)


@commands.command()
def replay(
    delivery_id: Annotated[str, typer.Argument(metavar="DELIVERY", help="Id of the delivery, its webhook-id.")],
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Send an ended delivery again, under the same webhook-id.

    Example: lethe webhooks replay msg_0f8c0d2c
    """
    with connect(url, api_key, data_dir) as client:
        show([client.call("POST", f"/webhook-deliveries/{delivery_id}/replay")], DELIVERY, delivery)


@commands.command("callback-key")
def callback_key(
    renew: Annotated[bool, typer.Option("--rotate", help="Make a new one and print its secret this once.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Print the public key that verifies requests to the callback_url of jobs.

    Example: lethe webhooks callback-key
    """
    path = "/webhook-endpoints/callback-key"
    with connect(url, api_key, data_dir) as client:
        if renew:
            show_secret(client.call("POST", f"{path}/rotate-secret"))
        else:
            typer.echo(client.call("GET", path)["public_key"])


def given(**values: object) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in values.items() if value is not None}


def show_secret(made: dict[str, Any]) -> None:
    """The secret alone on standard output, so that it can be piped to where it belongs."""
    typer.echo(made["secret"])
    whose = f"id: {made['id']}; " if "id" in made else ""
    typer.echo(f"{whose}public key: {made['public_key']}; the secret is not shown again", err=True)


ENDPOINT = ("ENDPOINT", "STATE", "URL", "SIGNATURES", "EVENTS")
DELIVERY = ("DELIVERY", "STATUS", "TYPE", "SUBJECT", "ATTEMPTS", "ANSWER", "CREATED")


def endpoint(each: dict[str, Any]) -> tuple[str, ...]:
    """A receiver's cells."""
    state = "enabled" if each["enabled"] else f"disabled ({each['disabled_reason']})"
    return each["id"], state, each["url"], ",".join(each["signatures"]), ",".join(each["events"]) or "all"


def delivery(each: dict[str, Any]) -> tuple[str, ...]:
    """A delivery's cells."""
    answer = str(each["response_status"] or each["error"] or "-")
    return (
        each["id"], each["status"], each["type"], each["subject"], str(each["attempts"]), answer, each["created_at"],
    )  # fmt: skip


def show(
    items: Sequence[dict[str, Any]],
    titles: tuple[str, ...],
    cells: Callable[[dict[str, Any]], tuple[str, ...]],
    as_json: bool = False,
) -> None:
    """Items as a table, or as JSON Lines."""
    if as_json:
        for each in items:
            typer.echo(json.dumps(each))
    elif items:
        typer.echo(table(titles, [cells(each) for each in items]))
