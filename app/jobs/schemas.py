"""What jobs look like from outside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from app.adapters.schemas import AdapterName
from app.base_models.schemas import Name
from app.datasets.statistics import SetStatistics
from app.kit.text import Text
from app.methods import BlurRequest, Policy, StoredMethod, WantedMethod
from app.webhooks.schemas import CallbackUrl

Status = Literal["awaiting_approval", "queued", "running", "succeeded", "gate_failed", "failed", "cancelled"]
Phase = Literal["preparing", "unlearning", "evaluating", "packaging", "registering"]
MAX_INLINE_RECORDS = 1000
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)

_ModuleName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9_.]+$")]
_MetadataKey = Annotated[Text, Field(min_length=1, max_length=64)]
_MetadataValue = Annotated[Text, Field(max_length=512)]


def _text_only(value: object) -> object:
    if value is not None and not isinstance(value, str):
        raise ValueError("must be a time such as 2026-01-31T12:00:00Z")
    return value


def plausible_time(moment: datetime | None) -> datetime | None:
    """For validators: refuse a time before the year 2000 or after now. Raises ValueError."""
    # A day of grace for clocks; whatever lies beyond is a mistake that would move the legal deadline.
    if moment is not None and not _EARLIEST <= moment <= datetime.now(UTC) + timedelta(days=1):
        raise ValueError("must lie between the year 2000 and now")
    return moment


class InlineRecords(BaseModel):
    """Records inside the request instead of an uploaded dataset."""

    model_config = ConfigDict(extra="forbid")

    # Checked by app.datasets.records, whose messages quote nothing of a record.
    records: Annotated[list[Any], Field(min_length=1, max_length=MAX_INLINE_RECORDS)]


_DatasetId = Annotated[Text, Field(min_length=1, max_length=64, examples=["ds_4c1f0a9b2d7e8f3a5b6c7d8e"])]
RecordSet = _DatasetId | InlineRecords


class FreshLora(BaseModel):
    """The shape of a fresh LoRA."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    rank: Annotated[int, Field(ge=1, le=512, description="Of every factor.")] = 16
    alpha: Annotated[
        float | None,
        Field(gt=0, le=65_536, description="The scaling is alpha / rank. Twice the rank when left out."),
    ] = None
    target_modules: Annotated[
        Literal["all-linear"] | Annotated[list[_ModuleName], Field(min_length=1, max_length=64)],
        Field(description='Names of modules, or "all-linear": every linear layer but the output layer.'),
    ] = "all-linear"


class JobCreate(BaseModel):
    """A deletion request. Only `adapter` (or `base_model` and `result_adapter`) and `forget_set` are always needed.

    Defaults are right.
    """

    model_config = ConfigDict(extra="forbid")

    adapter: Annotated[
        AdapterName | None, Field(description="The adapter to unlearn from. Either this, or base_model.")
    ] = None
    base_model: Annotated[
        Name | None,
        Field(description="Unlearn what this base model itself knows, by a fresh LoRA on it; needs result_adapter."),
    ] = None
    result_adapter: Annotated[
        AdapterName | None, Field(description="Name of the new adapter whose version 1 the fresh LoRA becomes.")
    ] = None
    lora: Annotated[FreshLora | None, Field(description="Shape of the fresh LoRA; with base_model only.")] = None
    forget_set: Annotated[RecordSet, Field(description="Id of a dataset, or up to 1,000 records.")]
    retain_set: Annotated[
        RecordSet | None, Field(description="Needed unless the adapter has a default retain set.")
    ] = None
    holdout_set: Annotated[RecordSet | None, Field(description="Look-alike records that were never trained on.")] = (
        None
    )
    control: Annotated[
        str | None,
        Field(
            max_length=140,
            pattern=r"^[a-z0-9][a-z0-9._-]*(@([1-9][0-9]{0,8}|[a-z][a-z0-9._-]{0,63}))?$",
            description="An adapter that was trained alike but never on the forget set: its name, or name@version "
            "with a number or an alias. "
            "It takes the place of the base model alone as the measure of never having seen the records.",
        ),
    ] = None
    method: Annotated[WantedMethod, Field(description="GET /methods shows every knob; defaults are right.")] = (
        BlurRequest()
    )
    policy: Annotated[
        str | dict[str, Any],
        Field(
            description='A name such as "default", or {"name": ..., thresholds that tighten it, probes to add, '
            "max_attempts}; GET /policies shows them.",
            max_length=64,
        ),
    ] = "default"
    seed: Annotated[int | None, Field(ge=0, lt=2**31, description="Drawn when left out, and always shown.")] = None
    subject_request_id: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    requested_at: Annotated[
        AwareDatetime | None,
        Field(description="When the person asked; now when left out, never in the future."),
        BeforeValidator(_text_only),
        AfterValidator(plausible_time),
    ] = None
    callback_url: Annotated[
        CallbackUrl | None,
        Field(
            description="Is told by POST when the job's status changes, as webhook endpoints are; a public https URL."
        ),
    ] = None
    metadata: Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=16)] = {}


class JobStatistics(BaseModel):
    """What the sets of a job hold. A record that is longer than a training sequence is cut, never left out.

    It becomes several sequences that overlap by one token: every token of its answer is trained on once, and a later
    sequence sees nothing of the earlier ones but that one token.
    """

    forget: SetStatistics
    retain: SetStatistics
    holdout: SetStatistics | None


class Cost(BaseModel):
    """What a training takes. A sequence is passed over forward and backward, once a step that it is in."""

    steps: Annotated[int, Field(description="Optimizer steps, the most that there may be.")]
    sequences: Annotated[int, Field(description="Over all steps.")]


class MeasuredCost(Cost):
    """What the trainings of a run took."""

    seconds: float


class JobCosts(BaseModel):
    """Training anew against unlearning: what was known of both when the job was accepted, and what it came to."""

    asked: Annotated[Literal["retrain", "auto"], Field(description="What the request said.")]
    reason: Annotated[str, Field(description="Why the job's method is what it is.")]
    forget_records: Annotated[int, Field(description="Different ones.")]
    found: Annotated[int | None, Field(description="Those of them that are in the adapter's training set.")]
    training_records: Annotated[int | None, Field(description="Records that the training set holds.")]
    retrain: Annotated[Cost | None, Field(description="Of training anew; null where that cannot be.")]
    unlearn: Annotated[Cost, Field(description="Of the default method with all of its steps; it may end earlier.")]
    exact_if_cheaper_than: Annotated[float, Field(description="The policy's.")]
    measured: Annotated[MeasuredCost | None, Field(description="Of the job's method, once it has run.")] = None


class Progress(BaseModel):
    """How far a run is."""

    step: int
    total_steps: int | None
    percent: float
    eta_seconds: Annotated[
        float | None,
        Field(description="Until the run ends. Of a queued one, by what your last runs took and the workers alive."),
    ]
    queue_position: Annotated[
        int | None, Field(description="1 is next; 101 stands for more than 100 ahead; null when not queued.")
    ]


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class Approval(BaseModel):
    """What became of a job that needs approval. The reason is the one that was given with the decision."""

    status: Literal["pending", "approved", "denied"]
    decided_by: Annotated[str | None, Field(description="Id of the API key.")]
    decided_at: datetime | None
    reason: str | None


class Decision(BaseModel):
    """Why a job is approved or denied. The body may be left out."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[Text, Field(min_length=1, max_length=500)] | None = None


class Extension(BaseModel):
    """Why a deadline is moved: what the person has to be told (GDPR Art. 12(3))."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[Text, Field(min_length=1, max_length=500)]


class JobRead(BaseModel):
    """A job, with every knob resolved."""

    id: str
    object: Literal["unlearn_job"] = "unlearn_job"
    status: Status
    phase: Phase | None
    cancel_requested_at: datetime | None
    adapter: str
    base_model: Annotated[str | None, Field(description="Of a job that begins a fresh LoRA, null for others.")] = None
    lora: Annotated[FreshLora | None, Field(description="Shape of the LoRA that the job begins.")] = None
    source_version: Annotated[
        int | None, Field(description="The head that the run took; null before, and where it begins a fresh LoRA.")
    ]
    result_version: int | None
    run_id: str
    attempt: int
    forget_set: str
    retain_set: str
    holdout_set: str | None
    control: Annotated[str | None, Field(description="name@version")] = None
    method: StoredMethod
    policy: Policy
    statistics: Annotated[JobStatistics | None, Field(description="As counted when it was accepted.")] = None
    costs: Annotated[
        JobCosts | None, Field(description='Of a job that asked for "retrain" or "auto", null for others.')
    ] = None
    exact: Annotated[
        bool | None,
        Field(
            description="Whether the result was trained anew without the records, every one of which was in the "
            "training set; null until that is known."
        ),
    ] = None
    seed: int
    verdict: Literal["passed", "failed"] | None
    progress: Progress
    subject_request_id: str | None
    requested_at: datetime
    due_at: datetime
    overdue: Annotated[bool, Field(description="The deadline has passed and the job has not ended.")]
    original_due_at: Annotated[datetime | None, Field(description="Before the deadline was extended.")]
    extended_at: datetime | None
    extension_reason: str | None
    submitted_by: Annotated[str | None, Field(description="Id of the API key.")]
    approval: Annotated[Approval | None, Field(description="null when the job needs none.")]
    callback_url: str | None = None
    metadata: dict[str, str]
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class EventRead(BaseModel):
    """A line of a job's history."""

    object: Literal["unlearn_job.event"] = "unlearn_job.event"
    id: int
    created_at: datetime
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics", "status", "job.due_soon", "job.overdue"]
    message: str
    data: dict[str, Any]
