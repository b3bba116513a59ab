"""Making, rotating and revoking API keys."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from app.auth.keys import key_hash, new_key
from app.auth.repository import ApiKeyRepository
from app.auth.schemas import ApiKeyCreate, ApiKeyRead, ApiKeyWithSecret
from app.auth.scopes import ADMIN, allows
from app.auth.tables import ApiKey
from app.kit.ids import new_id
from app.kit.problems import Conflict, Forbidden, NotFound, invalid_field


class ApiKeyService:
    """API keys of one tenant.

    Args:
        granted: the scopes of the caller, who cannot give away more.
    """

    def __init__(self, repository: ApiKeyRepository, tenant_id: str, granted: Collection[str], pepper: bytes) -> None:
        self._repository = repository
        self._tenant_id = tenant_id
        self._granted = granted
        self._pepper = pepper

    async def create(self, wanted: ApiKeyCreate) -> ApiKeyWithSecret:
        """Make a key.

        Raises:
            Forbidden: the caller does not have every scope that the key should get.
            Invalid: it would have expired already.
        """
        missing = [scope for scope in wanted.scopes if not allows(self._granted, [scope])]
        if missing:
            raise Forbidden(f"you cannot grant {' '.join(missing)}, which your own key lacks")
        if wanted.expires_at is not None and wanted.expires_at <= datetime.now(UTC):
            raise invalid_field("/expires_at", "must lie in the future")
        secret = new_key()
        key = ApiKey(
            id=new_id("key"),
            tenant_id=self._tenant_id,
            name=wanted.name,
            hash=key_hash(secret, self._pepper),
            scopes=wanted.scopes,
            expires_at=wanted.expires_at,
        )
        await self._repository.add(key)
        return _with_secret(key, secret)

    async def get(self, key_id: str) -> ApiKey:
        """The key with that id. Raises NotFound."""
        return _found(await self._repository.by_id(key_id))

    async def revoke(self, key_id: str) -> ApiKey:
        """End a key at once. Repeating it does no harm.

        Raises:
            NotFound: no such key.
            Conflict: nobody could make keys any more.
        """
        # Two admins that revoke each other at the same time must not both succeed.
        await self._repository.lock_all()
        key = _found(await self._repository.by_id(key_id, lock=True))
        if key.revoked_at is not None:
            return key
        if ADMIN in key.scopes and not await self._repository.has_other_admin(key.id):
            raise Conflict("this is the last live key with the scope admin; make another one first")
        await self._repository.revoke(key)
        return key

    async def rotate(self, key_id: str, grace: timedelta) -> ApiKeyWithSecret:
        """Give a key a new secret; the old one stays good for `grace`.

        Raises:
            NotFound: no such key.
            Conflict: it is revoked or has expired.
        """
        key = _found(await self._repository.by_id(key_id, lock=True))
        if not await self._repository.is_live(key):
            raise Conflict("the key is revoked or has expired; make a new one")
        secret = new_key()
        await self._repository.rotate(key, key_hash(secret, self._pepper), grace)
        return _with_secret(key, secret)


def present(key: ApiKey) -> ApiKeyRead:
    """The outside view."""
    return ApiKeyRead.model_validate(key, from_attributes=True)


def _with_secret(key: ApiKey, secret: str) -> ApiKeyWithSecret:
    return ApiKeyWithSecret(**present(key).model_dump(), key=secret)


def _found(key: ApiKey | None) -> ApiKey:
    if key is None:
        raise NotFound("there is no API key with this id; GET /api-keys lists them")
    return key
