"""Looks for texts in everything that a running service keeps: files, logs, database, Redis, temporary folders."""

from __future__ import annotations

import base64
import gzip
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from redis import Redis
from sqlalchemy import Engine, text

from app.embedded.postgres import EmbeddedPostgres
from app.kit.db import make_engine

_MOST = 64 * 2**20


def engine_of(data_dir: Path) -> Engine:
    """The embedded service's database, as its superuser."""
    return make_engine(EmbeddedPostgres(data_dir / "postgres").url())


def spellings(marker: str) -> Iterator[bytes]:
    """How a text may stand in a file: as it is, as UTF-16, as hexadecimal, as base64 wherever it begins."""
    plain = marker.encode()
    yield from (plain, marker.encode("utf-16-le"), plain.hex().encode(), plain.hex().upper().encode())
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + plain)
        # The ends depend on what stands beside the text.
        yield encoded[4 if before else 0 : -4]


def find_in_files(folders: list[Path], forms: list[bytes], since: float = 0.0) -> set[str]:
    """Where one of the forms stands, with what is before it, in files that changed `since` then; in archives too."""
    found = set()
    for path in _files(folders, since):
        for content in _contents(path):
            places = [(content.find(form), form) for form in forms if form in content]
            found |= {f"{path}: {content[max(0, place - 40) : place]!r}" for place, _ in places}
    return found


def find_in_database(engine: Engine, marker: str) -> set[str]:
    """Tables with the marker in any column. Asked as text, since a compressed value shows nothing in its file."""
    found = set()
    tables = text("""SELECT quote_ident(schemaname) || '.' || quote_ident(relname) FROM pg_stat_user_tables
        UNION ALL SELECT 'pg_catalog.pg_statistic' UNION ALL SELECT 'pg_catalog.pg_largeobject'""")
    forms = [f"%{marker}%", f"%{marker.encode().hex()}%"]
    with engine.connect() as connection:
        for table in connection.scalars(tables).all():
            holding = f"SELECT count(*) FROM {table} AS t WHERE t::text LIKE ANY(:forms)"  # noqa: S608 - a name
            if connection.scalar(text(holding), {"forms": forms}):
                found.add(table)
    return found


def write_everything_out(engine: Engine, data_dir: Path) -> None:
    """Have Postgres and Redis write to files what they hold in memory."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CHECKPOINT"))
    lines = (data_dir / "redis" / "redis.conf").read_text().splitlines()
    settings = dict(line.split(" ", 1) for line in lines if " " in line)
    with Redis(port=int(settings["port"]), password=settings["requirepass"]) as redis:
        redis.save()


def temporary_folders() -> list[Path]:
    """Where processes put what they do not mean to keep, but for the folders of services and tests."""
    shared = [Path(tempfile.gettempdir()), Path("/dev/shm")]  # noqa: S108 - read, not written
    return [path for folder in shared for path in folder.iterdir() if not path.name.startswith(("lethe-", "pytest-"))]


def _files(folders: list[Path], since: float) -> Iterator[Path]:
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            try:
                if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= since:
                    yield path
            except OSError:
                continue


def _contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and those that it holds compressed. Other processes' files may go meanwhile."""
    try:
        content = path.read_bytes() if path.stat().st_size <= _MOST else b""
    except OSError:
        return
    yield content
    if content.startswith(b"\x1f\x8b"):
        try:
            yield gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return
