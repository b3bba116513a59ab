"""Answering a repeated request as the first one was answered."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from http import HTTPStatus

from fastapi import Response

from app.idempotency.key import POINTER, read_key
from app.idempotency.repository import AcceptedRequestRepository, Answer
from app.kit.driver import Asked
from app.kit.problems import FieldError, Problem
from app.settings import Settings

REPLAYED = "Idempotency-Replayed"


class KeyInUse(Problem):
    """The first request under an idempotency key has not been answered yet."""

    status, code = HTTPStatus.CONFLICT, "idempotency_key_in_use"


class KeyReused(Problem):
    """An idempotency key came with another request than before."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "idempotency_key_reused"


class Once:
    """One request under an idempotency key, or under none: then nothing is kept and nothing found.

    Questions and their answers are apart, so that a caller may ask several things together (app.kit.driver).
    """

    def __init__(self, accepted: AcceptedRequestRepository, settings: Settings, header: str | None) -> None:
        self._accepted = accepted
        self._settings = settings
        self._key = self._digest("key", read_key(header).encode()) if header is not None else None
        self._request = b""
        self._claim: Asked | None = None
        self._kept: Asked | None = None

    async def claim(self, request: bytes) -> None:
        """Claim the key for a request, which is given whole and in a canonical form: a keyed digest of it is kept."""
        if self._key is not None:
            self._request = self._digest("request", request)
            self._claim = await self._accepted.claim(self._key)

    async def first_answer(self) -> Response | None:
        """What the request that was claimed for was answered before; None when it is the first.

        Raises:
            KeyInUse: the first request under this key is still being answered.
            KeyReused: another request was accepted under this key.
        """
        if self._claim is None:
            return None
        alone, before = await self._accepted.claimed(self._claim)
        if before is not None:
            if before.request_digest != self._request:
                why = "was used for another request; take a new key"
                raise KeyReused(f"{POINTER}: {why}", errors=[FieldError(POINTER, why)])
            return _response(Answer(before.status, before.location, before.body), replayed=True)
        if not alone:
            raise _in_use()
        return None

    async def keep(self, answer: Answer) -> None:
        """Keep the answer of the first request, in its transaction."""
        if self._key is not None:
            lifetime = timedelta(hours=self._settings.idempotency_hours)
            self._kept = await self._accepted.add(self._key, self._request, answer, lifetime)

    async def give(self, answer: Answer) -> Response:
        """The answer that was kept. Raises KeyInUse."""
        if self._kept is not None and await self._kept.one() is None:
            raise _in_use()
        return _response(answer, replayed=False)

    def _digest(self, purpose: str, value: bytes) -> bytes:
        pepper = self._settings.pepper[:64]
        return hashlib.blake2b(value, key=pepper, person=purpose.encode(), digest_size=32).digest()


def _response(answer: Answer, *, replayed: bool) -> Response:
    headers = {"Location": answer.location, **answer.headers} | ({REPLAYED: "true"} if replayed else {})
    return Response(answer.body, answer.status, headers, media_type="application/json")


def _in_use() -> KeyInUse:
    return KeyInUse(
        "a request with this Idempotency-Key is being accepted; repeat this one", headers={"Retry-After": "1"}
    )
