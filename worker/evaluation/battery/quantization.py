"""Rounding: whether records come back when the weights are held in few bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from app.methods import ProbeName
from worker.evaluation.battery.base import Cost, Found, Measure, ModelName, NotApplicable, Subject, allowed
from worker.evaluation.checks import Check, Value, at_most, worst
from worker.evaluation.evaluate import sample_examples
from worker.evaluation.quick import Shown, all_shown
from worker.evaluation.rounding import RoundingError, Scheme, rounded_layers
from worker.unlearning.encoding import Example

METRICS = ("probability", "extraction_strength")
RETAIN_RECORDS = 32  # enough to see a model that rounding has broken
ROWS = 4  # for each of a plain pass: a pass rounds every layer, so there should be few; halved where memory runs out


@dataclass(frozen=True)
class Variant:
    """A way to serve an adapter in few bits."""

    scheme: Scheme
    merged: bool

    @property
    def title(self) -> str:
        """In a report."""
        return f"merged, then {self.scheme}" if self.merged else f"adapter on {self.scheme} base"


VARIANTS = (
    Variant("int8", merged=False),
    Variant("nf4", merged=False),
    Variant("int4", merged=False),
    Variant("int8", merged=True),
    Variant("int4", merged=True),
)


class Quantization:
    """Forgetting that is a small change of the weights may vanish in rounding (arXiv 2410.16454)."""

    name: ClassVar[ProbeName] = "quantization"
    cost: ClassVar[Cost] = "seconds"
    title: ClassVar[str] = "Do records come back when the weights are rounded to few bits?"

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Measure a model."""
        if model == "base":
            try:
                _of_base(subject)
            except RoundingError as error:
                raise NotApplicable(str(error)) from error

    def run(self, subject: Subject) -> Found:
        """Look."""
        retain = sample_examples(subject.examples("retain"), RETAIN_RECORDS, subject.seed)
        sets = {"forget": subject.examples("forget"), "retain": retain}
        try:
            result = _seen(subject, "result", sets)
            never_seen = _of_base(subject)
        except RoundingError as error:
            raise NotApplicable(str(error)) from error
        measures = [
            *_measures("quantized", "result", result["forget"]),
            *_measures("quantized", "base", never_seen["forget"]),
            *_measures("quantized_retain", "result", result["retain"], metrics=METRICS[:1]),
        ]
        note = (
            "simulated by rounding the weights of the linear layers to the nearest value and back; retain is a sample"
        )
        return Found(measures, _checks(subject, result["forget"], never_seen["forget"]), note)


def _of_base(subject: Subject) -> dict[str, dict[Variant, Shown]]:
    sets = {"forget": subject.examples("forget")}
    return subject.once(("quantization", "base"), lambda: _seen(subject, "base", sets))


def _seen(
    subject: Subject, name: ModelName, sets: Mapping[str, Sequence[Example]]
) -> dict[str, dict[Variant, Shown]]:
    """The sets under a model, rounded in every way. The base model alone has nothing to merge."""
    found: dict[str, dict[Variant, Shown]] = {of: {} for of in sets}
    with subject.model(name) as model:
        for variant in VARIANTS:
            if name == "base" and variant.merged:
                continue
            with rounded_layers(model, variant.scheme, merged=variant.merged):
                # All sets at once: a pass rounds every layer, however few records it has.
                for of, seen in all_shown(model, subject.tokenizer, sets, ROWS * subject.batch_size).items():
                    found[of][variant] = seen
    if name == "base":
        for of in sets:
            found[of] |= {v: found[of][Variant(v.scheme, merged=False)] for v in VARIANTS if v.merged}
    return found


def _measures(
    name: str, model: ModelName, found: dict[Variant, Shown], metrics: Sequence[str] = METRICS
) -> list[Measure]:
    return [
        Measure(f"{name}_{metric}", model, getattr(seen, metric), seen.records, detail=variant.title)
        for metric in metrics
        for variant, seen in found.items()
    ]


def _checks(subject: Subject, result: dict[Variant, Shown], never_seen: dict[Variant, Shown]) -> list[Check]:
    """The worst way of rounding, by either metric that has a limit."""
    policy = subject.policy
    limits = zip(METRICS, (policy.max_quantized_probability, policy.max_quantized_extraction_strength), strict=True)
    return [
        worst(
            [
                at_most(
                    "quantization",
                    f"quantized_{metric}",
                    f"mean {metric.replace('_', ' ')} on the forget set, worst way of rounding: {variant.title}",
                    Value(getattr(seen, metric), seen.records),
                    limit,
                    allowed(subject, getattr(never_seen[variant], metric)),
                )
                for variant, seen in result.items()
            ]
        )
        for metric, limit in limits
        if limit is not None
    ]
