"""Status callbacks: who is to be told that a request's status changed.

They are webhook deliveries (app/webhooks/delivery.py) whose lane is a callback. What a delivery says is read when it
is sent, so that a late one tells the present status.
"""

from __future__ import annotations

from sqlalchemy import Insert, Text, cast, func, insert, literal, select, update

from app.jobs.tables import UnlearnJob
from app.opendsr.status import overall_of
from app.opendsr.tables import OpenDsrCallback, OpenDsrJob
from app.webhooks.events import COLUMNS, random_id
from app.webhooks.tables import WebhookDelivery

TYPE = "opendsr_request."


def announce() -> Insert:
    """Write a delivery for every callback that was told another status than its request has now."""
    callback = OpenDsrCallback
    now = (
        select(callback.id, overall_of(UnlearnJob.status).label("status"))
        .outerjoin(OpenDsrJob, OpenDsrJob.request_id == callback.request_id)
        .outerjoin(UnlearnJob, UnlearnJob.id == OpenDsrJob.job_id)
        .where(callback.told != "completed")
        .group_by(callback.id)
        .subquery("now")
    )
    # A second one at the same time waits for the row, and then finds it told.
    changed = (
        update(callback)
        .where(callback.id == now.c.id, callback.told != now.c.status)
        .values(told=now.c.status)
        .returning(callback.id, callback.tenant_id, callback.request_id, callback.told)
        .cte("changed")
    )
    name = func.concat(literal(TYPE, Text), changed.c.told)
    row = select(random_id(), changed.c.tenant_id, cast(None, Text), changed.c.id, name, changed.c.request_id)
    return insert(WebhookDelivery).from_select(COLUMNS, row)
