"""What a run tries after its gate failed, where the policy allows another training."""

from __future__ import annotations

from typing import Any

from app.methods import METHOD, Method, place_of
from worker.evaluation.checks import Check, Gate

TOO_MUCH = ("forget_nll_excess",)
"""Checks that fail when too much was changed, beside those of utility."""
TOO_LITTLE_KNOWN = "too little known"  # what a check of membership says of records that stand out by their absence
# Losses differ in what they are slow at. One that starts fast on memorised tokens takes the place of any other.
STRONG_LOSS, OTHER_LOSS = "ceu", "npo"
MAX_GAMMA, MAX_STEPS = 1000.0, 4000


def next_method(method: Method, tries: int, gate: Gate) -> tuple[Method, str]:
    """A method that goes further in the direction in which the last one fell short.

    Args:
        method: of the last try.
        tries: how many there were.
        gate: how the last one ended.

    Returns:
        The next method, and what was changed, in words.
    """
    missed = [check for check in gate.checks if not check.passed]
    if missed and all(map(_too_much, missed)):
        changed, words = _weighted(method, forget=0.5)
        return _longer(changed), f"too much was changed: {words}twice the steps"
    if tries == 1 and method.type != "pdu":
        changed, words = _weighted(method, forget=2.0)
        return changed, words.removesuffix(", ")
    if tries <= 2:
        loss = OTHER_LOSS if method.forget_loss.type == STRONG_LOSS else STRONG_LOSS
        changed = METHOD.validate_python(method.model_dump() | {"forget_loss": {"type": loss}})
        return _longer(changed), f"forget loss {loss}, twice the steps"
    changed, words = _weighted(method, forget=2.0)
    return _longer(changed), f"{words}twice the steps"


def _too_much(check: Check) -> bool:
    """Whether a failed check asks for less change, not for more."""
    if check.probe == "membership":
        return TOO_LITTLE_KNOWN in check.description
    return check.probe == "utility" or check.name in TOO_MUCH


def _weighted(method: Method, *, forget: float) -> tuple[Method, str]:
    """Forgetting weighted so many times as heavily against retaining; the words end with a comma."""
    knobs: dict[str, Any] = method.model_dump()
    if "gamma" not in knobs:  # primal-dual: its weight follows the limit on the retain loss by itself
        return method, ""
    # With the levels swapped, gamma is the weight of retaining.
    factor = 1 / forget if method.type == "forget_upper" else forget
    gamma = min(knobs["gamma"] * factor, MAX_GAMMA)
    words = f"gamma {'doubled' if factor > 1 else 'halved'}, "
    return METHOD.validate_python(knobs | {"gamma": gamma}), words


def _longer(method: Method) -> Method:
    steps = max(method.steps, min(2 * method.steps, MAX_STEPS))
    last = place_of(steps - 1, method.schedule)
    if last.kind == "rehearsal" and steps - last.index - 1 >= method.steps:
        steps -= last.index + 1  # a rehearsal that is cut off would be the last thing that the adapter learns
    return METHOD.validate_python(method.model_dump() | {"steps": steps})
