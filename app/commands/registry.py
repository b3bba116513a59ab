"""`lethe register-base` and `register-adapter`."""

from pathlib import Path
from typing import Annotated

import typer

from app.client import ClientError
from app.commands.connection import DEFAULT_DATA_DIR, DataDirOption, KeyOption, UrlOption, connect

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def register_base(
    name: Annotated[str, typer.Argument(help="Name to register it under.")],
    source: Annotated[
        str, typer.Argument(help="Folder below one of the service's model roots (`lethe up --models`).")
    ],
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Register a base model.

    Example: lethe register-base qwen-small /models/qwen-small
    """
    folder = Path(source)
    with connect(url, api_key, data_dir) as client:
        answer = client.register_base_model(name, str(folder.resolve()) if folder.is_dir() else source)
    typer.echo(answer["name"])


def register_adapter(
    name: Annotated[str, typer.Argument(help="Name of the new adapter.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="PEFT folder.")],
    base: Annotated[str, typer.Option(help="The registered base model it was trained on.")],
    training_set: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="What it was trained on, JSON Lines.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="How it was trained, a JSON object.")
    ] = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Upload a PEFT adapter as version 1, with what it was trained on if you like.

    Example: lethe register-adapter support-bot ./support-bot --base qwen-small
    """
    if (training_set is None) != (recipe is None):
        raise typer.BadParameter("give --training-set and --recipe together, or neither")
    missing = [file for file in ADAPTER_FILES if not (folder / file).is_file()]
    if missing:
        raise ClientError(f"{folder} lacks {' and '.join(missing)}")
    with connect(url, api_key, data_dir) as client:
        fields = {}
        if training_set is not None and recipe is not None:
            fields = {"training_set": client.upload_dataset(training_set, "training"), "recipe": recipe.read_text()}
        answer = client.register_adapter(name, base, folder, **fields)
    typer.echo(answer["name"])
