"""The sets of a request: uploaded before, or inside it. Found, and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app.datasets.fingerprints import overlap
from app.datasets.records import Record, RecordError, validate_record
from app.datasets.schemas import Purpose
from app.datasets.service import DatasetService
from app.datasets.statistics import SetStatistics, token_statistics
from app.datasets.tables import Dataset
from app.datasets.vault import Vault
from app.jobs.grounds import Grounds
from app.jobs.schemas import InlineRecords, JobCreate, JobStatistics, RecordSet
from app.kit.problems import FieldError, invalid_field, invalid_fields


@dataclass(frozen=True)
class GivenSet:
    """A set and what opens it. `inline`: its records came inside the request."""

    dataset: Dataset
    vault: Vault
    inline: bool


@dataclass(frozen=True)
class GivenSets:
    """The sets of a request."""

    forget: GivenSet
    retain: GivenSet
    holdout: GivenSet | None

    def examine(self, directory: Path, max_length: int, *, stored: bool) -> JobStatistics:
        """Check them against each other, and count what they hold, in tokens of the base model in `directory`.

        Args:
            max_length: tokens per sequence that the method asks for.
            stored: whether inline records were stored as datasets.

        Raises:
            Invalid: one shares records with the forget set.
        """
        _check_overlap("retain_set", self.forget, self.retain)
        if self.holdout:
            _check_overlap("holdout_set", self.forget, self.holdout)

        def count(given: GivenSet) -> SetStatistics:
            dataset = given.dataset
            return SetStatistics(
                dataset=dataset.id if stored or not given.inline else None,
                records=dataset.records,
                duplicates=dataset.duplicates,
                bytes=dataset.size,
                tokens=token_statistics(given.vault, dataset, directory, max_length),
            )

        holdout = count(self.holdout) if self.holdout else None
        return JobStatistics(forget=count(self.forget), retain=count(self.retain), holdout=holdout)


class SetReader:
    """Finds the sets of one tenant's requests."""

    def __init__(self, uploads: DatasetService, *, keep: bool = True) -> None:
        """`keep`: store inline records as datasets, and keep others from purging a set until the transaction ends."""
        self._uploads = uploads
        self._keep = keep

    @property
    def keeps(self) -> bool:
        """Whether inline records become datasets."""
        return self._keep

    async def read(self, request: JobCreate, grounds: Grounds) -> GivenSets:
        """The sets of a request. Raises Invalid when one cannot be used."""
        retain_set = request.retain_set or grounds.adapter.default_retain_set_id
        if retain_set is None:
            raise invalid_field("/retain_set", "is needed, since the adapter has no default retain set")
        found = grounds.datasets
        forget = await self._set("forget", request.forget_set, found)
        retain = await self._set("retain", retain_set, found)
        holdout = await self._set("holdout", request.holdout_set, found) if request.holdout_set else None
        return GivenSets(forget, retain, holdout)

    async def _set(self, purpose: Purpose, given: RecordSet, found: Mapping[str, Dataset]) -> GivenSet:
        pointer = f"/{purpose}_set"
        if isinstance(given, InlineRecords):
            records = _records(pointer, given)
            if self._keep:
                return GivenSet(await self._uploads.store_records(purpose, records), self._uploads.vault, inline=True)
            return GivenSet(*await self._uploads.hold_records(purpose, records), inline=True)
        dataset = found.get(given)
        if dataset is None:
            raise invalid_field(pointer, f"no dataset with this id; POST /datasets?purpose={purpose} first")
        if dataset.purpose != purpose:
            raise invalid_field(pointer, f"is a {dataset.purpose} set; upload it with purpose={purpose}")
        if dataset.purged_at is not None:
            raise invalid_field(pointer, "was purged; upload the records again")
        return GivenSet(dataset, self._uploads.vault, inline=False)


def _check_overlap(field: str, forget: GivenSet, other: GivenSet) -> None:
    shared = overlap(forget.vault.index(forget.dataset), other.vault.index(other.dataset))
    if shared.records:
        places = shared.places("record" if other.inline else "line")
        raise invalid_field(
            f"/{field}",
            f"shares {shared.records} record(s) with the forget set, at its {places}; "
            "take them out of one of the two",
        )


def _records(pointer: str, inline: InlineRecords) -> list[Record]:
    records: list[Record] = []
    errors: list[FieldError] = []
    for index, value in enumerate(inline.records):
        try:
            records.append(validate_record(value))
        except RecordError as error:
            errors.append(FieldError(f"{pointer}/records/{index}", str(error)))
    if errors:
        raise invalid_fields(errors)
    return records
