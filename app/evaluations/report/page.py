"""The report of an evaluation: one HTML page that needs nothing else, for people, screens and paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count as numbers_from
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from app.evaluations.report import charts, numbers, tables, wording
from app.evaluations.report.advice import advice
from app.evaluations.report.charts import Bullet, Curve, Move, Spread
from app.evaluations.report.numbers import interval, number, signed
from app.evaluations.schemas import Check, EvaluationRead, Measure, ModelName, ProbeReport, RecordRow, Training
from app.jobs.schemas import JobRead
from app.methods import PROBES, Policy, ProbeName

STYLE = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    # The one style sheet inside the page, and nothing else: no script, no image, no request, no frame.
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-store",
    "Vary": "Accept",
}
_templates = Environment(
    loader=PackageLoader("app.evaluations.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
QUESTIONS: dict[ProbeName, str] = {
    "recall": "Does the model still know the records, asked as in training?",
    "utility": "Does the model still know what was to be kept?",
}
"""For evaluations from before there were probes."""
PERSISTENCE: tuple[ProbeName, ...] = ("resurfacing", "relearning")
# How these probes call what they saw before any step.
BEFORE, NO_STEPS = "before", "0 steps"
_COLOURS: dict[ModelName, str] = {
    "base": "m-base",
    "source": "m-source",
    "control": "m-control",
    "result": "m-result",
}


def report(evaluation: EvaluationRead, job: JobRead) -> str:
    """The page.

    Args:
        evaluation: what was measured; of this version or an earlier one.
        job: the deletion request that it answers.
    """
    uids = _Uids()
    return _templates.get_template("page.html.j2").render(
        evaluation=evaluation,
        job=job,
        style=Markup(STYLE),  # noqa: S704 - our own file
        words=wording,
        numbers=numbers,
        tables=tables,
        charts=charts,
        advice=advice(evaluation),
        groups=list(_groups(evaluation, uids)),
        sets=list(_sets(evaluation, uids)),
        curves=_curves(evaluation.training, evaluation.policy, uids) if evaluation.training else [],
        persistence=_persistence(evaluation, uids),
        silent=[probe for probe in evaluation.probes if not probe.measured and not _told(probe, evaluation)],
        key_figures=list(_key_figures(evaluation)),
        limits=list(_limits(evaluation.policy)),
    )


def _told(probe: ProbeReport, evaluation: EvaluationRead) -> bool:
    """Whether the list of what was not tested already says why the probe did not apply."""
    return bool(probe.note) and any(probe.note in line for line in evaluation.not_tested)


class _Uids:
    """Names of elements, unique on a page."""

    def __init__(self) -> None:
        self._numbers = numbers_from(1)

    def new(self) -> str:
        return f"chart-{next(self._numbers)}"


@dataclass(frozen=True)
class KeyFigure:
    """A number that the verdict rests on."""

    label: str
    before: str
    after: str
    note: str


def _key_figures(evaluation: EvaluationRead) -> Iterator[KeyFigure]:
    models = evaluation.models
    before, after = models.source, models.result
    reference = getattr(models, evaluation.reference or "base")
    name = "control" if evaluation.reference == "control" else "base alone"
    for label, metric in (("Answer probability", "probability"), ("Extraction strength", "extraction_strength")):
        values = [getattr(each.forget, metric) for each in (before, after, reference)]
        yield KeyFigure(
            f"Forget set: {label.lower()}", number(values[0]), number(values[1]), f"{name} {number(values[2])}"
        )
    yield KeyFigure(
        "Retain set: answer probability",
        number(before.retain.probability),
        number(after.retain.probability),
        f"base alone {number(models.base.retain.probability)}",
    )


@dataclass(frozen=True)
class CheckRow:
    """A check as the report shows it."""

    check: Check
    words: str
    chart: Markup
    value: str
    interval: str
    limit: str
    margin: str


@dataclass(frozen=True)
class Group:
    """A probe with its checks."""

    name: ProbeName
    question: str
    report: ProbeReport | None
    checks: Sequence[CheckRow]


def _groups(evaluation: EvaluationRead, uids: _Uids) -> Iterator[Group]:
    """Probes in the order of the battery: those that ran, those with checks."""
    reports = {probe.name: probe for probe in evaluation.probes}
    for name in PROBES:
        checks = [_check_row(check, uids) for check in evaluation.gate.checks if check.probe == name]
        found = reports.get(name)
        if found or checks:
            question = found.title if found else QUESTIONS.get(name, wording.measured(name))
            yield Group(name, question, found, checks)


def _check_row(check: Check, uids: _Uids) -> CheckRow:
    drawn = Bullet(check.value, check.limit, check.comparison, check.passed, check.low, check.high)
    outcome = f"{wording.capital(wording.outcome(check))} {'Passed' if check.passed else 'Failed'}."
    return CheckRow(
        check,
        wording.capital(check.description),
        charts.bullet(uids.new(), f"{check.name} against its limit", outcome, drawn),
        wording.value_of(check),
        interval(check.low, check.high),
        f"{'≤' if check.comparison == '<=' else '≥'} {wording.limit(check)}",
        signed(check.margin),
    )


@dataclass(frozen=True)
class SetView:
    """One set before and after: means, distributions, single records."""

    name: Literal["forget", "retain", "holdout"]
    title: str
    means: tables.Means
    plots: Sequence[tuple[str, Markup]]
    spreads: Sequence[tuple[str, str]]
    records: tables.Records | None


def _sets(evaluation: EvaluationRead, uids: _Uids) -> Iterator[SetView]:
    names: tuple[Literal["forget", "retain", "holdout"], ...] = ("forget", "retain", "holdout")
    for name in names:
        found = tables.means(evaluation, name)
        if found is None:
            continue
        rows: list[RecordRow] | None = getattr(evaluation.records, name, None)
        title = wording.SETS[name]
        if not rows:
            yield SetView(name, title, found, [], [], None)
            continue
        probabilities = list(_spreads(rows, "probability"))
        plots = [("Answer probability", _histogram(uids, title, probabilities, "answer probability", 1.0))]
        if name == "forget":
            losses = list(_spreads(rows, "nll"))
            plots.append(("NLL", _histogram(uids, title, losses, "NLL, nats per token", None)))
        spreads = [(each.label, tables.spread_words(each.values)) for each in probabilities]
        yield SetView(name, title, found, plots, spreads, tables.printed_records(rows, name))


def _spreads(rows: Sequence[RecordRow], metric: str) -> Iterator[Spread]:
    for model, label in wording.MODELS.items():
        values = [getattr(score, metric) for row in rows if (score := getattr(row, model)) is not None]
        if values:
            yield Spread(label, _COLOURS[model], values)


def _histogram(uids: _Uids, title: str, rows: Sequence[Spread], axis: str, end: float | None) -> Markup:
    description = "; ".join(f"{each.label}: {tables.spread_words(each.values)}" for each in rows)
    return charts.histograms(uids.new(), f"{title}: {axis} of single records", description, rows, end, axis)


def _curves(training: Training, policy: Policy, uids: _Uids) -> list[Markup]:
    """What was to go, and what was to stay."""
    if not training.probes:
        return []
    targets, probes = policy.targets, training.probes
    forget = [
        Curve(
            "answer probability",
            "m-source",
            [(probe.step, probe.forget_probability) for probe in probes],
            targets.max_forget_probability,
        ),
        Curve(
            "extraction strength",
            "m-result",
            [(probe.step, probe.forget_extraction_strength) for probe in probes],
            targets.max_forget_extraction_strength,
        ),
    ]
    resurfaced = [(p.step, p.resurfaced_probability) for p in probes if p.resurfaced_probability is not None]
    if resurfaced:
        forget.append(Curve("answer probability after a rehearsal", "m-control", resurfaced))
    retain = [
        Curve(
            "answer probability, share of before",
            "m-result",
            [(probe.step, probe.retain_ratio) for probe in probes],
            targets.min_retain_probability_ratio,
        ),
        Curve("answer probability", "m-source", [(probe.step, probe.retain_probability) for probe in probes]),
    ]
    stop = training.kept_step
    return [
        charts.curves(uids.new(), "Forget set during training", _course(forget, stop), forget, stop, 0.0),
        charts.curves(uids.new(), "Retain set during training", _course(retain, stop), retain, stop, None),
    ]


def _course(lines: Sequence[Curve], stop: int) -> str:
    told = [f"{each.label} from {number(each.points[0][1])} to {number(each.points[-1][1])}" for each in lines]
    return f"{'; '.join(told)}. The weights of step {stop} were kept."


@dataclass(frozen=True)
class Return:
    """How much of the forget set further training brought back.

    Attributes:
        words, detail: what was measured, and after which training.
        chart: before, after and limit.
        before, after: of the result.
        interval: of what it is after.
        never_seen: of a model that never saw the records, after the same training.
        limit: None where it is not judged.
        records: sample size.
    """

    words: str
    detail: str
    chart: Markup
    before: float | None
    after: float
    interval: str
    never_seen: float | None
    limit: float | None
    records: int


@dataclass(frozen=True)
class Persistence:
    """Whether the erasure lasts, as far as it was measured."""

    rows: Sequence[Return]
    sentences: list[str]
    unknown: list[str]


def _persistence(evaluation: EvaluationRead, uids: _Uids) -> Persistence:
    rows: list[Return] = []
    sentences: list[str] = []
    unknown: list[str] = []
    reports = {probe.name: probe for probe in evaluation.probes}
    for name in PERSISTENCE:
        found = reports.get(name)
        mine = list(_returns(found, evaluation, uids)) if found and found.measured else []
        rows += mine
        if mine:
            sentences.append(wording.came_back(max(mine, key=lambda row: row.after), found.note if found else ""))
        else:
            unknown.append(wording.not_known(name, found.note if found else ""))
    return Persistence(rows, sentences, unknown)


def _returns(found: ProbeReport, evaluation: EvaluationRead, uids: _Uids) -> Iterator[Return]:
    """A row per training and metric of the result; what it was before any step goes into each."""
    limits = {check.name: check.limit for check in evaluation.gate.checks}
    values = {(each.name, each.detail, each.model): each.value for each in found.measures}
    for measure in found.measures:
        if measure.model != "result" or _untrained(measure.detail):
            continue
        before = _before(measure, values, evaluation)
        never_seen = [values.get((measure.name, measure.detail, model)) for model in ("control", "base")]
        words, limit = wording.measured(measure.name), limits.get(measure.name)
        told = f"{number(before)} before and {number(measure.value)} after the further training. {measure.detail}"
        yield Return(
            words,
            measure.detail,
            charts.move(uids.new(), words, told, Move(before, measure.value, limit)),
            before,
            measure.value,
            interval(measure.low, measure.high),
            next((value for value in never_seen if value is not None), None),
            limit,
            measure.records,
        )


def _untrained(detail: str) -> bool:
    """Whether a variant is the one before any further training."""
    return detail == BEFORE or detail.endswith(f", {NO_STEPS}")


def _before(
    measure: Measure, values: Mapping[tuple[str, str, ModelName], float], evaluation: EvaluationRead
) -> float | None:
    """The same number before any step of that training; else that of the whole forget set."""
    attacker = measure.detail.rpartition(", ")[0]
    for detail in (f"{attacker}, {NO_STEPS}", BEFORE):
        if (measure.name, detail, measure.model) in values:
            return values[measure.name, detail, measure.model]
    metric = measure.name.partition("_")[2]
    return getattr(evaluation.models.result.forget, metric) if metric in wording.METRICS else None


def _limits(policy: Policy) -> Iterator[tuple[str, str]]:
    """Every threshold of the policy."""
    thresholds = policy.model_dump(exclude={"name", "version", "description"})
    return tables.knobs(thresholds)
