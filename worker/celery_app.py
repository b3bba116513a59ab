"""Celery, configured so that it carries ids and loses nothing that matters.

Postgres holds the truth (docs/adr/0001). The broker forgets a message once a worker has started on it (early
acknowledgement) and never hands one out in advance, so that it holds no running job; a worker that dies is noticed
by its lease (docs/adr/0002). Nothing here imports torch: only a GPU task's own process does.
"""

from __future__ import annotations

import ctypes
import signal
from multiprocessing.sharedctypes import RawValue
from typing import Any

from celery import Celery, bootsteps, signals

from app.kit import logs
from app.outbox import GPU_QUEUE, LIGHT_QUEUE, RUN_TASK
from app.settings import get_settings
from worker.heartbeat import HEARTBEAT_SECONDS, WorkerName, beat, fall_silent, pulse

# Lives in memory that the pool's processes share with their parent: a worker that is told to stop tells the task
# in its child, which hands its run back at the next step.
_stopping = RawValue("b", 0)


def is_stopping() -> bool:
    """Whether this worker was told to stop."""
    return bool(_stopping.value)


def make_celery() -> Celery:
    """The application."""
    app = Celery("lethe", broker=get_settings().redis_url.get_secret_value(), include=["worker.tasks"])
    app.conf.update(
        task_acks_late=False,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        # A process per run: the GPU's memory is given back whatever happened. The light worker overrides it.
        worker_max_tasks_per_child=1,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=LIGHT_QUEUE,
        task_routes={RUN_TASK: {"queue": GPU_QUEUE}},
        task_create_missing_queues=True,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=True,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        enable_utc=True,
        beat_schedule=_schedule(),
    )
    app.steps["worker"].add(Heartbeat)
    return app


def _schedule() -> dict[str, dict[str, Any]]:
    # Messages that nobody took before the next one is due are dropped by the worker.
    periods = {
        "lethe.relay_outbox": 1.0,
        "lethe.reap_runs": 5.0,
        "lethe.purge_datasets": 60.0,
        "lethe.purge_versions": 60.0,
        "lethe.purge_identity_indexes": 60.0,
        "lethe.sweep_checkpoints": 60.0,
        "lethe.announce_deadlines": 60.0,
        "lethe.sweep_accepted_requests": 60.0,
        "lethe.sweep_blobs": 3600.0,
        "lethe.scrub_keys": 3600.0,
        "lethe.announce_opendsr_statuses": 2.0,
        "lethe.deliver_webhooks": 1.0,
        "lethe.sweep_webhooks": 60.0,
    }
    return {
        task: {"task": task, "schedule": seconds, "options": {"queue": LIGHT_QUEUE, "expires": seconds}}
        for task, seconds in periods.items()
    }


class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc] # celery ships no types
    """Writes to Postgres that this worker is alive, from the worker's own event loop."""

    requires = {"celery.worker.components:Timer"}

    def __init__(self, parent: Any, **_options: Any) -> None:  # noqa: ANN401 - celery ships no types
        self._name = parent.hostname
        self._timer: Any = None

    def start(self, parent: Any) -> None:  # noqa: ANN401 - celery ships no types
        """Begin to beat. A worker without queues (one that only sends) does not."""
        queues = [name for name in (GPU_QUEUE, LIGHT_QUEUE) if name in parent.app.amqp.queues.consume_from]
        if queues:
            worker = WorkerName(self._name, queues[0])
            beat(worker)
            self._timer = parent.timer.call_repeatedly(
                HEARTBEAT_SECONDS, lambda: pulse(worker, getattr(parent, "beat", None))
            )

    def stop(self, _parent: Any) -> None:  # noqa: ANN401 - celery ships no types
        """Stop beating, and take the worker off the list: what was told to stop takes no more runs."""
        if self._timer is not None:
            self._timer.cancel()
            fall_silent(self._name)


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator] # celery ships no types
def _tell_children(**_details: Any) -> None:  # noqa: ANN401 - celery ships no types
    _stopping.value = 1


@signals.worker_process_init.connect  # type: ignore[untyped-decorator] # celery ships no types
def _in_child(**_details: Any) -> None:  # noqa: ANN401 - celery ships no types
    logs.configure()
    # A child must not outlive its worker: one that lost its parent would go on computing with nobody to stop it.
    parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(parent_death_signal, signal.SIGKILL)


celery_app = make_celery()
