"""The embedded Postgres: clean and unclean stops, leftovers, long paths."""

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from app.embedded.postgres import EmbeddedPostgres, libpq_url
from app.embedded.process import EmbeddedError
from tests.embedded.test_process import gone, wait_for


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder outside pytest's own, which the helper user of a root session could not enter."""
    path = Path(tempfile.mkdtemp(prefix="lethe-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A running server."""
    postgres = EmbeddedPostgres(folder / "postgres")
    postgres.start()
    yield postgres
    postgres.stop()


def query(server: EmbeddedPostgres, statement: str) -> object:
    """First value of a statement's first row, None for a statement without rows."""
    with psycopg.connect(libpq_url(server.url()), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def servers_of(folder: Path) -> list[int]:
    """Ids of all Postgres processes with files in `folder`."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in argument for argument in process.info["cmdline"] or [])
    ]


def test_it_listens_on_a_private_socket_only(server: EmbeddedPostgres, folder: Path) -> None:
    assert server.url().startswith("postgresql+psycopg://postgres@/lethe?host=")
    assert query(server, "SHOW listen_addresses") == ""
    mode = stat.S_IMODE(server.socket_directory.stat().st_mode)
    assert not mode & 0o007


def test_stopping_leaves_clean_files_and_no_process(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "postgres")
    server.start()
    server.stop()
    assert server.child.exit_code == 0
    assert servers_of(folder) == []
    assert not (folder / "postgres" / "data" / "postmaster.pid").exists()


def test_it_keeps_committed_rows_over_kill_9(folder: Path) -> None:
    first = EmbeddedPostgres(folder / "postgres")
    first.start()
    query(first, "CREATE TABLE kept AS SELECT 42 AS answer")
    first.child.signal(signal.SIGKILL)
    assert first.child.wait(20)
    second = EmbeddedPostgres(folder / "postgres")
    second.start()
    assert query(second, "SELECT answer FROM kept") == 42
    second.stop()
    first.child.finish()


def test_an_orphaned_server_of_the_same_directory_is_ended_first(folder: Path) -> None:
    orphan = EmbeddedPostgres(folder / "postgres")
    orphan.start()
    query(orphan, "CREATE TABLE kept AS SELECT 42 AS answer")
    successor = EmbeddedPostgres(folder / "postgres")
    successor.start()
    wait_for(lambda: gone(orphan.child.pid))
    assert query(successor, "SELECT answer FROM kept") == 42
    successor.stop()
    orphan.child.finish()


def test_a_lock_file_whose_process_id_was_given_to_another_process_is_removed(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "postgres")
    server.start()
    server.stop()
    lock = folder / "postgres" / "data" / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n{lock.parent}\n1\n5432\n\n\n\nready\n")
    server.start()
    assert query(server, "SELECT 1") == 1
    server.stop()


def test_an_interrupted_initdb_is_repeated(folder: Path) -> None:
    half = folder / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(folder / "postgres", durable=False)
    server.start()
    assert query(server, "SELECT 1") == 1
    server.stop()


def test_a_path_too_long_for_a_socket_moves_the_socket_and_cleans_it_up(folder: Path) -> None:
    server = EmbeddedPostgres(folder / ("x" * 100) / "postgres", durable=False)
    server.start()
    assert query(server, "SELECT 1") == 1
    assert server.socket_directory.parent == Path(tempfile.gettempdir())
    server.stop()
    assert not server.socket_directory.exists()


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "postgres", durable=False)
    server.start()
    server.stop()
    configuration = folder / "postgres" / "data" / "postgresql.conf"
    configuration.write_text("no_such_setting = on\n")
    with pytest.raises(EmbeddedError, match="no_such_setting"):
        server.start()
    assert servers_of(folder) == []


def test_errors_are_logged_without_the_statement(folder: Path) -> None:
    lines: list[str] = []
    server = EmbeddedPostgres(folder / "postgres", sink=lines.append, durable=False)
    server.start()
    with pytest.raises(psycopg.errors.UndefinedTable):
        query(server, "SELECT 'a secret record' FROM nowhere")
    server.stop()
    assert any("nowhere" in line for line in lines)
    assert not any("secret" in line for line in lines)
