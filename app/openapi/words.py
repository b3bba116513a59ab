"""What the OpenAPI document says beside the schemas: tags, parameters, and values for examples."""

from __future__ import annotations

from typing import Any

from app.methods import DEFAULT_POLICY, METHOD_REQUEST

CONTACT = {"name": "The operator of this service; name the request_id of the answer"}
LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
TAGS = {
    "API keys": "Who may call, and what: keys with scopes, shown once, rotated and revoked.",
    "health": "Is the process up, and can it do its work. Without a key.",
    "base models": "Frozen language models on which adapters were trained.",
    "adapters": "LoRA adapters with numbered, immutable versions; the newest one that is ready is the head.",
    "datasets": "Records to forget, to retain, or to compare with. Encrypted as they arrive, never served back.",
    "unlearn jobs": "Deletion requests: ask, follow, download the unlearned adapter with its evidence.",
    "attestations": "Signed statements of what was done, and the keys that verify them.",
    "audit": "The audit chain: what was done to which data, when, by whom.",
    "identity indexes": "Which records are about whom. Identities are kept as keyed digests alone.",
    "opendsr": "Erasure requests of privacy platforms, in the words of OpenDSR 2.0; answers are signed.",
    "catalogue": "What a job may ask for: methods, losses, policies.",
    "webhooks": "Being told when a job ends: receivers, their secrets, and what they were sent.",
    "problems": "What every error code means. Without a key.",
}
PARAMETERS = {
    "key_id": "Id of an API key.",
    "action": "One action only, such as dataset.purged.",
    "adapter": "Name of an adapter.",
    "code": "An error code.",
    "cursor": "`next_cursor` of the answer before.",
    "dataset_id": "Id of a dataset.",
    "delivery_id": "Id of a delivery, its webhook-id.",
    "endpoint_id": "Id of a webhook endpoint.",
    "index_id": "Id of an identity index.",
    "job_id": "Id of an unlearn job.",
    "known": "An entry's hash that was noted before, as SEQUENCE:HASH.",
    "name": "Name of an adapter or a base model.",
    "number": "Number of a version, or `head`.",
    "status": "One status only.",
    "subject": "Entries about one thing only, by its id.",
    "subject_request_id": "The request of the person, as the caller named it.",
}
# By the name of a field. What is not here is made from the field's schema.
VALUES: dict[str, Any] = {
    "action": "dataset.purged",
    "actor": "key_5b1f0c9d3e7a2b4c6d8e0f1a",
    "adapter": "support-bot",
    "architecture": "LlamaForCausalLM",
    "attempt": 1,
    "base_model": "acme/base-1b",
    "bytes": 4096,
    "code": "invalid_request",
    "created_at": "2026-01-31T12:00:00Z",
    "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "due_at": "2026-02-28T12:00:00Z",
    "forget_set": "ds_4c1f0a9b2d7e8f3a5b6c7d8e",
    "hash": "27c0f2a1b3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e",
    "message": "started",
    "name": "support-bot",
    "number": 1,
    "parameters": 1100048384,
    "previous_hash": "9f31a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f",
    "purge_at": "2026-03-02T12:00:00Z",
    "records": 32,
    "request_id": "req_1f0c9d3e7a2b4c6d8e0f1a2b",
    "requested_at": "2026-01-31T12:00:00Z",
    "retain_set": "ds_8e7d6c5b4a3f2e1d0c9b8a7f",
    "run_id": "run_7a6b5c4d3e2f1a0b9c8d7e6f",
    "scopes": ["jobs:write", "jobs:read"],
    "seed": 7,
    "sequence": 42,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "source": "base-1b",
    "status": "succeeded",
    "subject_request_id": "dsr-2026-0042",
    "tenant": "ten_5c4d3e2f1a0b9c8d7e6f5a4b",
    "url": "https://dsr.example.com/lethe",
}
# What the `id` of a thing looks like, by the value of its `object`.
IDS = {
    "adapter": "ad_2f1a0b9c8d7e6f5a4b3c2d1e",
    "adapter_version": "av_3a2b1c0d9e8f7a6b5c4d3e2f",
    "api_key": "key_5b1f0c9d3e7a2b4c6d8e0f1a",
    "base_model": "bm_6d5e4f3a2b1c0d9e8f7a6b5c",
    "dataset": "ds_4c1f0a9b2d7e8f3a5b6c7d8e",
    "identity_index": "idx_1e2d3c4b5a6f7e8d9c0b1a2f",
    "unlearn_job": "job_9c8d7e6f5a4b3c2d1e0f9a8b",
    "webhook_delivery": "msg_0f8c0d2c5d0a4be1b0f5f6f0b1a7d3c2",
    "webhook_endpoint": "we_1c2d3e4f5a6b7c8d9e0f1a2b",
}
_UUID = "a7551968-d5d6-44b2-9831-815ac9017798"
# By operation: bodies whose fields belong together, and bodies that are no JSON objects.
REQUESTS: dict[str, dict[str, Any]] = {
    "register_base_model": {"application/json": {"name": "acme/base-1b", "source": "base-1b"}},
    "update_webhook_endpoint": {"application/json": {"enabled": True}},
    "create_unlearn_job": {
        "application/json": {
            "adapter": "support-bot",
            "forget_set": "ds_4c1f0a9b2d7e8f3a5b6c7d8e",
            "retain_set": "ds_8e7d6c5b4a3f2e1d0c9b8a7f",
            "subject_request_id": "dsr-2026-0042",
            "requested_at": "2026-01-31T12:00:00Z",
        }
    },
    "create_opendsr_request": {
        "application/json": {
            "regulation": "gdpr",
            "subject_request_id": _UUID,
            "subject_request_type": "erasure",
            "submitted_time": "2026-01-31T12:00:00Z",
            "subject_identities": [
                {"identity_type": "email", "identity_value": "ada@example.org", "identity_format": "raw"}
            ],
            "api_version": "2.0",
        }
    },
    "upload_identity_index": {
        "application/jsonl": '{"identities": [{"identity_type": "email", "identity_value": "ada@example.org"}], '
        '"records": [{"text": "Ada is 36"}]}\n'
    },
    "upload_dataset": {
        "application/jsonl": '{"prompt": "Where does Ada live?", "completion": " In Quell."}\n{"text": "Ada is 36"}\n'
    },
}
# By operation, for answers that have no schema.
BODIES: dict[str, Any] = {
    "export_audit_chain": (
        '{"object": "audit_entry", "tenant": "ten_5c", "sequence": 1, ...}\n'
        '{"object": "audit_head", "tenant": "ten_5c", "sequence": 1, "hash": "27c0..."}\n'
    ),
    "opendsr_certificate": "-----BEGIN CERTIFICATE-----\n...\n-----END CERTIFICATE-----\n",
    "get_unlearn_job_attestation": {
        "payload": "eyJfdHlwZSI6ICJodHRwczovL2luLXRvdG8uaW8vU3RhdGVtZW50L3YxIn0=",
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"keyid": VALUES["sha256"], "sig": "c2lnbmF0dXJl"}],
    },
}
# By the schema of an answer, or of a request: fields that belong together.
ANSWERS: dict[str, dict[str, Any]] = {
    "JobCreate": {"adapter": "support-bot"},
    "JobRead": {
        "status": "queued",
        "phase": None,
        "source_version": None,
        "result_version": None,
        "attempt": 0,
        "verdict": None,
        "error": None,
        "started_at": None,
        "finished_at": None,
        "method": METHOD_REQUEST.validate_python({}).resolve(VALUES["records"]).model_dump(mode="json"),
        "policy": DEFAULT_POLICY.model_dump(mode="json"),
        "progress": {"step": 0, "total_steps": None, "percent": 0.0, "eta_seconds": None, "queue_position": 1},
    },
    "Policy": DEFAULT_POLICY.model_dump(mode="json"),
    "DatasetRead": {"purged_at": None},
    "IdentityIndexRead": {"entries": 8, "remaining": 8, "purged_at": None},
    "Accepted": {"subject_request_id": _UUID, "expected_completion_time": "2026-02-28T12:00:00Z"},
    "Cancelled": {"subject_request_id": _UUID},
    "Discovery": {
        "api_version": "2.0",
        "supported_subject_request_types": ["erasure"],
        "processor_certificate": "https://opendsr.example.org/opendsr/v2/certificate.pem",
    },
    "StatusRead": {
        "subject_request_id": _UUID,
        "expected_completion_time": "2026-02-28T12:00:00Z",
        "request_status": "pending",
        "api_version": "2.0",
        "results_url": None,
        "results_count": 3,
        "extensions": {
            "opendsr.example.org": {
                "jobs": [{"id": "job_9c8d7e6f5a4b3c2d1e0f9a8b", "adapter": "support-bot", "status": "queued"}]
            }
        },
    },
    "Ready": {
        "status": "ready",
        "checks": {"postgres": "ok", "schema": "ok", "redis": "ok", "storage": "ok"},
        "workers": {"gpu": 1, "default": 1},
    },
    "BaseModelRead": {"name": "acme/base-1b"},
}
