"""Real servers for the tests: one Postgres and one Redis per test session."""

import base64
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from app.embedded.postgres import EmbeddedPostgres
from app.embedded.redis import EmbeddedRedis
from app.kit.signing import PrivateKey
from app.settings import Settings, get_settings
from tests.databases import Databases
from worker.database import engine

SIGNING_KEY = PrivateKey.generate()


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """A folder that a helper user may enter: pytest's own temporary folders are closed to it."""
    path = Path(tempfile.mkdtemp(prefix="lethe-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def postgres_url(server_directory: Path) -> Iterator[str]:
    """SQLAlchemy URL of the server's maintenance database."""
    server = EmbeddedPostgres(server_directory / "postgres", durable=False)
    server.start()
    yield server.url("postgres")
    server.stop()


@pytest.fixture(scope="session")
def databases(postgres_url: str) -> Databases:
    """The server's databases for tests."""
    return Databases(postgres_url)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """SQLAlchemy URL of a migrated database without rows."""
    url = databases.lend()
    yield url
    databases.take_back(url)


@pytest.fixture(scope="session")
def redis_url(server_directory: Path) -> Iterator[str]:
    """URL of the session's Redis; use `redis_clean_url` unless leftovers do not matter."""
    server = EmbeddedRedis(server_directory / "redis")
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def redis_clean_url(redis_url: str) -> str:
    """URL of the session's Redis, emptied before the test."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
    return redis_url


@pytest.fixture
def service(
    database_url: str, redis_clean_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    """This process's settings: those of a worker on a fresh database and an empty storage."""
    secret = base64.b64encode(b"s" * 32).decode()
    values = {
        "LETHE_DATABASE_URL": database_url,
        "LETHE_REDIS_URL": redis_clean_url,
        "LETHE_STORAGE_DIR": str(tmp_path / "storage"),
        "LETHE_ENCRYPTION_KEYS": f"k1:{secret}",
        "LETHE_KEY_PEPPER": secret,
        "LETHE_SIGNING_KEY": SIGNING_KEY.export(),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    forget_settings()
    yield get_settings()
    forget_settings()


def forget_settings() -> None:
    """Have settings and engine made anew from the environment."""
    get_settings.cache_clear()
    engine.cache_clear()
