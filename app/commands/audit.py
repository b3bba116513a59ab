"""`lethe audit list`, `verify` and `export`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from app.audit.actions import ACTIONS
from app.audit.chain import HEAD, Entry, Finding, Head, Verifier
from app.client import ClientError
from app.commands.connection import DEFAULT_DATA_DIR, DataDirOption, KeyOption, UrlOption, connect

KNOWN = re.compile(r"([0-9]{1,15}):([0-9a-f]{64})")
MAX_SHOWN = 100
commands = typer.Typer(
    help="Read and verify the audit chain: what was done to which data, when.", no_args_is_help=True
)


@commands.command("list")
def list_entries(
    action: Annotated[str | None, typer.Option(help="One action only, such as dataset.purged.")] = None,
    subject: Annotated[str | None, typer.Option(help="Entries about one thing only, by its id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most entries.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print entries as JSON Lines.")] = False,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Show the newest entries, newest first.

    Example: lethe audit list --subject job_01J8Z3
    """
    if action is not None and action not in ACTIONS:
        raise typer.BadParameter(f"no such action; there are {', '.join(ACTIONS)}", param_hint="--action")
    given = {"action": action, "subject": subject}
    with connect(url, api_key, data_dir) as client:
        entries = client.audit_entries(limit, **{name: value for name, value in given.items() if value is not None})
    for entry in entries:
        typer.echo(json.dumps(entry) if as_json else line(entry))


def line(entry: dict[str, Any]) -> str:
    """An entry for a person's eyes."""
    data = " ".join(f"{name}={value}" for name, value in entry["data"].items())
    sequence, at, action, actor = (entry[name] for name in ("sequence", "at", "action", "actor"))
    return f"{sequence:>6}  {at}  {action}  {entry['subject']['id']}  by {actor}  {data}".rstrip()


@commands.command()
def verify(
    file: Annotated[
        Path | None,
        typer.Option("--file", exists=True, dir_okay=False, help="Check an exported chain, without the service."),
    ] = None,
    known: Annotated[
        str | None,
        typer.Option(metavar="SEQUENCE:HASH", help="An entry's hash that was noted before, as in an attestation."),
    ] = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Check that no entry was edited, removed, put in or moved; exit 1 and name what is wrong otherwise.

    Example: lethe audit verify --file audit.jsonl
    """
    if known is not None and not KNOWN.fullmatch(known):
        raise typer.BadParameter("write it as SEQUENCE:HASH, the hash with 64 digits", param_hint="--known")
    if file is not None:
        report(*verify_file(file, known))
        return
    with connect(url, api_key, data_dir) as client:
        answer = client.verify_audit(known)
    head = Head(**answer["head"]) if answer["head"] else None
    report(answer["entries"], head, [Finding(**finding) for finding in answer["findings"]], answer["more_findings"])


@commands.command()
def export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="The file to write.")],
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Save the whole chain as JSON Lines, oldest entry first and the head last.

    Example: lethe audit export audit.jsonl
    """
    with connect(url, api_key, data_dir) as client:
        client.export_audit(file)
    typer.echo(str(file))


def verify_file(path: Path, known: str | None) -> tuple[int, Head | None, list[Finding], bool]:
    """Check an exported chain: entries, head, the first findings, and whether there are more."""
    verifier = Verifier(parse_known(known))
    findings: list[Finding] = []
    head: Head | None = None
    for value in read_lines(path):
        if head is None and value.get("object") == HEAD:
            head = read_head(value)
        else:
            findings += list(verifier.check(value))[: MAX_SHOWN + 1 - len(findings)]
    findings += verifier.finish(head)
    return verifier.entries, head, findings[:MAX_SHOWN], len(findings) > MAX_SHOWN


def read_lines(path: Path) -> Iterator[Entry]:
    """The objects of a JSON Lines file, one at a time. Raises ClientError for a line that is none."""
    with path.open("rb") as lines:
        for number, text in enumerate(lines, start=1):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise ClientError(f"line {number} of {path} is no JSON object")
            yield value


def read_head(value: Entry) -> Head:
    """The head in an exported chain. Raises ClientError when it is none."""
    sequence, digest = value.get("sequence"), value.get("hash")
    if type(sequence) is not int or not isinstance(digest, str):
        raise ClientError("the exported head is damaged")
    return Head(sequence, digest)


def parse_known(text: str | None) -> dict[int, str]:
    """`SEQUENCE:HASH` as the verifier takes it."""
    match = KNOWN.fullmatch(text or "")
    return {int(match[1]): match[2]} if match else {}


def report(entries: int, head: Head | None, findings: list[Finding], more: bool) -> None:
    """Say that the chain holds, or name what is wrong with it and exit 1."""
    if not findings:
        place = f", head {head.sequence}:{head.hash}" if head else ""
        typer.echo(f"the chain holds: {entries} entries{place}")
        return
    for finding in findings:
        typer.echo(f"{finding.sequence:>6}  {finding.kind}: {finding.detail}", err=True)
    typer.echo(f"the chain is broken: {'more than ' if more else ''}{len(findings)} findings", err=True)
    raise typer.Exit(1)
