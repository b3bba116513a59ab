"""Where the checkpoints of runs lie: encrypted with the forget set's own key, found by the next attempt, then gone.

Below `checkpoints/<run>/<life>/<attempt>`. A life lasts from the first claim to the end of a run, however many
workers it takes; a retry of an ended run begins another one, which finds nothing of the one before. Every attempt
writes to a key of its own, so that a worker that lost the run without knowing it can harm nobody. What a checkpoint
holds is not known here: the light worker, which never loads torch, deletes them.
"""

from __future__ import annotations

from datetime import UTC, datetime

from app.datasets.tables import Dataset
from app.datasets.vault import Vault
from app.kit.storage import Storage
from worker.lease import Claim

_FOLDER = "checkpoints"


class CheckpointStore:
    """The checkpoints of one run, as one of its attempts sees them.

    Args:
        held: the attempt.
        forget: the dataset whose key encrypts; once that is destroyed, no checkpoint opens again.
    """

    def __init__(self, held: Claim, forget: Dataset, storage: Storage, vault: Vault) -> None:
        self._folder = f"{_FOLDER}/{held.run_id}/{_life(held.started_at)}"
        self._attempt, self._forget = held.attempt, forget
        self._storage, self._vault = storage, vault

    def save(self, data: bytes) -> None:
        """Keep this attempt's checkpoint in the place of its last one, at once or not at all. Raises OSError."""
        self._vault.store(self._forget, self._key(self._attempt), data)

    def earlier(self) -> list[int]:
        """Earlier attempts that left a checkpoint, the newest first."""
        numbers = [int(key.rsplit("/", 1)[1]) for key in self._storage.keys(self._folder)]
        return sorted((number for number in numbers if number < self._attempt), reverse=True)

    def read(self, attempt: int) -> bytes:
        """The checkpoint of an attempt.

        Raises:
            app.kit.crypto.CryptoError: it was changed, cut off or moved, or its key is gone.
            OSError: it cannot be read.
        """
        return self._vault.fetch(self._forget, self._key(attempt))

    def _key(self, attempt: int) -> str:
        return f"{self._folder}/{attempt}"


def runs_with_checkpoints(storage: Storage) -> set[str]:
    """Ids of runs that left something."""
    return {key.split("/")[1] for key in storage.keys(_FOLDER)}


def delete_checkpoints(storage: Storage, run_id: str, *, but: datetime | None = None) -> None:
    """Remove what a run left, except for the life that was started at that time."""
    folder = f"{_FOLDER}/{run_id}"
    if but is None:
        storage.delete_all(folder)
        return
    for life in {key.split("/")[2] for key in storage.keys(folder)} - {_life(but)}:
        storage.delete_all(f"{folder}/{life}")


def _life(started_at: datetime) -> str:
    return f"{started_at.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"
