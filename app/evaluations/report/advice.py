"""What to change after a failed gate, derived from the checks that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.evaluations.report.numbers import setting
from app.evaluations.schemas import Check, EvaluationRead


@dataclass(frozen=True)
class Advice:
    """A cause of failure, and what may help against it: any of the remedies, the likeliest first."""

    cause: str
    reason: str
    remedies: tuple[str, ...]


def advice(evaluation: EvaluationRead) -> list[Advice]:
    """Each cause once, in the order of the checks. Empty after a passed gate."""
    if evaluation.gate.verdict == "passed":
        return []
    failed = [check for check in evaluation.gate.checks if not check.passed]
    if not failed:
        return [Advice("There was nothing to measure", "The gate passes on evidence only.", ("Name more probes.",))]
    found = list(dict.fromkeys(_cause(check, evaluation) for check in failed))
    causes = {piece.cause for piece in found}
    if {_KNOWN, _LOST} <= causes and evaluation.method.type != "retrain":
        found.insert(0, _OPPOSITE)
    return found


def _cause(check: Check, evaluation: EvaluationRead) -> Advice:
    if check.value is None:
        return Advice(
            f"{check.name} could not be measured",
            "What is not measured does not pass.",
            ("See the probe's note for what it needs: usually records with an answer in every set.",),
        )
    if evaluation.method.type == "retrain" and check.probe != "integrity":
        return _anew(check, evaluation)
    if check.name == "forget_nll_excess" or (check.probe == "membership" and _too_little_known(evaluation)):
        return _over_forgotten(evaluation)
    return _BY_PROBE[check.probe](check, evaluation)


def _too_little_known(evaluation: EvaluationRead) -> bool:
    """Whether the forget set is less known than by a model that never saw it."""
    probes = (probe for probe in evaluation.probes if probe.name == "membership")
    differences = [m.value for probe in probes for m in probe.measures if m.name == "membership_auc_difference"]
    if differences:
        return max(differences, key=abs) < 0
    models = evaluation.models
    reference = models.control if evaluation.reference == "control" and models.control else models.base
    return evaluation.models.result.forget.nll > reference.forget.nll


_KNOWN = "Too much of the forget set is left"
_LOST = "Too much was lost of what was to be kept"
_OPPOSITE = Advice(
    "Two causes pull in opposite directions",
    "Too much of the forget set is left, and too much was lost of the retain set: what helps one may hurt the other.",
    (
        "Begin with more retain records that resemble the forgotten ones, which helps both.",
        "Change one knob at a time.",
    ),
)


def _anew(check: Check, evaluation: EvaluationRead) -> Advice:
    """Of a result that was trained anew: its recipe has no knob that makes it forget more or less."""
    default = "Ask for the default method instead, which works on what the adapter shows."
    if check.name == "forget_nll_excess" or (check.probe == "membership" and _too_little_known(evaluation)):
        return Advice(
            "The forget set is less known than to the model that it is compared with",
            "So it may be for an adapter that was trained on other records alone: the comparison is not fair to it.",
            ("Name a control: an adapter that was trained alike, and never on these records.", default),
        )
    if check.probe == "utility":
        return Advice(
            _LOST,
            "The recipe did not give back what the adapter was.",
            ("Compare the recipe and the training set with the original training.", default),
        )
    return Advice(
        _KNOWN,
        "It was trained anew without these records, so that something else tells the same.",
        ("Look in the training set for the same in other words, and name those records, too.", default),
    )


def _known(_check: Check, evaluation: EvaluationRead) -> Advice:
    return Advice(_KNOWN, "It still shows in these tests.", tuple(_stronger(evaluation)))


def _stronger(evaluation: EvaluationRead) -> Iterator[str]:
    method, training = evaluation.method, evaluation.training
    gamma = getattr(method, "gamma", None)
    if gamma is not None:
        yield f"Raise gamma (now {setting(gamma)}), so that forgetting weighs more in every step."
    if training is not None and training.reason == "targets_met":
        yield (
            "Let training go on for longer: it stopped where the policy's in-training targets held. Tighten the "
            "thresholds named training_…, or set the stop rule to “steps”."
        )
    else:
        yield f"Allow more steps (now {setting(method.steps)}): training ended before the records were gone."
    other = "npo" if method.forget_loss.type == "ceu" else "ceu"
    yield f"Try another forget loss (now {method.forget_loss.type}), such as {other}."
    if evaluation.policy.max_attempts == 1:
        yield "Set the policy's max_attempts above 1: a failed gate is then followed by a stronger training."


def _over_forgotten(evaluation: EvaluationRead) -> Advice:
    anchor = "Set anchor to “base”, which keeps answers from being pushed below the base model."
    gentler = "Lower the learning rate or gamma, or allow fewer steps."
    return Advice(
        "The forget set is now too little known",
        "It is less likely than for a model that never saw it. That itself tells which records were removed.",
        (gentler,) if evaluation.method.anchor == "base" else (anchor, gentler),
    )


def _lost(check: Check, evaluation: EvaluationRead) -> Advice:
    retain = setting(evaluation.models.result.retain.records)
    gamma = getattr(evaluation.method, "gamma", None)
    remedies = [
        f"Lower the learning rate (now {setting(evaluation.method.learning_rate)}): smaller steps damage less.",
        f"Give more retain records ({retain} were measured): only what they cover is protected.",
    ]
    if gamma is not None:
        remedies.append(f"Lower gamma (now {setting(gamma)}), so that keeping weighs more in every step.")
    if check.name.startswith("neighbour"):
        reason = "The loss lies close to the forget set: add retain records on the same topics, names and questions."
    elif check.name.startswith("general"):
        reason = "The loss lies outside of both sets, in ordinary language: add plain text to the retain set."
    else:
        reason = "The retain set is no longer answered as before."
    return Advice(_LOST, reason, tuple(remedies))


def _rephrased(_check: Check, evaluation: EvaluationRead) -> Advice:
    return Advice(
        "The records still answer to other wordings",
        "The wording of the training is not the only one that brings the answers out.",
        ("Add other wordings of the records to the forget set.", *_stronger(evaluation)),
    )


def _rounded(_check: Check, evaluation: EvaluationRead) -> Advice:
    rate = setting(evaluation.method.learning_rate)
    return Advice(
        "Rounding the weights brings the records back",
        "The change of the weights is so small that rounding undoes a part of it.",
        (
            f"Raise the learning rate (now {rate}) or train for longer.",
            "Do not serve this adapter with rounded weights.",
        ),
    )


def _broken(_check: Check, _evaluation: EvaluationRead) -> Advice:
    return Advice(
        "The packaged files are not what they should be",
        "That is a fault of the service and not of the method.",
        ("Tell whoever runs the service, then retry the job.",),
    )


def _returned(_check: Check, _evaluation: EvaluationRead) -> Advice:
    return Advice(
        "Records came back that an earlier request had removed",
        "This training undid a part of that one.",
        ("Ask for both forget sets in one job.",),
    )


def _brief(_check: Check, evaluation: EvaluationRead) -> Advice:
    return Advice(
        "The forgetting does not last",
        "Further training brings the records back: they were suppressed more than removed.",
        (
            f"Train beyond the targets: stop rule “steps”, and more (now {setting(evaluation.method.steps)}).",
            "Or train the adapter anew without these records, the measure that all others are held against.",
        ),
    )


_BY_PROBE: dict[str, Callable[[Check, EvaluationRead], Advice]] = {
    "recall": _known,
    "utility": _lost,
    "rephrasing": _rephrased,
    "membership": _known,
    "quantization": _rounded,
    "integrity": _broken,
    "history": _returned,
    "resurfacing": _brief,
    "sampling": _known,
    "relearning": _brief,
}
