"""Bearer tokens of an OpenID Connect provider, as an alternative to API keys."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

import jwt
import structlog
from jwt.exceptions import PyJWTError

from app.auth.jwks import ALGORITHMS, KeySet
from app.auth.scopes import SCOPES, Scope
from app.settings import Settings

MAX_TOKEN = 16 * 1024
# Seconds by which two clocks may differ.
LEEWAY = 30
# Tokens without an end, or for whomever, are refused. `nbf` is checked where it is there: many providers send none.
REQUIRED = ["exp", "iat", "iss", "aud", "sub"]
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Identity:
    """Who a token stands for.

    Attributes:
        id: how the audit chain names the caller: a keyed digest, for a subject may be an e-mail address.
        tenant: the name of the tenant.
    """

    id: str
    tenant: str
    scopes: list[Scope]


class TokenVerifier:
    """Verifies the tokens of one issuer for one audience (RFC 9068, RFC 8725)."""

    def __init__(self, settings: Settings, keys: KeySet) -> None:
        self._settings = settings
        self._keys = keys

    @classmethod
    def of(cls, settings: Settings) -> TokenVerifier | None:
        """The one that is set; None where there is none."""
        return cls(settings, KeySet(settings.oidc_issuer)) if settings.oidc_issuer else None

    async def verify(self, token: str) -> Identity | None:
        """Who the token stands for; None when it is refused, for a reason that the log gives.

        Raises:
            Unavailable: the provider's keys are not known.
        """
        try:
            claims = await self._claims(token)
        except PyJWTError as error:
            # The type alone: messages may quote the token.
            log.info("token refused", reason=type(error).__name__)
            return None
        return self._identity(claims)

    async def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN:
            raise jwt.DecodeError
        header = jwt.get_unverified_header(token)
        # Before the key is asked for: a token that cannot be right makes no request.
        if header.get("alg") not in ALGORITHMS:
            raise jwt.InvalidAlgorithmError
        key_id = header.get("kid")
        key = await self._keys.key(key_id) if isinstance(key_id, str) else None
        if key is None:
            raise jwt.InvalidKeyError
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=ALGORITHMS,
            audience=self._settings.oidc_audience,
            issuer=self._settings.oidc_issuer,
            leeway=LEEWAY,
            options={"require": REQUIRED},
        )
        return claims

    def _identity(self, claims: dict[str, Any]) -> Identity | None:
        tenant, granted = claims.get(self._settings.oidc_tenant_claim), claims.get(self._settings.oidc_scope_claim)
        names = granted.split() if isinstance(granted, str) else granted
        if not isinstance(tenant, str) or not isinstance(names, list):
            log.info("token refused", reason="it lacks the tenant or the scopes")
            return None
        prefix = self._settings.oidc_scope_prefix
        return Identity(self._actor(claims), tenant, [scope for scope in SCOPES if prefix + scope in names])

    def _actor(self, claims: dict[str, Any]) -> str:
        subject = f"oidc\0{claims['iss']}\0{claims['sub']}".encode()
        return "oidc:" + hmac.digest(self._settings.pepper, subject, hashlib.sha256).hex()[:32]
