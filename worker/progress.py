"""How far a run is: written as it happens, and the moment at which a run learns that it must stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from app.jobs.schemas import Phase
from worker.lease import Lease

# Percent of a whole run at which each phase begins; the last one ends at 100.
_BEGINS: dict[Phase, float] = {
    "preparing": 0.0,
    "unlearning": 20.0,
    "evaluating": 75.0,
    "packaging": 95.0,
    "registering": 98.0,
}
# Steps of a small model take milliseconds: more writes than this would only slow them down.
SECONDS_BETWEEN_WRITES = 0.25
METRICS_PER_RUN = 40


class Step(Protocol):
    """What the training loop tells after a step."""

    @property
    def step(self) -> int: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def forget_loss(self) -> float: ...
    @property
    def retain_loss(self) -> float: ...
    @property
    def cosine(self) -> float: ...
    @property
    def update_norm(self) -> float: ...


class Progress:
    """Phases and steps of one run."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._seconds: dict[Phase, float] = {}
        self._began = self._written = time.monotonic()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """A phase: announced when it begins, timed when it ends."""
        self._began = time.monotonic()
        self._lease.progress(phase=name, percent=_BEGINS[name], eta_seconds=None)
        self._lease.event(f"{name} began", phase=name)
        yield
        self._seconds[name] = time.monotonic() - self._began
        self._lease.check()

    def check(self) -> None:
        """Raise when the run must not go on here."""
        self._lease.check()

    def step(self, report: Step) -> None:
        """Note a step. Raises when the run must not go on here."""
        now = time.monotonic()
        last = report.step == report.total_steps
        if last or now - self._written >= SECONDS_BETWEEN_WRITES:
            self._written = now
            self._write_step(report, now - self._began)
        if last or report.step % max(1, report.total_steps // METRICS_PER_RUN) == 0:
            self._lease.metrics(
                f"step {report.step} of {report.total_steps}",
                step=report.step,
                forget_loss=report.forget_loss,
                retain_loss=report.retain_loss,
                gradient_cosine=report.cosine,
                update_norm=report.update_norm,
            )
        self._lease.check()

    def durations(self, *phases: Phase) -> dict[str, float]:
        """Seconds of phases that have ended."""
        return {name: round(self._seconds[name], 3) for name in phases}

    def _write_step(self, report: Step, elapsed: float) -> None:
        share = report.step / report.total_steps
        begin, end = _BEGINS["unlearning"], _BEGINS["evaluating"]
        self._lease.progress(
            step=report.step,
            total_steps=report.total_steps,
            percent=begin + share * (end - begin),
            eta_seconds=round(elapsed / report.step * (report.total_steps - report.step), 1),
        )
