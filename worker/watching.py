"""Looks on while a model is trained: tells progress, keeps checkpoints, and stops what must not go on."""

from __future__ import annotations

import time
from dataclasses import dataclass

from app.kit.crypto import CryptoError
from worker.checkpoints import CheckpointStore
from worker.lease import HandBack, Lease
from worker.progress import Progress
from worker.unlearning.checkpoint import Checkpoint, CheckpointError
from worker.unlearning.loop import StepReport, Watcher
from worker.unlearning.probe import Probe

METRICS_PER_RUN = 40
# A worker that is told to stop has so long to reach the end of a step and its checkpoint. It is killed after 45 s
# (docs/operations.md), and the run has to be handed back before.
PATIENCE_SECONDS = 20.0


class RunWatcher(Watcher):
    """Watches the training of a held run.

    Args:
        every: seconds between two checkpoints.
    """

    def __init__(self, lease: Lease, progress: Progress, store: CheckpointStore, every: float) -> None:
        self._lease, self._progress, self._store, self._every = lease, progress, store, every
        self._saved = time.monotonic()
        self._warned = False

    def on_step(self, step: int, total: int) -> None:
        """Tell how far it is. Raises when the run must not go on here."""
        self._progress.step(step, total)

    def on_report(self, report: StepReport) -> None:
        """Tell the numbers of some steps."""
        last = report.step == report.total_steps
        if not last and report.step % max(1, report.total_steps // METRICS_PER_RUN):
            return
        if report.kind in ("rehearsal", "training"):
            doing = ", rehearsing" if report.kind == "rehearsal" else ""
            self._lease.metrics(
                f"step {report.step} of {report.total_steps}{doing}",
                step=report.step,
                retain_loss=report.retain_loss,
                update_norm=report.update_norm,
            )
            return
        self._lease.metrics(
            f"step {report.step} of {report.total_steps}",
            step=report.step,
            forget_loss=report.forget_loss,
            retain_loss=report.retain_loss,
            gradient_cosine=report.cosine,
            descent_cosine=report.descent_cosine,
            update_norm=report.update_norm,
        )

    def on_probe(self, probe: Probe) -> None:
        """Tell what a probe saw."""
        self._lease.metrics(
            f"probe at step {probe.step}",
            step=probe.step,
            forget_probability=probe.forget.probability,
            forget_extraction_strength=probe.forget.extraction_strength,
            retain_probability=probe.retain.probability,
            retain_ratio=probe.retain_ratio,
            **({"resurfaced_probability": probe.resurfaced.probability} if probe.resurfaced else {}),
        )

    def wants_checkpoint(self) -> bool:
        """Now and then, and before the run is handed back."""
        return self._lease.stopping or time.monotonic() - self._saved >= self._every

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep it. Raises when the run must not go on here; `HandBack` only once it is kept."""
        self._lease.check_hold()
        try:
            self._store.save(checkpoint.to_bytes())
        except OSError as error:
            self._warn(error)
        self._saved = time.monotonic()
        if self._lease.stopping:
            raise HandBack

    def _warn(self, error: OSError) -> None:
        """Once: a run without checkpoints is no worse than one that is never interrupted."""
        if not self._warned:
            self._warned = True
            self._lease.warn(f"no checkpoint can be stored ({type(error).__name__}); training goes on without")


@dataclass(frozen=True)
class Found:
    """A checkpoint, and the attempt that left it."""

    attempt: int
    checkpoint: Checkpoint

    @property
    def step(self) -> int:
        """Steps that need not be taken again."""
        return int(self.checkpoint.scalars["step"])


def earlier_checkpoint(lease: Lease, store: CheckpointStore) -> Found | None:
    """The newest checkpoint that an earlier attempt left and that can be read. One that cannot is told of."""
    for attempt in store.earlier():
        try:
            return Found(attempt, Checkpoint.from_bytes(store.read(attempt)))
        except (CheckpointError, CryptoError, OSError) as error:
            lease.event(f"the checkpoint of attempt {attempt} cannot be read ({type(error).__name__})")
    return None
