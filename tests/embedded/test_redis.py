"""The embedded Redis: its password, its restart, its port."""

import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from app.embedded import redis as embedded
from app.embedded.redis import EmbeddedRedis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A running server."""
    redis = EmbeddedRedis(tmp_path / "redis")
    redis.start()
    yield redis
    redis.stop()


def test_it_answers_only_with_the_password(server: EmbeddedRedis) -> None:
    with Redis.from_url(server.url) as client:
        assert client.ping()
    host_and_port = server.url.rsplit("@", 1)[1]
    with Redis.from_url(f"redis://{host_and_port}") as stranger, pytest.raises(AuthenticationError):
        stranger.ping()


def test_its_password_stands_only_in_a_private_file(server: EmbeddedRedis, tmp_path: Path) -> None:
    password = server.url.removeprefix("redis://:").rsplit("@", 1)[0]
    configuration = tmp_path / "redis" / "redis.conf"
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
    assert password in configuration.read_text()
    arguments = Path(f"/proc/{server.child.pid}/cmdline")
    assert not arguments.exists() or password not in arguments.read_text()


def test_it_never_evicts_and_listens_on_loopback_only(server: EmbeddedRedis) -> None:
    with Redis.from_url(server.url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_a_killed_server_comes_back_under_the_same_url(server: EmbeddedRedis) -> None:
    url = server.url
    server.child.signal(signal.SIGKILL)
    assert server.child.wait(10)
    server.child.finish()
    server.restart()
    assert server.url == url
    with Redis.from_url(url) as client:
        assert client.ping()


def test_a_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], embedded.free_port()])
        monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
        server = EmbeddedRedis(tmp_path / "redis")
        server.start()
        assert not server.url.endswith(f":{taken.getsockname()[1]}/0")
        server.stop()


def test_stopping_leaves_no_process(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    server.stop()
    assert server.child.exit_code == 0
