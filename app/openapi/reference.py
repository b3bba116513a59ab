"""Writes docs/api/openapi.json: ``make docs``, or ``python -m app.openapi.reference``. No server is needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import SecretStr

from app.main import create_app
from app.settings import Settings


def reference() -> str:
    """The document as it is committed: sorted, so that a change shows as what it is."""
    nothing = SecretStr("A" * 43 + "=")
    settings = Settings(
        database_url=SecretStr("postgresql+psycopg://nowhere"),
        redis_url=SecretStr("redis://nowhere"),
        storage_dir=Path("nowhere"),
        encryption_keys=SecretStr("none:" + nothing.get_secret_value()),
        key_pepper=nothing,
    )
    return json.dumps(create_app(settings).openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
