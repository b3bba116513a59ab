"""The verdict on a result: every probe that the policy names, and the gate over all their checks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

from app.methods import PROBES as ORDER
from app.methods import ProbeName
from worker.evaluation.battery import PROBES
from worker.evaluation.battery.base import Cost, Found, Measure, ModelName, NotApplicable, Probe
from worker.evaluation.battery.recall import forget_checks
from worker.evaluation.checks import Check, Gate, Value, at_most
from worker.evaluation.evaluate import SetScores
from worker.evaluation.loaded import LoadedSubject
from worker.evaluation.tuning import Diverged


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found, or why it did not look.

    Attributes:
        name, cost, title: of the probe.
        measured: False where it did not apply; the note says why.
        note: empty where the numbers speak for themselves.
        seconds: that it took, with what was measured ahead.
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
        reference: who stood for a model that never saw the records; None where the base model itself knows them.
        control_fits: False where a control was named that cannot be what it was named for.
    """

    scores: dict[ModelName, dict[str, SetScores]]
    gate: Gate
    probes: tuple[ProbeReport, ...]
    known_before: bool
    reference: ModelName | None
    control_fits: bool


def prepare(subject: LoadedSubject, ready: Callable[[], bool]) -> dict[ProbeName, float]:
    """Measure what does not need the result, model by model, until that is there.

    Args:
        subject: models and records; the result's files need not be there yet.
        ready: whether they are.

    Returns:
        Seconds that it took, by probe.
    """
    spent: dict[ProbeName, float] = defaultdict(float)
    for model in subject.models:
        for name in _chosen(subject):
            if model == "result" or ready():
                return spent
            started = time.monotonic()
            with suppress(NotApplicable, Diverged):  # told by the probe itself, when its turn comes
                PROBES[name].ahead(subject, model)
            spent[name] += time.monotonic() - started
    return spent


def judge(
    subject: LoadedSubject,
    on_probe: Callable[[ProbeName], None] = lambda _name: None,
    spent: Mapping[ProbeName, float] = MappingProxyType({}),
) -> Judgement:
    """Run the battery.

    Args:
        subject: models and records.
        on_probe: called before each probe.
        spent: seconds that `prepare` has taken, by probe.
    """
    reports: list[ProbeReport] = []
    checks: list[Check] = []
    for name in _chosen(subject):
        on_probe(name)
        started = time.monotonic()
        found, applies = _run(PROBES[name], subject)
        seconds = round(spent.get(name, 0.0) + time.monotonic() - started, 3)
        probe = PROBES[name]
        measures = tuple(found.measures)
        reports.append(ProbeReport(name, probe.title, probe.cost, applies, found.note, seconds, measures))
        checks.extend(found.checks)
    scores = {model: dict(subject.scores(model)) for model in subject.models}
    source = scores["source"]["forget"]
    base = None if subject.base_knows else scores["base"]["forget"]
    known = any(not check.passed for check in forget_checks(subject.policy, source, base, base))
    return Judgement(scores, Gate.of(checks), tuple(reports), known, subject.reference, subject.control_fits)


def _chosen(subject: LoadedSubject) -> list[ProbeName]:
    return [name for name in ORDER if name in subject.policy.probes]


def _run(probe: Probe, subject: LoadedSubject) -> tuple[Found, bool]:
    try:
        return probe.run(subject), True
    except NotApplicable as reason:
        return Found((), (), str(reason)), False
    except Diverged as reason:
        # What was to be judged and could not be fails; a probe that is only reported does not.
        words = "could not be measured: further training diverged"
        checks = [
            at_most(probe.name, name.removeprefix("max_"), words, Value(None, 0), limit)
            for name, limit in subject.policy.limits(probe.name)
            if limit is not None
        ]
        return Found((), checks, str(reason)), False
