"""What is tried after a failed gate."""

from __future__ import annotations

import pytest

from app.methods import METHOD, Method, ProbeName
from worker.escalation import MAX_STEPS, next_method
from worker.evaluation.checks import Gate, Value, at_most

METHODS = ["blur", "weighted_sum", "forget_upper", "pdu"]


def method(**knobs: object) -> Method:
    return METHOD.validate_python({"type": "blur", "gamma": 0.5, "steps": 100, **knobs})


def failed(*probes: ProbeName) -> Gate:
    return Gate.of([at_most(probe, "x", "words", Value(1.0, 1), 0.0) for probe in probes])


def test_gamma_is_doubled_first() -> None:
    changed, words = next_method(method(), 1, failed("recall", "utility"))
    assert changed == method(gamma=1.0)
    assert words == "gamma doubled"


def test_then_another_loss_for_longer() -> None:
    changed, words = next_method(method(gamma=1.0), 2, failed("rephrasing"))
    assert (changed.forget_loss.type, changed.steps) == ("ceu", 200)
    assert "ceu" in words


def test_a_longer_training_in_cycles_does_not_end_within_a_rehearsal() -> None:
    cycles = {"type": "cycles", "forget_steps": 3, "rehearsal_steps": 5}
    changed, _ = next_method(method(schedule=cycles, steps=19), 2, failed("recall"))  # three cycles, then three steps
    assert changed.steps == 4 * 8 + 3
    unchanged, _ = next_method(method(schedule=cycles, steps=MAX_STEPS), 2, failed("recall"))
    assert unchanged.steps == MAX_STEPS


def test_a_loss_is_never_replaced_by_itself() -> None:
    changed, _ = next_method(method(forget_loss={"type": "ceu"}), 2, failed("recall"))
    assert changed.forget_loss.type == "npo"


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_where_too_little_was_kept_it_goes_gentler_and_longer(tries: int) -> None:
    changed, words = next_method(method(), tries, failed("utility"))
    assert changed == method(gamma=0.25, steps=200)
    assert "too much was changed" in words


@pytest.mark.parametrize(
    ("probe", "name", "words", "gentler"),
    [
        ("recall", "forget_nll_excess", "x", True),
        ("membership", "membership_auc_distance", "forgotten records are too little known", True),
        ("membership", "membership_auc_distance", "forgotten records are too well known", False),
        ("recall", "forget_probability", "x", False),
        ("integrity", "integrity_violations", "byte for byte the source's", False),
    ],
)
def test_over_forgetting_is_not_answered_by_forgetting_harder(
    probe: ProbeName, name: str, words: str, *, gentler: bool
) -> None:
    gate = Gate.of([at_most(probe, name, words, Value(1.0, 1), 0.0)])
    changed, _ = next_method(method(), 1, gate)
    assert changed.gamma == (0.25 if gentler else 1.0)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("tries", [1, 2, 3])
def test_every_method_can_go_on_within_its_bounds(kind: str, tries: int) -> None:
    knobs = {"gamma": 900.0} if kind != "pdu" else {}
    asked = METHOD.validate_python({"type": kind, "steps": MAX_STEPS - 1, **knobs})
    changed, words = next_method(asked, tries, failed("recall"))
    assert changed.steps <= MAX_STEPS
    assert words
    assert not words.endswith(", ")
    assert kind != "pdu" or changed != asked, "it has no gamma to change"


def test_with_the_levels_swapped_gamma_is_the_weight_of_retaining() -> None:
    changed, words = next_method(method(type="forget_upper"), 1, failed("recall"))
    assert changed == method(type="forget_upper", gamma=0.25)
    assert words == "gamma halved"


def test_steps_beyond_the_most_are_left_as_they_are() -> None:
    changed, _ = next_method(method(steps=5000), 2, failed("recall"))
    assert changed.steps == 5000
