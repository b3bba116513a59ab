"""Everything that is recorded in the audit chain."""

from __future__ import annotations

from typing import Literal

Action = Literal[
    "adapter.registered",
    "adapter.version_released",
    "adapter.version_superseded",
    "api_key.created",
    "api_key.revoked",
    "api_key.rotated",
    "attestation.signed",
    "base_model.registered",
    "data_keys.rewrapped",
    "data_keys.scrubbed",
    "dataset.created",
    "dataset.purged",
    "evaluation.stored",
    "job.accepted",
    "job.cancel_requested",
    "job.retried",
    "job.status",
]
SubjectType = Literal[
    "adapter",
    "adapter_version",
    "api_key",
    "attestation",
    "base_model",
    "dataset",
    "encryption_key",
    "evaluation",
    "tenant",
    "unlearn_job",
]
ACTIONS: dict[Action, str] = {
    "adapter.registered": "An adapter was uploaded and became version 1.",
    "adapter.version_released": "A run's result passed the gate and became the adapter's head.",
    "adapter.version_superseded": "A version is no longer handed out: a release took its place.",
    "api_key.created": "An API key was made.",
    "api_key.revoked": "An API key was ended.",
    "api_key.rotated": "An API key got a new secret; the old one is good for a while.",
    "attestation.signed": "A release was attested: the signed statement of what was done.",
    "base_model.registered": "A base model was registered.",
    "data_keys.rewrapped": "Data keys were wrapped anew under the current key-encryption key.",
    "data_keys.scrubbed": "What destroyed data keys left in the database's files was removed.",
    "dataset.created": "Records were uploaded and encrypted.",
    "dataset.purged": "A dataset's data key was destroyed: nothing opens its bytes any more.",
    "evaluation.stored": "A run's result was measured, and the gate gave its verdict.",
    "job.accepted": "An unlearn job was accepted.",
    "job.cancel_requested": "A caller asked for a job to be cancelled.",
    "job.retried": "A caller had an ended job queued again.",
    "job.status": "A job got another status: running, queued again, or how it ended.",
}
