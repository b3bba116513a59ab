"""How many event streams may be open at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.kit.problems import QuotaExceeded

RETRY_AFTER = "10"


class StreamPlaces:
    """The places of one process.

    Args:
        most: in the process.
        most_of_tenant: of these, for a single tenant.
    """

    def __init__(self, most: int, most_of_tenant: int) -> None:
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._taken: Counter[str] = Counter()

    @contextmanager
    def place(self, tenant_id: str) -> Iterator[None]:
        """A place for one stream of a tenant while the block lasts. Raises QuotaExceeded where none is free."""
        if self._taken[tenant_id] >= self._most_of_tenant or self._taken.total() >= self._most:
            detail = "too many event streams are open; close some, or poll the job"
            raise QuotaExceeded(detail, headers={"Retry-After": RETRY_AFTER})
        self._taken[tenant_id] += 1
        try:
            yield
        finally:
            self._taken[tenant_id] -= 1
            # Whoever has none leaves no trace.
            self._taken = +self._taken
