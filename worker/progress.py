"""How far a run is: written as it happens, and the moment at which a run learns that it must stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

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


class Progress:
    """Phases and steps of one run."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._seconds: dict[Phase, float] = {}
        self._began = self._written = time.monotonic()
        self._first_step: int | None = None

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

    def step(self, step: int, total: int) -> None:
        """Note a step, of at most so many. Raises when the run must not go on here."""
        now = time.monotonic()
        if self._first_step is None:  # a run that goes on from a checkpoint does not begin at 1
            self._first_step = step
        if step == total or now - self._written >= SECONDS_BETWEEN_WRITES:
            self._written = now
            self._write_step(step, total, (now - self._began) / (step - self._first_step + 1))
        self._lease.check()

    def durations(self, *phases: Phase) -> dict[str, float]:
        """Seconds of phases that have ended."""
        return {name: round(self._seconds[name], 3) for name in phases}

    def _write_step(self, step: int, total: int, seconds_per_step: float) -> None:
        begin, end = _BEGINS["unlearning"], _BEGINS["evaluating"]
        self._lease.progress(
            step=step,
            total_steps=total,
            percent=begin + step / total * (end - begin),
            eta_seconds=round(seconds_per_step * (total - step), 1),
        )
