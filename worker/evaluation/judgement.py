"""The verdict on a result: every probe that the policy names, and the gate over all their checks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from app.methods import PROBES as ORDER
from app.methods import ProbeName
from worker.evaluation.battery import PROBES
from worker.evaluation.battery.base import Cost, Found, Measure, ModelName, NotApplicable, Probe
from worker.evaluation.battery.recall import forget_checks
from worker.evaluation.checks import Check, Gate
from worker.evaluation.evaluate import SetScores
from worker.evaluation.loaded import LoadedSubject


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found, or why it did not look.

    Attributes:
        name, cost, title: of the probe.
        measured: False where it did not apply; the note says why.
        note: empty where the numbers speak for themselves.
        seconds: that it took.
        measures: its numbers.
    """

    name: ProbeName
    title: str
    cost: Cost
    measured: bool
    note: str
    seconds: float
    measures: tuple[Measure, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """Everything that was measured of a result.

    Attributes:
        scores: recall by model, then by set, with the scores of single records.
        gate: verdict and checks.
        probes: reports, in the order of the battery.
        known_before: whether the source showed the forget set at all. Where it did not, passing says little.
        control_knows: whether the control shows it too. It was then not taken as a reference.
    """

    scores: dict[ModelName, dict[str, SetScores]]
    gate: Gate
    probes: tuple[ProbeReport, ...]
    known_before: bool
    control_knows: bool = False


def judge(subject: LoadedSubject, on_probe: Callable[[ProbeName], None] = lambda _name: None) -> Judgement:
    """Run the battery.

    Args:
        subject: models and records.
        on_probe: called before each probe.
    """
    reports: list[ProbeReport] = []
    checks: list[Check] = []
    for name in (name for name in ORDER if name in subject.policy.probes):
        on_probe(name)
        started = time.monotonic()
        found, applies = _run(PROBES[name], subject)
        seconds = round(time.monotonic() - started, 3)
        probe = PROBES[name]
        measures = tuple(found.measures)
        reports.append(ProbeReport(name, probe.title, probe.cost, applies, found.note, seconds, measures))
        checks.extend(found.checks)
    scores = {model: dict(subject.scores(model)) for model in subject.models}
    reference = scores[subject.reference]["forget"]
    known = any(not check.passed for check in forget_checks(subject.policy, scores["source"]["forget"], reference))
    return Judgement(scores, Gate.of(checks), tuple(reports), known, subject.control_knows)


def _run(probe: Probe, subject: LoadedSubject) -> tuple[Found, bool]:
    try:
        return probe.run(subject), True
    except NotApplicable as reason:
        return Found((), (), str(reason)), False
