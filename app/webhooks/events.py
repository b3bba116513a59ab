"""What receivers are told, and the statements that note it in the transaction that makes it true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import CTE, FromClause, Insert, Text, cast, func, insert, literal, or_, select, union_all

from app.jobs.tables import UnlearnJob
from app.webhooks.tables import WebhookDelivery, WebhookEndpoint

EventType = Literal[
    "unlearn_job.succeeded",
    "unlearn_job.gate_failed",
    "unlearn_job.failed",
    "unlearn_job.cancelled",
    "unlearn_job.awaiting_approval",
    "unlearn_job.due_soon",
    "unlearn_job.overdue",
]
EVENTS: Mapping[EventType, str] = {
    "unlearn_job.succeeded": "A job passed the gate, and its adapter was released.",
    "unlearn_job.gate_failed": "A job was measured and did not pass the gate; nothing was released.",
    "unlearn_job.failed": "A job broke off; its error says why.",
    "unlearn_job.cancelled": "A job was cancelled.",
    "unlearn_job.awaiting_approval": "A job waits for somebody to approve it.",
    "unlearn_job.due_soon": "A job has not ended and its due_at is near.",
    "unlearn_job.overdue": "A job has not ended and its due_at has passed.",
}
# Sent on request alone, to show that an endpoint receives; no filter keeps it away.
TEST = "webhook_endpoint.test"
COLUMNS = ("id", "tenant_id", "endpoint_id", "lane", "type", "subject_id")


def of_status(status: str) -> EventType | None:
    """The event of a job that gets a new status, where it is one."""
    name = f"unlearn_job.{status}"
    return next((event for event in EVENTS if event == name), None)


def emit(event: EventType, job_id: str) -> Insert:
    """Tell the receivers of a job's tenant, and its `callback_url`, of an event.

    Execute it in the transaction that makes the event true. Changes of status need no call:
    `app.jobs.transitions.follow` carries its own.
    """
    job = select(UnlearnJob.id, UnlearnJob.tenant_id).where(UnlearnJob.id == job_id)
    return _deliveries(event, job.subquery("job"))


def along(event: EventType, changed: FromClause) -> CTE:
    """The same as a part of the statement that changes jobs; `changed` has their id and tenant_id."""
    return _deliveries(event, changed).cte("told")


def _deliveries(event: EventType, jobs: FromClause) -> Insert:
    endpoint, job = WebhookEndpoint, jobs.c
    wanted = or_(func.cardinality(endpoint.events) == 0, literal(event, Text) == endpoint.events.any_())
    to_endpoints = (
        select(*_row(endpoint.id, endpoint.id, event, job))
        .select_from(jobs)
        .join(endpoint, endpoint.tenant_id == job.tenant_id)
        .where(endpoint.enabled, wanted)
    )
    to_callbacks = (
        select(*_row(cast(None, Text), job.tenant_id, event, job))
        .select_from(jobs)
        .join(UnlearnJob, UnlearnJob.id == job.id)
        .where(UnlearnJob.callback_url.is_not(None))
    )
    return insert(WebhookDelivery).from_select(COLUMNS, union_all(to_endpoints, to_callbacks))


def _row(endpoint_id: Any, lane: Any, event: EventType, job: Any) -> tuple[Any, ...]:  # noqa: ANN401 - SQL expressions
    return random_id(), job.tenant_id, endpoint_id, lane, literal(event, Text), job.id


def random_id() -> Any:  # noqa: ANN401 - a SQL expression
    """A new delivery's id."""
    return func.concat("msg_", func.replace(cast(func.gen_random_uuid(), Text), "-", ""))
