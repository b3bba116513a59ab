"""`lethe adapters list`, `show`, `versions`, `alias`, `lineage`, `link`, `drop-training-set` and `purge`."""

import json
from typing import Annotated, Any

import typer

from app.commands.connection import DEFAULT_DATA_DIR, DataDirOption, KeyOption, UrlOption, connect

commands = typer.Typer(help="Look at adapters, name, hand out and purge their versions.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(metavar="ADAPTER", help="Name of the adapter.")]
VersionArgument = Annotated[
    str, typer.Argument(metavar="ADAPTER[@VERSION]", help="Number, head or alias; else head.")
]
LimitOption = Annotated[int, typer.Option(min=1, help="Most items, newest first.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print what the service answers, as JSON Lines.")]


@commands.command("list")
def list_adapters(
    limit: LimitOption = 100,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show the adapters, newest first.

    Example: lethe adapters list
    """
    with connect(url, api_key, data_dir) as client:
        adapters = client.items("/adapters", limit)
    for each in adapters:
        words = f"{each['name']}  on {each['base_model']}  head {each['head']} of {each['versions']} versions"
        typer.echo(json.dumps(each) if as_json else words)


@commands.command()
def show(
    name: NameArgument,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show an adapter, what a server has to bring for it, and its aliases.

    Example: lethe adapters show support-bot
    """
    with connect(url, api_key, data_dir) as client:
        adapter = client.call("GET", f"/adapters/{name}")
        aliases = client.items(f"/adapters/{name}/aliases", 100)
    if as_json:
        typer.echo(json.dumps(adapter | {"aliases": aliases}))
        return
    needs = adapter["serving"]
    rows = {
        "adapter": adapter["name"],
        "base": " at ".join(filter(None, (needs["base_model"], needs["revision"]))),
        "head": f"version {adapter['head']}, {adapter['head_status']}, of {adapter['versions']}",
        "rank": f"{needs['rank']} (vLLM: --max-lora-rank {needs['max_lora_rank'] or 'none suffices'})",
        "modules": ", ".join(needs["target_modules"]),
        "retain": adapter["default_retain_set"] or "no default retain set",
        "training": _training(adapter),
        "aliases": ", ".join(alias_line(each) for each in aliases) or "none",
    }
    typer.echo("\n".join(f"{title:<9}{value}" for title, value in rows.items()))


@commands.command()
def versions(
    name: NameArgument,
    limit: LimitOption = 100,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show the versions of an adapter, newest first.

    Example: lethe adapters versions support-bot
    """
    with connect(url, api_key, data_dir) as client:
        found = client.items(f"/adapters/{name}/versions", limit)
    for each in found:
        words = f"{each['version']}  {each['status']}  {each['bytes']} bytes  sha256 {each['sha256']}"
        typer.echo(json.dumps(each) if as_json else words)


@commands.command()
def alias(
    name: NameArgument,
    alias_name: Annotated[str | None, typer.Argument(metavar="[ALIAS]", help="Name for a version.")] = None,
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", help="Number to point it at.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Point an alias at a version, show where it points, take it away; or list all of them.

    Example: lethe adapters alias support-bot production 3
    """
    if remove and (alias_name is None or version is not None):
        raise typer.BadParameter("takes an alias and no version", param_hint="--remove")
    path = f"/adapters/{name}/aliases"
    with connect(url, api_key, data_dir) as client:
        if alias_name is None:
            found = client.items(path, 100)
        elif remove:
            client.call("DELETE", f"{path}/{alias_name}")
            found = []
        elif version is not None:
            found = [client.call("PUT", f"{path}/{alias_name}", {"version": version})]
        else:
            found = [client.call("GET", f"{path}/{alias_name}")]
    for each in found:
        typer.echo(alias_line(each))


@commands.command()
def lineage(
    name: NameArgument,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show which job made which version from which, newest first.

    Example: lethe adapters lineage support-bot
    """
    cursor, more = "", True
    with connect(url, api_key, data_dir) as client:
        while more:
            page = client.call("GET", f"/adapters/{name}/lineage?limit=100{cursor}")
            cursor, more = f"&cursor={page['next_cursor']}", page["has_more"]
            if as_json:
                typer.echo(json.dumps(page))
                continue
            sources = {edge["result"]: edge["source"] for edge in page["edges"]}
            for node in page["nodes"]:
                typer.echo(lineage_line(node, sources.get(node["version"])))


@commands.command()
def link(
    target: VersionArgument,
    expires_in: Annotated[int, typer.Option(min=1, max=86_400, help="Seconds that it works.")] = 900,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Make a URL that downloads a version without an API key, for a while. Whoever knows it may download.

    Example: lethe adapters link support-bot@head --expires-in 600
    """
    name, _, version = target.partition("@")
    with connect(url, api_key, data_dir) as client:
        path = f"/adapters/{name}/versions/{version or 'head'}/links"
        made = client.call("POST", path, {"expires_in": expires_in})
    typer.echo(made["url"])
    typer.echo(f"version {made['version']}, sha256 {made['sha256']}, until {made['expires_at']}", err=True)


@commands.command("drop-training-set")
def drop_training_set(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Destroy what the service holds of an adapter's training set. The adapter stays as it is.

    Example: lethe adapters drop-training-set support-bot
    """
    if not yes:
        typer.confirm(f"Destroy the training set of {name} for good?", abort=True, err=True)
    with connect(url, api_key, data_dir) as client:
        client.call("DELETE", f"/adapters/{name}/training-set")
    typer.echo(f"{name} has no training set")


@commands.command()
def purge(
    name: NameArgument,
    version: Annotated[int, typer.Argument(help="Number of the version.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Delete weights and archive of a version now. The head is never purged.

    Example: lethe adapters purge support-bot 1
    """
    if not yes:
        typer.confirm(f"Delete the bytes of {name} version {version} for good?", abort=True, err=True)
    with connect(url, api_key, data_dir) as client:
        client.call("DELETE", f"/adapters/{name}/versions/{version}")
    typer.echo(f"{name} version {version} is purged")


def _training(adapter: dict[str, Any]) -> str:
    """The training set for a person's eyes."""
    unmatched = adapter["unmatched_records"]
    lacks = f" ({unmatched} unlearned records were not in it)" if unmatched else ""
    return f"{adapter['training_set']}{lacks}" if adapter["training_set"] else "not held"


def alias_line(each: dict[str, Any]) -> str:
    """An alias for a person's eyes."""
    ready = "" if each["status"] == "ready" else f" ({each['status']}: move it)"
    return f"{each['alias']} -> {each['version']}{ready}"


def lineage_line(node: dict[str, Any], source: int | None) -> str:
    """A version with what made it, for a person's eyes."""
    made = f"from {source} by" if source is not None else "uploaded"
    jobs = [
        " ".join(filter(None, (job["id"], job["method"], job["verdict"], job["subject_request_id"])))
        for job in node["jobs"]
    ]
    return "  ".join([str(node["version"]), node["status"], node["created_at"], made, "; ".join(jobs)]).rstrip()
