"""`lethe verify` and `generate-signing-key`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def verify(
    archive: Annotated[
        Path, typer.Argument(metavar="ADAPTER.tar.gz", exists=True, dir_okay=False, help="The downloaded archive.")
    ],
    keys: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The trusted keys: the JSON that GET /keys answers.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole statement as JSON.")] = False,
) -> None:
    """Check offline that an adapter is the one that was attested; exit 1 and say what does not hold otherwise.

    Example: lethe verify support-bot-v2.tar.gz --keys keys.json
    """
    from app.attestations.verify import VerificationError, read_keys, verify_archive

    try:
        trusted = read_keys(keys)
        with archive.open("rb") as opened:
            proof = verify_archive(opened, trusted)
    except VerificationError as error:
        if as_json:
            print_json({"verified": False, "reason": str(error)})
        typer.echo(f"not verified: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        print_json({"verified": True, "key_id": proof.key_id, "statement": json.loads(proof.payload)})
    else:
        typer.echo(proof.sentence())


def print_json(value: dict[str, Any]) -> None:
    """Indented, for people and programs; everything beyond ASCII is escaped."""
    typer.echo(json.dumps(value, indent=2))


def generate_signing_key() -> None:
    """Print a new key for LETHE_SIGNING_KEY on standard output, and its id on standard error.

    Example: lethe generate-signing-key
    """
    from app.kit.signing import PrivateKey

    key = PrivateKey.generate()
    typer.echo(f"key id {key.public.key_id}", err=True)
    typer.echo(key.export())


def generate_opendsr_credentials(
    domain: Annotated[str, typer.Argument(help="The domain that platforms reach the service under.")],
) -> None:
    """Print a new key with a self-signed certificate for LETHE_OPENDSR_CREDENTIALS, for trying OpenDSR out.

    Example: lethe generate-opendsr-credentials opendsr.example.org
    """
    from app.kit.certificates import self_signed

    typer.echo(self_signed(domain))
