"""When to stop, and which point to keep."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from app.methods import Targets
from worker.unlearning.probe import Probe, Shown

Reason = Literal["targets_met", "no_progress", "steps_taken"]
MIN_PROGRESS = 0.002  # of a probability or strength; less is noise

EXPLANATIONS: dict[Reason, str] = {
    "targets_met": "the policy's in-training targets hold",
    "no_progress": "no hope of the in-training targets: several probes were no better than the best point",
    "steps_taken": "all steps were taken",
}


class StopRule:
    """Judges probes as they come.

    A point that meets the forget targets is better than any that does not; among those, more kept is better; among
    the others, less shown is better.

    Attributes:
        history: every probe so far.
        best: the probe of the best point, None before the first.
    """

    def __init__(self, targets: Targets, patience: int, first_step: int) -> None:
        """Args:
        targets: what to reach.
        patience: probes without progress after which to give up.
        first_step: no point before this step counts: each forget record must have been trained on.
        """
        self._targets, self._patience, self._first = targets, patience, first_step
        self.history: list[Probe] = []
        self.best: Probe | None = None
        self._since_best = 0

    def forgotten(self, probe: Probe) -> bool:
        """Whether the forget targets hold, and held after the last rehearsal."""
        return self._excess(probe) <= 0

    def meets(self, probe: Probe) -> bool:
        """Whether all targets hold."""
        return self.forgotten(probe) and probe.retain_ratio >= self._targets.min_retain_probability_ratio

    def judge(self, probe: Probe) -> tuple[bool, Reason | None]:
        """Take a probe: whether its point is the best so far, and why to stop, if so."""
        self.history.append(probe)
        if probe.step < self._first:
            return False, None
        gain = float("inf") if self.best is None else self._gain(probe, self.best)
        if gain > 0:
            self.best = probe
        self._since_best = 0 if gain > MIN_PROGRESS else self._since_best + 1
        if self.meets(probe):
            return gain > 0, "targets_met"
        return gain > 0, "no_progress" if self._since_best >= self._patience else None

    def _excess(self, probe: Probe) -> float:
        """By how much more is shown than the targets allow, now or after a rehearsal; at most 0 when they hold."""
        now = self._excess_of(probe.forget)
        return now if probe.resurfaced is None else max(now, self._excess_of(probe.resurfaced))

    def _excess_of(self, shown: Shown) -> float:
        over = (
            shown.probability - self._targets.max_forget_probability,
            shown.extraction_strength - self._targets.max_forget_extraction_strength,
        )
        positive = sum(max(0.0, part) for part in over)
        return positive if positive > 0 else max(over)

    def _gain(self, probe: Probe, best: Probe) -> float:
        """By how much a point is better than another; infinite where it is the first that forgets."""
        ours, theirs = self.forgotten(probe), self.forgotten(best)
        if ours != theirs:
            return float("inf") if ours else float("-inf")
        if ours:
            return probe.retain_ratio - best.retain_ratio
        return self._excess(best) - self._excess(probe)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        best = None if self.best is None else self.best.step
        return {"history": [asdict(probe) for probe in self.history], "best": best, "since_best": self._since_best}

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.history = [read_probe(probe) for probe in state["history"]]
        self.best = next((probe for probe in self.history if probe.step == state["best"]), None)
        self._since_best = state["since_best"]


def read_probe(values: dict[str, Any]) -> Probe:
    """A probe from plain values."""
    resurfaced = values["resurfaced"]
    return Probe(
        values["step"],
        Shown(**values["forget"]),
        Shown(**values["retain"]),
        values["retain_ratio"],
        None if resurfaced is None else Shown(**resurfaced),
    )
