"""`lethe rewrap` and `lethe scrub`."""

from __future__ import annotations

import base64

import pytest

from app.data_keys.scrub import due
from app.datasets import purging
from app.datasets.tables import Dataset
from app.settings import Settings
from tests.cli.conftest import Run
from tests.conftest import forget_settings
from tests.worker.rows import add_adapter, add_dataset, change
from worker.database import engine, new_session

OLD, NEW = (base64.b64encode(letter * 32).decode() for letter in (b"s", b"n"))


@pytest.fixture
def datasets(service: Settings) -> list[str]:
    """Five datasets of a service whose only key is k1."""
    add_adapter()
    return [add_dataset("forget", [{"text": f"record {number}"}]).id for number in range(5)]


def test_the_command_says_whether_the_old_key_may_go(
    datasets: list[str], lethe: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETHE_ENCRYPTION_KEYS", f"k2:{NEW},k1:{OLD}")
    forget_settings()
    outcome = lethe("rewrap", "--dry-run")
    assert outcome.status == 1
    assert "datasets.wrapped_key: k1=5\n" in outcome.stdout
    assert "keep the other keys" in outcome.stderr
    outcome = lethe("rewrap")
    assert outcome.status == 0
    assert "rewrapped 5, unreadable 0" in outcome.stdout
    assert "the other keys are no longer needed" in outcome.stdout
    assert OLD not in outcome.stdout + outcome.stderr


def test_the_command_keeps_the_old_key_while_one_secret_does_not_open(
    datasets: list[str], lethe: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(Dataset, datasets[2], wrapped_key=b"x" * 60)
    monkeypatch.setenv("LETHE_ENCRYPTION_KEYS", f"k2:{NEW},k1:{OLD}")
    forget_settings()
    outcome = lethe("rewrap")
    assert (outcome.status, outcome.stderr) == (1, "1 are not under k2: keep the other keys\n")


def test_scrubbing_says_what_became_of_the_log(datasets: list[str], lethe: Run) -> None:
    with new_session() as session, session.begin():
        purging.shred(session, datasets[0])
    outcome = lethe("scrub")
    assert outcome.status == 0
    assert "write-ahead log removed; 1 tenants had keys destroyed" in outcome.stdout
    assert due(engine()) == {}
