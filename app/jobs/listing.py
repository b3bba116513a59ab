"""The query behind a page of jobs, whose cost does not depend on how many jobs there are.

The page's ids come first, by an index that has the order of the list; what is shown of a job is then read for these
alone. Several statuses are as many index scans, each cut to a page.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Select, Subquery, select, tuple_, union_all

from app.adapters.tables import Adapter
from app.jobs import transitions
from app.jobs.filters import JobFilters
from app.jobs.tables import UnlearnJob
from app.kit.pagination import decode_cursor, encode_cursor


def page_ids(tenant_id: str, filters: JobFilters, limit: int, cursor: str | None) -> Subquery:
    """Ids and places (`at`) of the jobs of one page plus one, which tells whether more follow. Raises Invalid."""
    order = UnlearnJob.due_at if filters.by_due_date else UnlearnJob.created_at
    conditions = [UnlearnJob.tenant_id == tenant_id, *_conditions(tenant_id, filters)]
    if cursor is not None:
        conditions.append(tuple_(order, UnlearnJob.id) < tuple_(*decode_cursor(cursor, order.key)))

    def cut(*more: ColumnElement[bool]) -> Select[str, datetime]:
        chosen = select(UnlearnJob.id, order.label("at")).where(*conditions, *more)
        return chosen.order_by(order.desc(), UnlearnJob.id.desc()).limit(limit + 1)

    if len(filters.status) < 2 or filters.by_due_date:
        return cut(*_of_status(filters)).subquery("page")
    parts = union_all(*(select(cut(UnlearnJob.status == status).subquery()) for status in filters.status)).subquery()
    return select(parts).order_by(parts.c.at.desc(), parts.c.id.desc()).limit(limit + 1).subquery("page")


def cursor_after(job: UnlearnJob, filters: JobFilters) -> str:
    """The cursor of what follows a job."""
    order = UnlearnJob.due_at if filters.by_due_date else UnlearnJob.created_at
    return encode_cursor(getattr(job, order.key), job.id, order.key)


def _of_status(filters: JobFilters) -> list[ColumnElement[bool]]:
    return [UnlearnJob.status.in_(filters.status)] if filters.status else []


def _conditions(tenant_id: str, filters: JobFilters) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if filters.adapter is not None:
        of_name = select(Adapter.id).where(Adapter.tenant_id == tenant_id, Adapter.name == filters.adapter)
        conditions.append(UnlearnJob.adapter_id == of_name.scalar_subquery())
    if filters.subject_request_id is not None:
        conditions.append(UnlearnJob.subject_request_id == filters.subject_request_id)
    if filters.due_before is not None:
        conditions.append(UnlearnJob.due_at < filters.due_before)
    if filters.overdue:
        conditions.append(transitions.overdue())
    conditions += [UnlearnJob.labels.contains({key: value}) for key, value in filters.metadata]
    return conditions
