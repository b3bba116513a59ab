"""History: what earlier requests on this adapter had removed, and whether it stayed away."""

from __future__ import annotations

from typing import ClassVar

from app.methods import ProbeName
from worker.evaluation.battery.base import Cost, Found, Measure, ModelName, NotApplicable, Subject, allowed
from worker.evaluation.checks import Value, at_most, worst

PREFIX = "history/"
"""Sets of earlier requests are called so, with the id of their job behind it."""


class History:
    """Recall of every earlier forget set whose records are still held."""

    name: ClassVar[ProbeName] = "history"
    cost: ClassVar[Cost] = "seconds"
    title: ClassVar[str] = "Did records come back that earlier requests had removed?"

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Measure a model."""
        subject.scores(model)

    def run(self, subject: Subject) -> Found:
        """Look."""
        earlier = [name for name in subject.records if name.startswith(PREFIX)]
        if not earlier:
            raise NotApplicable("no records of earlier requests on this adapter are still held")
        result, base = subject.scores("result"), subject.scores("base")
        limits = {
            "probability": subject.policy.max_history_probability,
            "extraction_strength": subject.policy.max_history_extraction_strength,
        }
        measures, checks = [], []
        for metric, limit in limits.items():
            of_metric = []
            for name in earlier:
                job, records = name[len(PREFIX) :], result[name].records
                value, never_seen = getattr(result[name], metric), allowed(subject, getattr(base[name], metric))
                measures.append(Measure(f"history_{metric}", "result", value, records, detail=job))
                if limit is not None:
                    words = f"mean {metric.replace('_', ' ')} on the forget set of {job}, the worst earlier one"
                    found = Value(value, records)
                    of_metric.append(at_most("history", f"history_{metric}", words, found, limit, never_seen))
            if of_metric:
                checks.append(worst(of_metric))
        return Found(measures, checks)
