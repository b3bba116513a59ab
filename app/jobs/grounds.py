"""What a request for a job names, looked up in one statement: each trip to the database takes longer than asking."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, cast

from sqlalchemy import ARRAY, CTE, Boolean, Text, any_, bindparam, case, func, literal, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters.tables import Adapter
from app.base_models.tables import BaseModelRow
from app.datasets.tables import Dataset
from app.jobs.repository import of_request, place_in_queue, seconds_until_end
from app.kit.driver import Asked, Prepared, columns


class Moment(NamedTuple):
    """When a request was looked up, by the database's clock, and how a job that comes then stands in the queue."""

    at: datetime
    position: int
    wait: float | None


@dataclass(frozen=True)
class Grounds:
    """What a request names. Adapter and datasets have the attributes of their entities.

    Attributes:
        directory: where the adapter's base model lies.
        before: id of the job, live or succeeded, that the person's request has on the adapter.
        datasets: by id, as far as they are there.
    """

    moment: Moment
    adapter: Adapter
    directory: str
    before: str | None
    datasets: Mapping[str, Dataset]


async def ask(
    session: AsyncSession,
    tenant_id: str,
    *,
    adapter: str,
    datasets: Collection[str],
    default: bool,
    subject_request_id: str | None,
    hold: bool,
) -> Asked:
    """Ask for what a request names; `read` understands the answer.

    Args:
        datasets: the ids that it names.
        default: it wants the adapter's default retain set, too.
        hold: keep others from purging the datasets until the transaction ends.
    """
    values = {"tenant": tenant_id, "name": adapter, "sets": list(datasets), "default": default}
    return await (_HOLD if hold else _FIND).ask(session, **values, request=subject_request_id)


async def read(asked: Asked) -> Grounds | None:
    """What a request names; None where there is no such adapter."""
    rows = await asked.rows()
    first = rows[0]
    if first.adapters_id is None:
        return None
    found = [cast(Dataset, _Dataset._make(row[_DATASET])) for row in rows if row.datasets_id is not None]
    return Grounds(
        moment=Moment(first.at, first.position, first.wait),
        adapter=cast(Adapter, _Adapter._make(first[_ADAPTER])),
        directory=first.directory,
        before=first.before,
        datasets={dataset.id: dataset for dataset in found},
    )


def _find(*, hold: bool) -> Prepared:
    named = _named()
    before = of_request(bindparam("tenant"), named.c.adapters_id, bindparam("request", type_=Text))
    sets = _sets(named, hold=hold)
    place = place_in_queue(func.now(), literal(""))
    head = (
        func.now().label("at"),
        place.label("position"),
        seconds_until_end(place).label("wait"),
        before.correlate(named).scalar_subquery().label("before"),
    )
    always = select(literal(1).label("one")).subquery()
    return Prepared(
        select(*head, *named.c, *sets.c).select_from(always.outerjoin(named, true()).outerjoin(sets, true()))
    )


def _named() -> CTE:
    tenant = bindparam("tenant", type_=Text)
    return (
        select(BaseModelRow.directory.label("directory"), *_ADAPTERS.values())
        .join_from(Adapter, BaseModelRow, BaseModelRow.id == Adapter.base_model_id)
        .where(Adapter.tenant_id == tenant, BaseModelRow.tenant_id == tenant, Adapter.name == bindparam("name"))
        .cte("named")
    )


def _sets(named: CTE, *, hold: bool) -> CTE:
    default = select(named.c.adapters_default_retain_set_id).scalar_subquery()
    ids = func.array_append(
        bindparam("sets", type_=ARRAY(Text)), case((bindparam("default", type_=Boolean), default))
    )
    sets = select(*_DATASETS.values()).where(Dataset.tenant_id == bindparam("tenant"), Dataset.id == any_(ids))
    # Shared, so that jobs with the same retain set need not wait for each other; whoever purges waits for them all.
    # By id, as everybody locks several of them.
    return (sets.order_by(Dataset.id).with_for_update(read=True) if hold else sets).cte("sets")


_ADAPTERS, _DATASETS = columns(Adapter), columns(Dataset)
_Adapter = namedtuple("_Adapter", _ADAPTERS)  # type: ignore[misc] # the fields are the table's
_Dataset = namedtuple("_Dataset", _DATASETS)  # type: ignore[misc]
# Where they stand in a row: behind moment, job before and directory.
_ADAPTER, _DATASET = slice(5, 5 + len(_ADAPTERS)), slice(-len(_DATASETS), None)
_HOLD, _FIND = _find(hold=True), _find(hold=False)
