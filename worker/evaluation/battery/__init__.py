"""The battery: probes that look at a result from all sides. A probe is one file and one line in `PROBES`."""

from __future__ import annotations

from collections.abc import Mapping

from app.methods import ProbeName
from worker.evaluation.battery.base import Found, Measure, NotApplicable, Probe, Subject
from worker.evaluation.battery.history import History
from worker.evaluation.battery.integrity import Integrity
from worker.evaluation.battery.membership import Membership
from worker.evaluation.battery.quantization import Quantization
from worker.evaluation.battery.recall import Recall
from worker.evaluation.battery.relearning import Relearning
from worker.evaluation.battery.rephrasing import Rephrasing
from worker.evaluation.battery.resurfacing import Resurfacing
from worker.evaluation.battery.sampling import Sampling
from worker.evaluation.battery.utility import Utility

PROBES: Mapping[ProbeName, Probe] = {
    probe.name: probe
    for probe in (
        Recall(),
        Utility(),
        Rephrasing(),
        Membership(),
        Quantization(),
        Integrity(),
        History(),
        Resurfacing(),
        Sampling(),
        Relearning(),
    )
}
"""In the order in which a report shows them."""

__all__ = ["PROBES", "Found", "Measure", "NotApplicable", "Probe", "Subject"]
