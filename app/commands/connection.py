"""Which service a client command talks to, and with which key."""

from pathlib import Path
from typing import Annotated

import typer

from app.client import ClientError, LetheClient
from app.embedded.data_directory import DataDirectory

UrlOption = Annotated[str | None, typer.Option("--url", envvar="LETHE_URL", help="Address of the service.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="LETHE_API_KEY", help="API key; prefer the variable to the option."),
]
DataDirOption = Annotated[
    Path, typer.Option("--data-dir", help="Folder of an embedded service, read when url or key is missing.")
]
DEFAULT_DATA_DIR = Path(".lethe")


def connect(url: str | None, api_key: str | None, data_dir: Path) -> LetheClient:
    """A client from the options, the environment or the embedded service's connection file, in this order."""
    remembered = DataDirectory(data_dir).connection()
    url, api_key = url or remembered.url, api_key or remembered.api_key
    if url is None or api_key is None:
        missing = "address" if url is None else "API key"
        raise ClientError(
            f"the service's {missing} is not known: give --url and --api-key, "
            f"set LETHE_URL and LETHE_API_KEY, or start `lethe up` ({data_dir / 'connection.json'})"
        )
    return LetheClient(url, api_key)
