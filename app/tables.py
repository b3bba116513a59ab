"""All tables in one place, so that importing this module makes the metadata complete."""

from app.adapters.tables import Adapter, AdapterAlias, AdapterVersion
from app.attestations.tables import Attestation, SigningKey
from app.audit.tables import AuditEntry, AuditHead
from app.auth.tables import ApiKey, Tenant
from app.base_models.tables import BaseModelRow
from app.datasets.tables import Dataset
from app.evaluations.tables import EvaluationRow
from app.idempotency.tables import AcceptedRequest
from app.identities.tables import IdentityClaim, IdentityEntry, IdentityIndex
from app.jobs.tables import JobEvent, OutboxMessage, Run, UnlearnJob, WorkerHeartbeat
from app.kit.db import Base
from app.opendsr.tables import OpenDsrJob, OpenDsrRequest
from app.webhooks.tables import WebhookDelivery, WebhookEndpoint, WebhookSecret

metadata = Base.metadata

__all__ = [
    "AcceptedRequest",
    "Adapter",
    "AdapterAlias",
    "AdapterVersion",
    "ApiKey",
    "Attestation",
    "AuditEntry",
    "AuditHead",
    "BaseModelRow",
    "Dataset",
    "EvaluationRow",
    "IdentityClaim",
    "IdentityEntry",
    "IdentityIndex",
    "JobEvent",
    "OpenDsrJob",
    "OpenDsrRequest",
    "OutboxMessage",
    "Run",
    "SigningKey",
    "Tenant",
    "UnlearnJob",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookSecret",
    "WorkerHeartbeat",
    "metadata",
]
