"""Turns what a caller wrote into what a job stores."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import ValidationError

from app.jobs.schemas import JobCreate
from app.kit.problems import FieldError, Invalid, invalid_field, invalid_fields
from app.methods import POLICIES, Policy

_TRAINING = "training_"
_LOWER_IS_STRICTER = "max_"


def policy(wanted: str | dict[str, Any]) -> Policy:
    """The policy of that name, or the default with thresholds tightened.

    Raises:
        Invalid: an unknown name or threshold, or one that is looser than the default's.
    """
    if isinstance(wanted, str):
        if wanted not in POLICIES:
            raise invalid_field("/policy", f"no such policy; there are {', '.join(POLICIES)} (GET /policies)")
        return POLICIES[wanted]
    base = POLICIES["default"]
    if {"name", "version"} & set(wanted):
        raise invalid_field("/policy", "give thresholds only; a tightened policy is named by the service")
    try:
        tightened = Policy.model_validate({**base.model_dump(), **wanted, "name": "default.tightened"})
    except ValidationError as error:
        items = error.errors(include_input=False, include_url=False)
        errors = [FieldError(f"/policy/{'/'.join(map(str, item['loc']))}", str(item["msg"])) for item in items]
        raise invalid_fields(errors) from None
    loosened = [name for name in wanted if _looser(name, getattr(tightened, name), getattr(base, name))]
    if loosened:
        details = [
            FieldError(f"/policy/{name}", f"may only be stricter than {getattr(base, name)}") for name in loosened
        ]
        raise invalid_fields(details)
    return tightened


def request_digest(request: JobCreate, pepper: bytes) -> bytes:
    """Tells whether two requests are the same, without keeping either. Raises Invalid."""
    try:
        # As it was sent: a default that changes later must not make a repeated request another one.
        sent = request.model_dump(mode="json", exclude_unset=True)
    except ValueError:
        raise Invalid("the request is nested too deeply, or holds half a surrogate pair") from None
    canonical = json.dumps(sent, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(canonical, key=pepper[:64], digest_size=32).digest()


def _looser(name: str, value: float, limit: float) -> bool:
    return value > limit if name.removeprefix(_TRAINING).startswith(_LOWER_IS_STRICTER) else value < limit
