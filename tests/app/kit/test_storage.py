"""Local storage: whole blobs or none, and no way out of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.kit.storage import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """An empty storage."""
    return LocalStorage(tmp_path / "storage")


def test_a_blob_comes_back(storage: LocalStorage, tmp_path: Path) -> None:
    with storage.create("a/b.bin") as sink:
        sink.write(b"x")
    with storage.open("a/b.bin") as source:
        assert source.read() == b"x"
    storage.fetch("a/b.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x"
    assert storage.size("a/b.bin") == 1


def test_nobody_else_may_look_into_the_folders(storage: LocalStorage, tmp_path: Path) -> None:
    with storage.create("a/b/c") as sink:
        sink.write(b"x")
    for folder in ("", "a", "a/b"):
        assert (tmp_path / "storage" / folder).stat().st_mode & 0o077 == 0


def test_a_write_that_fails_leaves_nothing_and_keeps_what_was_there(storage: LocalStorage, tmp_path: Path) -> None:
    with storage.create("a/b") as sink:
        sink.write(b"old")

    def fail() -> None:
        with storage.create("a/b") as sink:
            sink.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in (tmp_path / "storage" / "a").iterdir()] == ["b"]
    with storage.open("a/b") as source:
        assert source.read() == b"old"


def test_deleting_twice_does_no_harm(storage: LocalStorage) -> None:
    with storage.create("a") as sink:
        sink.write(b"x")
    storage.delete("a")
    storage.delete("a")
    with pytest.raises(FileNotFoundError):
        storage.open("a")
    for ask in (storage.size, lambda key: storage.open_range(key, 0, 1)):
        with pytest.raises(FileNotFoundError):
            ask("a")


def test_keys_are_listed_and_removed_by_their_beginning(storage: LocalStorage, tmp_path: Path) -> None:
    assert storage.keys("a") == []
    storage.delete_all("a")
    for key in ("a/x/2", "a/x/10", "a/y/1", "ab/1", "b"):
        with storage.create(key) as sink:
            sink.write(b"x")
    assert storage.keys("a") == ["a/x/10", "a/x/2", "a/y/1"]
    with storage.create("a/x/3"):
        assert storage.keys("a/x") == ["a/x/10", "a/x/2"], "what is being written is not there yet"
    (tmp_path / "storage" / "a" / "x" / ".writing-killed").write_bytes(b"half")
    storage.delete_all("a/x")
    assert not (tmp_path / "storage" / "a" / "x").exists()
    assert storage.keys("a") == ["a/y/1"]
    assert storage.keys("ab") == ["ab/1"]


def test_a_range_ends_where_it_should_and_outlives_its_key(storage: LocalStorage) -> None:
    with storage.create("a") as sink:
        sink.write(b"0123456789")
    part = storage.open_range("a", 3, 4)
    storage.delete("a")
    assert [part.read(3), part.read(3), part.read(3)] == [b"345", b"6", b""]
    part.close()


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", "", "a/..", "A\x00"])
def test_keys_that_lead_elsewhere_are_refused(storage: LocalStorage, key: str) -> None:
    with pytest.raises(ValueError, match="storage key"):
        storage.open(key)


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        LocalStorage(tmp_path / "file").check()
