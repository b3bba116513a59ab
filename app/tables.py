"""All tables in one place, so that importing this module makes the metadata complete."""

from app.adapters.tables import Adapter, AdapterVersion
from app.auth.tables import ApiKey, Tenant
from app.base_models.tables import BaseModelRow
from app.datasets.tables import Dataset
from app.evaluations.tables import EvaluationRow
from app.jobs.tables import JobEvent, OutboxMessage, Run, UnlearnJob, WorkerHeartbeat
from app.kit.db import Base

metadata = Base.metadata

__all__ = [
    "Adapter",
    "AdapterVersion",
    "ApiKey",
    "BaseModelRow",
    "Dataset",
    "EvaluationRow",
    "JobEvent",
    "OutboxMessage",
    "Run",
    "Tenant",
    "UnlearnJob",
    "WorkerHeartbeat",
    "metadata",
]
