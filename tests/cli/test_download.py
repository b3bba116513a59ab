"""`lethe download` over a real socket that breaks: it goes on, and only what is whole and right appears."""

import fcntl
import hashlib
import json
from pathlib import Path

import pytest
from rich.console import Console

from app.commands import transfer
from tests.cli.conftest import Answer, Run, Server

ARCHIVE = bytes(range(256)) * 40
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()
TAG = {"ETag": f'"{SHA256}"'}
PATH = "GET /adapters/bot/versions/head/download"


def rest(start: int, cut: int | None = None) -> Answer:
    """A 206 with the bytes from `start` on."""
    span = {"Content-Range": f"bytes {start}-{len(ARCHIVE) - 1}/{len(ARCHIVE)}"}
    return Answer(206, ARCHIVE[start:], headers=TAG | span, cut=cut)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the archive is to appear."""
    return tmp_path / "bot.tar.gz"


@pytest.fixture
def part(output: Path) -> Path:
    """What an earlier try has left: the first 1,000 bytes."""
    path = output.with_name(f"bot.tar.gz.{SHA256}.part")
    path.write_bytes(ARCHIVE[:1000])
    return path


def names(output: Path) -> list[str]:
    """What lies in the folder."""
    return sorted(path.name for path in output.parent.iterdir())


def test_a_connection_that_breaks_is_opened_again_for_the_rest(
    lethe: Run, server: Server, client_options: list[str], output: Path
) -> None:
    server.on(PATH, Answer(body=ARCHIVE, headers=TAG, cut=4000), rest(4000, cut=100), rest(4100))
    outcome = lethe("download", "bot", "-o", str(output), *client_options)
    assert outcome.status == 0, outcome.stderr
    assert output.read_bytes() == ARCHIVE
    assert [request.headers.get("range") for request in server.requests] == [None, "bytes=4000-", "bytes=4100-"]
    assert server.requests[1].headers["if-range"] == f'"{SHA256}"'
    assert f"going on after 4100 of {len(ARCHIVE)} bytes" in outcome.stderr
    assert names(output) == ["bot.tar.gz"]
    assert output.stat().st_mode & 0o777 == 0o644


def test_a_try_that_brings_nothing_ends_and_keeps_what_is_there(
    lethe: Run, server: Server, client_options: list[str], output: Path, part: Path
) -> None:
    server.on(PATH, rest(1000, cut=0))
    outcome = lethe("download", "bot", "-o", str(output), *client_options)
    assert outcome.status == 1
    assert "1000 bytes are kept; the same command goes on from there" in outcome.stderr
    assert (names(output), part.read_bytes()) == ([part.name], ARCHIVE[:1000])


def test_the_next_command_goes_on_where_the_last_ended(
    lethe: Run, server: Server, client_options: list[str], output: Path, part: Path
) -> None:
    server.on(PATH, rest(1000))
    assert lethe("download", "bot", "-o", str(output), *client_options).status == 0
    assert server.requests[0].headers["range"] == "bytes=1000-"
    assert (names(output), output.read_bytes()) == (["bot.tar.gz"], ARCHIVE)


def test_an_archive_that_changed_meanwhile_is_fetched_whole(
    lethe: Run, server: Server, client_options: list[str], output: Path
) -> None:
    stale = output.with_name(f"bot.tar.gz.{'0' * 64}.part")
    stale.write_bytes(b"of another archive")
    server.on(PATH, Answer(body=ARCHIVE, headers=TAG))
    assert lethe("download", "bot", "-o", str(output), *client_options).status == 0
    assert server.requests[0].headers["if-range"] == f'"{"0" * 64}"'
    assert (names(output), output.read_bytes()) == (["bot.tar.gz"], ARCHIVE)


def test_a_service_that_sends_the_whole_again_starts_anew(
    lethe: Run, server: Server, client_options: list[str], output: Path, part: Path
) -> None:
    server.on(PATH, Answer(body=ARCHIVE, headers=TAG))
    assert lethe("download", "bot", "-o", str(output), *client_options).status == 0
    assert (names(output), output.read_bytes()) == (["bot.tar.gz"], ARCHIVE)


def test_a_part_that_is_whole_is_checked_and_taken(
    lethe: Run, server: Server, client_options: list[str], output: Path, part: Path
) -> None:
    part.write_bytes(ARCHIVE)
    problem = json.dumps({"title": "Range Not Satisfiable", "status": 416}).encode()
    server.on(PATH, Answer(416, problem, "application/problem+json"))
    assert lethe("download", "bot", "-o", str(output), *client_options).status == 0
    assert (names(output), output.read_bytes()) == (["bot.tar.gz"], ARCHIVE)


@pytest.mark.parametrize("damage", [b"x" * 1000, ARCHIVE[:999] + b"x"])
def test_a_damaged_part_never_becomes_the_file(
    lethe: Run, server: Server, client_options: list[str], output: Path, part: Path, damage: bytes
) -> None:
    part.write_bytes(damage)
    output.write_bytes(b"old")
    server.on(PATH, rest(1000))
    outcome = lethe("download", "bot", "-o", str(output), *client_options)
    assert outcome.status == 1
    assert f"announced {SHA256}" in outcome.stderr
    assert (names(output), output.read_bytes()) == (["bot.tar.gz"], b"old")


def test_another_range_than_was_asked_for_is_refused(
    lethe: Run, server: Server, client_options: list[str], output: Path, part: Path
) -> None:
    server.on(PATH, rest(900))
    outcome = lethe("download", "bot", "-o", str(output), *client_options)
    assert outcome.status == 1
    assert "another range" in outcome.stderr
    assert part.read_bytes() == ARCHIVE[:1000]


def test_a_part_that_another_download_writes_is_left_alone(
    lethe: Run, server: Server, client_options: list[str], output: Path, part: Path
) -> None:
    server.on(PATH, rest(1000))
    with part.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = lethe("download", "bot", "-o", str(output), *client_options)
    assert outcome.status == 1
    assert "another download" in outcome.stderr
    assert part.read_bytes() == ARCHIVE[:1000]


def test_a_large_download_tells_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    show = transfer.PlainTransfer(Console(force_terminal=False))
    for done in range(0, transfer.LARGE + 1, transfer.LARGE // 20):
        show(done, transfer.LARGE, 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == [str(tenth * 10) for tenth in range(1, 11)]


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with transfer.shown(Console(force_terminal=True)) as show:
        show(50, 100, 20)
    assert "download (resumed)" in capsys.readouterr().out
