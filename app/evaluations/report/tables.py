"""What the report's tables say: rows of words and numbers, picked from the evaluation."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.evaluations.report.numbers import ABSENT, count, interval, number, setting
from app.evaluations.report.wording import METRICS, MODELS, measured, shown
from app.evaluations.schemas import (
    EvaluationRead,
    Measure,
    ModelName,
    ModelScores,
    ProbeReport,
    RecordRow,
    SetScores,
)

MOST_RECORDS: Mapping[str, int] = {"forget": 400, "retain": 150, "holdout": 150}
"""Rows of each set that are printed; the JSON has them all."""
MOST_MEASURES = 150
LONG = 24


@dataclass(frozen=True)
class Means:
    """Means of one set, a row per metric and a column per model."""

    models: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


def scores_by_model(evaluation: EvaluationRead) -> dict[ModelName, ModelScores]:
    """The models that were measured, in the report's order."""
    found: dict[ModelName, ModelScores | None] = {name: getattr(evaluation.models, name) for name in MODELS}
    return {name: scores for name, scores in found.items() if scores is not None}


def means(evaluation: EvaluationRead, name: str) -> Means | None:
    """Of a set; None where it was not measured."""
    models = scores_by_model(evaluation)
    found: dict[ModelName, SetScores] = {
        model: each for model, scores in models.items() if (each := getattr(scores, name)) is not None
    }
    if not found:
        return None
    rows = [(words, [number(getattr(each, key)) for each in found.values()]) for key, words in METRICS.items()]
    rows.append(("Records", [count(each.records) for each in found.values()]))
    if any(each.skipped for each in found.values()):
        rows.append(("Left out, no answer", [count(each.skipped) for each in found.values()]))
    return Means([MODELS[model] for model in found], rows)


@dataclass(frozen=True)
class Cell:
    """A measured number with its interval."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Measured:
    """A measure, its cells by model."""

    name: str
    words: str
    detail: str
    cells: Sequence[Cell]
    records: str


@dataclass(frozen=True)
class ProbeTable:
    """A probe's measures; `cut` of them are not shown."""

    models: Sequence[str]
    rows: Sequence[Measured]
    cut: int

    @property
    def long(self) -> bool:
        """Whether it is better folded."""
        return len(self.rows) > LONG


def probe_table(probe: ProbeReport) -> ProbeTable:
    """One row per measure and variant, one column per model."""
    groups: dict[tuple[str, str], dict[ModelName, Measure]] = {}
    for measure in probe.measures:
        groups.setdefault((measure.name, measure.detail), {})[measure.model] = measure
    present: list[ModelName] = [name for name in MODELS if any(name in group for group in groups.values())]
    rows = [
        Measured(name, measured(name), detail, [_cell(group.get(model)) for model in present], _sizes(group.values()))
        for (name, detail), group in groups.items()
    ]
    return ProbeTable([MODELS[name] for name in present], rows[:MOST_MEASURES], max(0, len(rows) - MOST_MEASURES))


def _cell(measure: Measure | None) -> Cell:
    if measure is None:
        return Cell(ABSENT)
    return Cell(shown(measure.name, measure.value), interval(measure.low, measure.high))


def _sizes(measures: Iterator[Measure] | Any) -> str:  # noqa: ANN401 - a view of a dict's values
    sizes = sorted({measure.records for measure in measures})
    return count(sizes[0]) if len(sizes) == 1 else f"{count(sizes[0])} to {count(sizes[-1])}"


@dataclass(frozen=True)
class Records:
    """Single records of a set that are printed, and how they were chosen."""

    rows: Sequence[RecordRow]
    total: int
    control: bool

    @property
    def cut(self) -> int:
        """How many are not printed."""
        return self.total - len(self.rows)


def printed_records(rows: Sequence[RecordRow], name: str) -> Records:
    """All in their order, or of many those that matter most: the best known forgotten, the most damaged kept."""
    most = MOST_RECORDS[name]
    chosen = list(rows)
    if len(chosen) > most:
        urgency = _still_known if name == "forget" else _lost
        chosen = sorted(sorted(chosen, key=urgency, reverse=True)[:most], key=lambda row: row.record)
    return Records(chosen, len(rows), any(row.control for row in rows))


def _still_known(row: RecordRow) -> float:
    return row.result.probability


def _lost(row: RecordRow) -> float:
    return row.source.probability - row.result.probability


def spread_words(values: Sequence[float]) -> str:
    """A distribution in words, beside its chart."""
    if not values:
        return "no records"
    if len(values) == 1:
        return f"one record, {number(values[0])}"
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return (
        f"mean {number(statistics.fmean(values))}, median {number(cuts[9])}, nine in ten between {number(cuts[0])} "
        f"and {number(cuts[18])}, lowest {number(min(values))}, highest {number(max(values))}"
    )


def knobs(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting of a method or a policy with its value, those of its parts under dotted names."""
    for name, value in sorted(settings.items(), key=lambda setting: setting[0] != "type"):
        if isinstance(value, Mapping):
            yield from knobs(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _shown(value)


def _shown(value: object) -> str:
    if value is None:
        return "not judged"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return setting(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value) or ABSENT
