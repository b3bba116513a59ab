"""What the states of a request's jobs come to, in the specification's four words."""

from __future__ import annotations

from collections.abc import Collection

from app.opendsr.schemas import RequestStatus

_WAITING = {"queued", "awaiting_approval"}
_UNFULFILLED = {"failed", "gate_failed"}


def overall(statuses: Collection[str]) -> RequestStatus:
    """The status of a request whose jobs have these.

    The specification has no word for a failure. A request whose job failed is not fulfilled, and nobody has withdrawn
    it: it stays in progress until somebody retries the job, or cancels it for good.
    """
    found = set(statuses)
    if found <= {"succeeded"}:
        # No job at all: there was nothing to erase.
        return "completed"
    if found <= _WAITING:
        return "pending"
    if found & _UNFULFILLED or found & (_WAITING | {"running"}):
        return "in_progress"
    return "cancelled"
