"""The settings of an embedded service, as environment variables of its processes."""

from __future__ import annotations

from pathlib import Path

from app.embedded.data_directory import DataDirectory
from app.embedded.postgres import EmbeddedPostgres
from app.embedded.redis import running_url


def service_environment(data: DataDirectory, database_url: str, redis_url: str) -> dict[str, str]:
    """Where everything is, and the keys."""
    keys = data.secrets()
    return {
        "LETHE_DATABASE_URL": database_url,
        "LETHE_REDIS_URL": redis_url,
        "LETHE_STORAGE_DIR": str(data.path / "storage"),
        "LETHE_ENCRYPTION_KEYS": keys.encryption_keys,
        "LETHE_KEY_PEPPER": keys.key_pepper,
        "LETHE_SIGNING_KEY": keys.signing_key,
        "LETHE_OPENDSR_CREDENTIALS": keys.opendsr_credentials,
    }


def environment_of(data_dir: Path) -> dict[str, str]:
    """Of the `lethe up` that runs on a data directory. Raises EmbeddedError when none was ever started there."""
    data = DataDirectory(data_dir)
    return service_environment(data, EmbeddedPostgres(data.path / "postgres").url(), running_url(data.path / "redis"))
