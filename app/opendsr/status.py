"""What the states of a request's jobs come to, in the specification's four words."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, SQLColumnExpression, case, func

from app.opendsr.schemas import RequestStatus

_WAITING = {"queued", "awaiting_approval"}
_UNFULFILLED = {"failed", "gate_failed"}
_OPEN = _WAITING | _UNFULFILLED | {"running"}


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
    if found & _OPEN:
        return "in_progress"
    return "cancelled"


def overall_of(status: SQLColumnExpression[str]) -> ColumnElement[str]:
    """The same as an aggregate over jobs in SQL; a request without jobs is a row whose status is null."""
    return case(
        (func.coalesce(func.bool_and(status == "succeeded"), True), "completed"),
        (func.bool_and(status.in_(_WAITING)), "pending"),
        (func.bool_or(status.in_(_OPEN)), "in_progress"),
        else_="cancelled",
    )
