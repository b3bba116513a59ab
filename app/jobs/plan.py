"""The dry run of a request: what it would come to. Nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.adapters.repository import AdapterRepository
from app.jobs.estimate import Estimate, estimate
from app.jobs.fresh import stored
from app.jobs.present import fresh
from app.jobs.repository import JobRepository
from app.jobs.schemas import FreshLora, JobCosts, JobCreate, JobStatistics
from app.jobs.service import JobService, Resolved
from app.jobs.sets import SetReader
from app.methods import LEAST_FOR_MEMBERSHIP, Policy, StoredMethod
from app.settings import Settings

FEW_RETAIN_RECORDS = 32
DUE_SOON = timedelta(days=7)

WarningCode = Literal[
    "prompts_not_checked",
    "few_retain_records",
    "membership_not_judged",
    "records_too_long",
    "records_unusable",
    "duplicates",
    "tokens_not_counted",
    "no_gpu_worker",
    "adapter_busy",
    "due_soon",
    "not_exact",
]


class PlanWarning(BaseModel):
    """Something that a person should know before the job is sent."""

    code: WarningCode
    message: str


class JobPlan(BaseModel):
    """What a request would come to, with every knob resolved."""

    object: Literal["unlearn_job.plan"] = "unlearn_job.plan"
    adapter: str
    base_model: str
    lora: Annotated[FreshLora | None, Field(description="Shape of the fresh LoRA that the job would begin.")]
    source_version: Annotated[
        int | None,
        Field(description="The adapter's head now; a job takes the head when it starts. Null for a fresh LoRA."),
    ]
    control: Annotated[str | None, Field(description="name@version")]
    method: StoredMethod
    policy: Policy
    seed: Annotated[int | None, Field(description="Null: drawn when the job is accepted.")]
    statistics: JobStatistics
    costs: Annotated[JobCosts | None, Field(description='Of a request for "retrain" or "auto", null for others.')]
    estimate: Estimate
    requested_at: datetime
    due_at: datetime
    warnings: list[PlanWarning]


class JobPlanner:
    """Plans requests of one tenant."""

    def __init__(
        self,
        service: JobService,
        jobs: JobRepository,
        adapters: AdapterRepository,
        reader: SetReader,
        settings: Settings,
    ) -> None:
        """`reader` must not keep anything."""
        self._service = service
        self._jobs = jobs
        self._adapters = adapters
        self._reader = reader
        self._settings = settings

    async def plan(self, request: JobCreate) -> JobPlan:
        """What a job of this request would be. Raises Invalid as accepting it would."""
        grounds = await self._service.look_up(request, hold=False)
        found = await self._service.resolve(request, grounds, self._reader)
        base = await self._adapters.base_of(grounds.adapter)
        earlier = await self._jobs.earlier_runs(base.id)
        attempts = found.policy.max_attempts
        return JobPlan(
            adapter=grounds.adapter.name,
            base_model=base.name,
            lora=fresh(stored(request))["lora"],
            source_version=grounds.adapter.head or None,
            control=found.control.name if found.control else None,
            method=found.method,
            policy=found.policy,
            seed=request.seed,
            statistics=found.statistics,
            costs=found.costs,
            estimate=estimate(found.method, attempts, base, found.statistics, earlier, self._settings),
            requested_at=found.requested_at,
            due_at=found.due_at,
            warnings=[*_of_sets(found), *await self._of_service(found)],
        )

    async def _of_service(self, found: Resolved) -> list[PlanWarning]:
        """What speaks against a fast end."""
        warnings = []
        if not await self._jobs.live_gpu_workers():
            text = "no GPU worker is alive; the job waits in the queue until one comes"
            warnings.append(PlanWarning(code="no_gpu_worker", message=text))
        if active := await self._jobs.active_runs(found.grounds.adapter.id):
            text = f"{active} run(s) on this adapter are queued or running; they go one after the other"
            warnings.append(PlanWarning(code="adapter_busy", message=text))
        left = found.due_at - datetime.now(UTC)
        if left < DUE_SOON:
            when = f"due in {max(left.days, 0)} day(s)" if left > timedelta(0) else "overdue"
            warnings.append(PlanWarning(code="due_soon", message=f"the request is {when}"))
        return warnings


def _of_sets(found: Resolved) -> Iterator[PlanWarning]:
    """What the records may do to the result."""
    yield PlanWarning(
        code="prompts_not_checked",
        message="nobody can tell from here whether the prompts are written as the adapter saw them in training; "
        "where they are not, the evaluation finds little to forget",
    )
    costs, sets = found.costs, found.statistics
    if costs and found.method.type == "retrain" and (costs.found or 0) < costs.forget_records:
        text = (
            f"{costs.forget_records - (costs.found or 0)} of {costs.forget_records} forget records are not in the "
            "training set, so that the result is not exact"
        )
        yield PlanWarning(code="not_exact", message=text)
    if sets.retain.records < FEW_RETAIN_RECORDS:
        text = (
            f"{sets.retain.records} retain record(s) say little of what has to stay; {FEW_RETAIN_RECORDS} or more do"
        )
        yield PlanWarning(code="few_retain_records", message=text)
    holdout = sets.holdout.records if sets.holdout else 0
    enough = min(holdout, sets.forget.records) >= LEAST_FOR_MEMBERSHIP
    base_knows = found.grounds.adapter.fresh
    if "membership" in found.policy.probes and (base_knows or not enough):
        why = f"it takes {LEAST_FOR_MEMBERSHIP} records in the forget and in a holdout set"
        why = "the base model knows the records, and no model is there that never saw them" if base_knows else why
        yield PlanWarning(code="membership_not_judged", message=f"membership is not judged: {why}")
    for name in ("forget", "retain", "holdout"):
        yield from _of_set(name, sets)


def _of_set(name: Literal["forget", "retain", "holdout"], sets: JobStatistics) -> Iterator[PlanWarning]:
    part = getattr(sets, name)
    if part is None:
        return
    if part.duplicates:
        text = f"{part.duplicates} record(s) of the {name} set are the same as an earlier one, and count twice"
        yield PlanWarning(code="duplicates", message=text)
    tokens = part.tokens
    if tokens is None:
        text = f"the tokens of the {name} set are not counted: the base model's tokenizer.json cannot be read here"
        yield PlanWarning(code="tokens_not_counted", message=text)
        return
    about = f"about {tokens.longer}" if tokens.sampled else str(tokens.longer)
    if tokens.longer:
        text = (
            f"{about} record(s) of the {name} set have more than {tokens.max_length} tokens; they are cut into "
            "sequences of which each sees nothing of the one before but its last token"
        )
        yield PlanWarning(code="records_too_long", message=text)
    if tokens.unusable:
        text = (
            f"{tokens.unusable} conversation(s) of the {name} set are not rendered by the tokenizer's chat template, "
            "or it has none; the job would fail"
        )
        yield PlanWarning(code="records_unusable", message=text)
