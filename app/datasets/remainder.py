"""A dataset without the records that another one holds."""

from __future__ import annotations

from collections.abc import Iterator

from app.datasets.records import digest, parse_record
from app.datasets.tables import Dataset
from app.datasets.vault import Vault


class Remainder:
    """What is left of a dataset without another one's records. Equal records are found by their digests.

    Attributes:
        wanted: different records of the other dataset.
        found: those of them that the dataset holds, as far as `lines` was read last.
        removed: records that were left out, repeated ones included, as far as `lines` was read last.
    """

    def __init__(self, vault: Vault, dataset: Dataset, other: Dataset, salt: bytes) -> None:
        """Reads the other dataset. Raises as `Vault.lines` does."""
        self._vault, self._dataset, self._salt = vault, dataset, salt
        self._out = {digest(parse_record(line), salt) for line in vault.lines(other)}
        self.wanted, self.found, self.removed = len(self._out), 0, 0

    def lines(self) -> Iterator[bytes]:
        """The lines that are left, without line ends. Raises as `Vault.lines` does."""
        self.found = self.removed = 0
        left = set(self._out)
        for line in self._vault.lines(self._dataset):
            record = digest(parse_record(line), self._salt)
            if record not in self._out:
                yield line
                continue
            self.removed += 1
            if record in left:
                left.remove(record)
                self.found += 1
