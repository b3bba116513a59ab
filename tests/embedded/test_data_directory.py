"""The data directory: one holder, private files, keys that last."""

import base64
import json
import stat
from pathlib import Path

import pytest

from app.embedded.data_directory import Connection, DataDirectory
from app.embedded.process import EmbeddedError
from app.kit.certificates import Credentials
from app.kit.signing import PrivateKey


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    first.acquire()
    with pytest.raises(EmbeddedError, match=r"in use by another `lethe up` \(process \d+\)"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_secrets_are_drawn_once_and_are_private(tmp_path: Path) -> None:
    secrets = DataDirectory(tmp_path).secrets()
    assert DataDirectory(tmp_path).secrets() == secrets
    assert mode(tmp_path / "secrets.json") == 0o600
    name, _, key = secrets.encryption_keys.partition(":")
    assert name == "k1"
    assert len(base64.b64decode(key, validate=True)) == 32
    assert len(base64.b64decode(secrets.key_pepper, validate=True)) == 32


def test_two_directories_have_different_secrets(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    ours, theirs = DataDirectory(first).secrets(), DataDirectory(second).secrets()
    assert ours.encryption_keys != theirs.encryption_keys
    assert ours.key_pepper != theirs.key_pepper
    assert ours.key_pepper not in ours.encryption_keys


def test_the_connection_file_is_private_and_replaced_whole(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    assert directory.connection() == Connection(None, None)
    directory.write_connection(Connection(None, "lethe_key"))
    directory.write_connection(Connection("http://127.0.0.1:1", "lethe_key"))
    assert directory.connection() == Connection("http://127.0.0.1:1", "lethe_key")
    assert mode(directory.connection_path) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["connection.json"]


def test_a_signing_key_is_drawn_with_the_other_secrets(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    keys = [PrivateKey.parse(DataDirectory(path).secrets().signing_key).public for path in (first, second)]
    assert keys[0] != keys[1]


def test_a_directory_from_before_attestations_gets_a_signing_key_and_keeps_its_secrets(tmp_path: Path) -> None:
    old = {"encryption_keys": "k1:AAAA", "key_pepper": "BBBB"}
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps(old))
    path.chmod(0o600)
    secrets = DataDirectory(tmp_path).secrets()
    assert (secrets.encryption_keys, secrets.key_pepper) == ("k1:AAAA", "BBBB")
    assert PrivateKey.parse(secrets.signing_key).export() == secrets.signing_key
    assert Credentials.parse(secrets.opendsr_credentials).domain == "localhost"
    assert DataDirectory(tmp_path).secrets() == secrets
    assert mode(path) == 0o600


def test_secrets_that_lost_a_key_are_not_replaced(tmp_path: Path) -> None:
    # A new one would seem to work, and open none of the datasets.
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps({"key_pepper": "BBBB", "signing_key": "CCCC", "opendsr_credentials": "DDDD"}))
    with pytest.raises(TypeError, match="encryption_keys"):
        DataDirectory(tmp_path).secrets()
