"""Turns what a caller wrote into what a job stores."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from app.jobs.schemas import JobCreate
from app.kit.problems import FieldError, Invalid, invalid_field, invalid_fields
from app.methods import AUDIT_POLICY, DEFAULT_POLICY, LIMITS, NEED_NEVER_SEEN, POLICIES, Policy

_TRAINING = "training_"
_LOWER_IS_STRICTER = "max_"
# More or fewer trainings, or a training anew, make a verdict neither stricter nor looser.
_FREE = ("max_attempts", "exact_if_cheaper_than")
_OWN = ("version", "description")
TIGHTENED, BASE_KNOWS = ".tightened", ".base_knows"


def policy(wanted: str | dict[str, Any], *, require_approval: bool = False, base_knows: bool = False) -> Policy:
    """The policy of that name, or one with thresholds tightened and probes added.

    Args:
        require_approval: whatever the policy says of approval, the job needs it.
        base_knows: the base model itself knows the records, so that no model is there which never saw them: limits
            that need one are null, and the policy's name says so.

    Raises:
        Invalid: an unknown name or threshold, one that is looser than the named policy's, or one that needs a model
            that never saw the records where there is none.
    """
    if base_knows and isinstance(wanted, dict):
        _refuse_comparisons(wanted)
    found = _named(wanted, "/policy") if isinstance(wanted, str) else _tightened(wanted)
    changes: dict[str, Any] = {"requires_approval": True} if require_approval else {}
    if base_knows:
        changes |= {**dict.fromkeys(NEED_NEVER_SEEN), "name": f"{found.name}{BASE_KNOWS}"}
    return found.model_copy(update=changes)


def _refuse_comparisons(wanted: dict[str, Any]) -> None:
    why = "needs a model that never saw the records; here the base model knows them"
    if errors := [FieldError(f"/policy/{key}", why) for key in NEED_NEVER_SEEN if wanted.get(key) is not None]:
        raise invalid_fields(errors)


def _tightened(wanted: dict[str, Any]) -> Policy:
    name = wanted.get("name", DEFAULT_POLICY.name)
    base = _named(name, "/policy/name")
    changes = {key: value for key, value in wanted.items() if key != "name"}
    if not changes:
        return base
    own = [FieldError(f"/policy/{key}", "is the service's to give") for key in _OWN if key in changes]
    if own:
        raise invalid_fields(own)
    try:
        tightened = Policy.model_validate({**base.model_dump(), **changes, "name": f"{base.name}{TIGHTENED}"})
        # A limit that nothing measures would be a promise that nothing keeps.
        needed = [LIMITS[key] for key in changes if key in LIMITS and changes[key] is not None]
        tightened = tightened.model_copy(update={"probes": tuple(dict.fromkeys((*tightened.probes, *needed)))})
    except ValidationError as error:
        items = error.errors(include_input=False, include_url=False)
        errors = [FieldError(f"/policy/{'/'.join(map(str, item['loc']))}", str(item["msg"])) for item in items]
        raise invalid_fields(errors) from None
    loosened = [FieldError(f"/policy/{key}", why) for key in changes if (why := _looser(key, tightened, base))]
    if loosened:
        raise invalid_fields(loosened)
    return tightened


def wants_holdout(wanted: str | dict[str, Any]) -> bool:
    """Whether a caller asked for a verdict on membership, which nothing can be said of without a holdout set.

    The default policy judges membership where there is one, and says where there was none.
    """
    name = wanted if isinstance(wanted, str) else wanted.get("name", DEFAULT_POLICY.name)
    return name == AUDIT_POLICY.name or (isinstance(wanted, dict) and "max_membership_auc_distance" in wanted)


def _named(name: object, pointer: str) -> Policy:
    if not isinstance(name, str) or name not in POLICIES:
        raise invalid_field(pointer, f"no such policy; there are {', '.join(POLICIES)} (GET /policies)")
    return POLICIES[name]


def canonical(request: JobCreate) -> bytes:
    """A request as it was sent, in one form for all orders of its fields. Raises Invalid."""
    try:
        # As it was sent: a default that changes later must not make a repeated request another one.
        sent = request.model_dump(mode="json", exclude_unset=True)
    except ValueError:
        raise Invalid("the request is nested too deeply, or holds half a surrogate pair") from None
    return json.dumps(sent, sort_keys=True, separators=(",", ":")).encode()


def _looser(key: str, wanted: Policy, base: Policy) -> str | None:
    """Why a change would make the policy looser, or None where it does not."""
    if key in _FREE:
        return None
    if key == "probes":
        missing = [probe for probe in base.probes if probe not in wanted.probes]
        return f"may only be added to; {', '.join(missing)} missing" if missing else None
    value, limit = getattr(wanted, key), getattr(base, key)
    if limit is None:
        return None
    stricter = value is not None and (
        value <= limit if key.removeprefix(_TRAINING).startswith(_LOWER_IS_STRICTER) else value >= limit
    )
    return None if stricter else f"may only be stricter than {limit}"
