"""Which jobs a list is to show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Request
from pydantic import AwareDatetime, BeforeValidator

from app.adapters.schemas import AdapterName
from app.jobs.schemas import Status
from app.kit.problems import invalid_field
from app.kit.text import Text

_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]", re.ASCII)
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
MAX_PAIRS = 16
# FastAPI cannot describe a parameter that is named metadata[k].
METADATA_PARAMETER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "metadata[k]=v: jobs whose metadata has that value under that key; several must all hold.",
    "schema": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 512}},
}


@dataclass(frozen=True)
class JobFilters:
    """What jobs of a list have in common. `metadata` holds pairs, all of which have to be there."""

    status: tuple[Status, ...] = ()
    adapter: str | None = None
    subject_request_id: str | None = None
    due_before: AwareDatetime | None = None
    overdue: bool = False
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def by_due_date(self) -> bool:
        """Whether the list goes by due date: one that is cut by date is served from an index in that order."""
        return self.overdue or self.due_before is not None


def _with_a_date(value: object) -> object:
    # A bare number would be taken as seconds since 1970.
    if isinstance(value, str) and not _DATE.match(value):
        raise ValueError("must be a time such as 2026-01-31T12:00:00Z")
    return value


async def job_filters(
    request: Request,
    status: Annotated[list[Status] | None, Query(description="Repeat it for several.")] = None,
    adapter: Annotated[AdapterName | None, Query()] = None,
    subject_request_id: Annotated[Text | None, Query(min_length=1, max_length=256)] = None,
    due_before: Annotated[
        AwareDatetime | None,
        BeforeValidator(_with_a_date),
        Query(description="Due before this time; latest due first."),
    ] = None,
    overdue: Annotated[bool, Query(description="Live jobs whose deadline has passed; latest due first.")] = False,
) -> JobFilters:
    """The filters in a query. Raises Invalid."""
    statuses = tuple(dict.fromkeys(status or ()))
    return JobFilters(statuses, adapter, subject_request_id, due_before, overdue, _metadata(request))


def _metadata(request: Request) -> tuple[tuple[str, str], ...]:
    found = [(_METADATA.fullmatch(name), value) for name, value in request.query_params.multi_items()]
    pairs = tuple((match[1], value) for match, value in found if match)
    if len(pairs) > MAX_PAIRS or any(len(value) > 512 for pair in pairs for value in pair):
        raise invalid_field("/query/metadata", f"takes up to {MAX_PAIRS} pairs, each of up to 512 characters")
    return pairs
