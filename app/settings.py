"""Everything that can be set from outside, read from ``LETHE_*`` environment variables.

Secrets have no defaults: the embedded mode makes its own at first start, a cluster must be given them.
Each setting is described in docs/operations.md.
"""

from __future__ import annotations

import base64
import os
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.datasets.schemas import Purpose
from app.kit.addresses import Policy
from app.kit.certificates import Credentials
from app.kit.crypto import KeyRing
from app.kit.signing import PrivateKey
from app.kit.urls import is_safe_url


class Settings(BaseSettings):
    """Settings of every process of the service."""

    model_config = SettingsConfigDict(env_prefix="LETHE_", frozen=True, extra="ignore")

    database_url: Annotated[SecretStr, Field(description="SQLAlchemy URL of Postgres, driver psycopg.")]
    redis_url: Annotated[SecretStr, Field(description="Redis that Celery uses as its broker.")]
    storage_dir: Annotated[Path, Field(description="Folder for datasets, adapters and archives.")]
    encryption_keys: Annotated[
        SecretStr,
        Field(description="Key-encryption keys as 'id:base64-of-32-bytes', comma separated, the first is current."),
    ]
    key_pepper: Annotated[
        SecretStr, Field(description="Base64 of 32 bytes; keys the digests of API keys and records.")
    ]
    signing_key: Annotated[
        SecretStr | None,
        Field(description="Base64 of the PKCS #8 DER of an Ed25519 private key; GPU workers sign with it."),
    ] = None
    opendsr_credentials: Annotated[
        SecretStr | None,
        Field(
            description="Base64 of PEM: an RSA private key and its certificate; OpenDSR answers are signed with it."
        ),
    ] = None
    model_roots: Annotated[
        tuple[Path, ...],
        NoDecode,
        Field(description="Folders from which base models may be registered, separated like PATH."),
    ] = ()

    max_upload_bytes: Annotated[int, Field(gt=0, description="Largest body of an upload.")] = 4 * 1024**3
    max_json_bytes: Annotated[int, Field(gt=0, description="Largest JSON body.")] = 32 * 1024**2
    max_record_bytes: Annotated[int, Field(gt=0, description="Largest single line of a dataset.")] = 1024**2
    max_records: Annotated[int, Field(gt=0, description="Most records in one dataset.")] = 10_000_000
    max_forget_tokens: Annotated[
        int, Field(gt=0, description="Most tokens in a job's forget set, by its base model's tokenizer.")
    ] = 10_000_000
    max_decompression_ratio: Annotated[
        int, Field(gt=0, description="Most bytes that one byte of a compressed upload may unpack to.")
    ] = 200
    dataset_retention_days: Annotated[int, Field(gt=0, description="Days until a dataset is purged.")] = 30
    forget_retention_days: Annotated[int | None, Field(gt=0, description="The same for forget sets alone.")] = None
    retain_retention_days: Annotated[int | None, Field(gt=0, description="The same for retain sets alone.")] = None
    holdout_retention_days: Annotated[int | None, Field(gt=0, description="The same for holdout sets alone.")] = None
    training_retention_days: Annotated[
        int | None, Field(gt=0, description="The same for training sets that no adapter holds.")
    ] = None
    superseded_grace_days: Annotated[
        int, Field(ge=0, description="Days after which the bytes of a superseded version are deleted.")
    ] = 30

    idempotency_hours: Annotated[int, Field(gt=0, le=8760, description="How long an Idempotency-Key is known.")] = 24
    require_approval: Annotated[bool, Field(description="Every job waits for approval by another API key.")] = False
    due_soon_days: Annotated[
        int, Field(ge=1, le=28, description="Days before a deadline that it counts as near.")
    ] = 7

    webhook_allow_private: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="Networks and host names that webhooks may reach although they are not public."),
    ] = ()
    webhook_log_days: Annotated[
        int, Field(gt=0, description="Days for which ended deliveries of webhooks are kept.")
    ] = 30
    identity_index_retention_days: Annotated[
        int, Field(gt=0, description="Days until an identity index is purged.")
    ] = 90

    rate_limit: Annotated[str, Field(description="Reads per API key, such as '1200/minute'; empty is no limit.")] = (
        "1200/minute"
    )
    rate_limit_writes: Annotated[str, Field(description="Other requests per API key.")] = "600/minute"
    rate_limit_guesses: Annotated[str, Field(description="Wrong API keys per client address.")] = "60/minute"
    max_live_jobs: Annotated[int, Field(gt=0, description="Most jobs of a tenant that are queued or running.")] = 1000
    max_event_streams: Annotated[int, Field(ge=0, description="Most open event streams of an API process.")] = 200
    max_tenant_event_streams: Annotated[int, Field(ge=0, description="The same, for a single tenant.")] = 50

    oidc_issuer: Annotated[
        str | None, Field(description="Issuer whose bearer tokens are taken beside API keys, an https URL.")
    ] = None
    oidc_audience: Annotated[str | None, Field(description="What tokens must name as their audience.")] = None
    oidc_tenant_claim: Annotated[str, Field(description="Claim that holds the tenant's name.")] = "tenant"
    oidc_scope_claim: Annotated[str, Field(description="Claim that holds scopes, as a list or with blanks.")] = (
        "scope"
    )
    oidc_scope_prefix: Annotated[str, Field(description="What stands before our scopes in that claim.")] = ""

    lease_seconds: Annotated[int, Field(ge=3, description="How long a claim on a run holds without a heartbeat.")] = (
        60
    )
    heartbeat_seconds: Annotated[float, Field(gt=0, description="Time between two renewals of the lease.")] = 10.0
    max_lost_workers: Annotated[int, Field(ge=0, description="Lost workers per run before it is given up.")] = 3
    torch_threads: Annotated[
        int,
        Field(ge=0, description="CPU threads of a worker's torch; 0 takes half of the cores, at least one."),
    ] = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="Where a worker computes.")] = (
        "auto"
    )
    four_bit: Annotated[bool, Field(description="Hold base models in four bits, through bitsandbytes.")] = False
    spread_model: Annotated[bool, Field(description="Spread base models over all of a worker's devices.")] = False
    checkpoint_seconds: Annotated[float, Field(gt=0, description="Time between two checkpoints of training.")] = 60.0
    probe_seconds: Annotated[
        float, Field(gt=0, description="Longest time that one probe of an evaluation may take before the job fails.")
    ] = 4 * 3600.0
    evaluation_records: Annotated[
        int,
        Field(gt=0, description="Most records of a retain or holdout set that are evaluated, a seeded sample."),
    ] = 400

    @field_validator("model_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value

    @field_validator("webhook_allow_private", mode="before")
    @classmethod
    def _split_allowed(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in (piece.strip() for piece in value.split(",")) if part)
        return value

    @field_validator("webhook_allow_private")
    @classmethod
    def _names_places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Policy.parse(value)
        return value

    @field_validator("rate_limit", "rate_limit_writes", "rate_limit_guesses")
    @classmethod
    def _is_rate(cls, value: str) -> str:
        # Loaded here: commands that limit nothing start without it.
        from limits import parse as parse_rate

        if value:
            try:
                parse_rate(value)
            except ValueError:
                raise ValueError("must be a rate such as '1200/minute', or empty") from None
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _safe_issuer(cls, value: str | None) -> str | None:
        if value is not None and (not is_safe_url(value) or {"?", "#"} & set(value)):
            raise ValueError("must be an https URL without query and fragment")
        return value

    @model_validator(mode="after")
    def _names_its_audience(self) -> Settings:
        if self.oidc_issuer is not None and not self.oidc_audience:
            raise ValueError("LETHE_OIDC_ISSUER needs LETHE_OIDC_AUDIENCE: tokens for others must be refused")
        return self

    @field_validator("database_url")
    @classmethod
    def _postgres_only(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith("postgresql+psycopg://"):
            raise ValueError("must start with postgresql+psycopg://")
        return value

    @model_validator(mode="after")
    def _renews_in_time(self) -> Settings:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("LETHE_HEARTBEAT_SECONDS must be at most half of LETHE_LEASE_SECONDS")
        return self

    @field_validator("key_pepper")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if len(base64.b64decode(value.get_secret_value(), validate=True)) < 32:
            raise ValueError("must be base64 of at least 32 random bytes")
        return value

    @field_validator("encryption_keys")
    @classmethod
    def _parsable(cls, value: SecretStr) -> SecretStr:
        KeyRing.parse(value.get_secret_value())
        return value

    @field_validator("signing_key")
    @classmethod
    def _signs(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            PrivateKey.parse(value.get_secret_value())
        return value

    @field_validator("opendsr_credentials")
    @classmethod
    def _speaks(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        Credentials.parse(value.get_secret_value())
        return value

    @cached_property
    def key_ring(self) -> KeyRing:
        """The key-encryption keys."""
        return KeyRing.parse(self.encryption_keys.get_secret_value())

    @cached_property
    def outbound(self) -> Policy:
        """Where webhooks and other callbacks may go."""
        return Policy.parse(self.webhook_allow_private)

    @cached_property
    def signer(self) -> PrivateKey | None:
        """The key that signs attestations; None in a process that was given none, because it signs nothing."""
        return PrivateKey.parse(self.signing_key.get_secret_value()) if self.signing_key is not None else None

    def retention_days(self, purpose: Purpose) -> int:
        """Days until a dataset of that purpose is purged, at the latest."""
        own: dict[Purpose, int | None] = {
            "forget": self.forget_retention_days,
            "retain": self.retain_retention_days,
            "holdout": self.holdout_retention_days,
            "training": self.training_retention_days,
        }
        return own[purpose] or self.dataset_retention_days

    @cached_property
    def opendsr(self) -> Credentials | None:
        """What OpenDSR answers are signed with; None where OpenDSR is off."""
        given = self.opendsr_credentials
        return Credentials.parse(given.get_secret_value()) if given is not None else None

    @cached_property
    def pepper(self) -> bytes:
        """The secret that keys digests of API keys and records."""
        return base64.b64decode(self.key_pepper.get_secret_value())


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once from the environment."""
    return Settings()
