"""What the doctor finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "blob_without_row",
    "unfinished_blob",
    "checkpoint_of_ended_run",
    "abandoned_folder",
    "version_without_bytes",
    "version_with_other_bytes",
    "dataset_without_bytes",
    "index_without_bytes",
    "expired_lease",
    "unpublished_messages",
    "rows_disagree",
    "storage_missing",
    "no_worker",
]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        subject: an id, a storage key, or a folder of this machine.
        detail: what is wrong with it.
        remedy: what repairing does; where nothing can be repaired, what a person can do.
        repair: does it, if it is still needed.
    """

    kind: Kind
    subject: str
    detail: str
    remedy: str
    repair: Callable[[], object] | None = field(default=None, compare=False)
