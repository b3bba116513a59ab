"""What a job will take: from what earlier runs took, or else by a rule of thumb (docs/api/jobs.md, dry run)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.base_models.tables import BaseModelRow
from app.jobs.schemas import JobStatistics
from app.methods import STORED_METHOD, Method, first_point, sequences_per_step
from app.settings import Settings

_GPU = 10e12, 200e12  # floating-point operations per second that training reaches, slow and fast
_CPU = 20e9, 200e9
_START_SECONDS = 5, 120  # loading and what else does not grow with the work
_EVALUATION = 0.2, 3  # of the time of the whole training
_MARGIN = 0.75, 1.5  # around what was measured
# Activations of a layer per token and unit of width, in 16 bits (Korthikanti et al., arXiv 2205.05198, without the
# part that fused attention does not keep), and of a layer that is computed again instead.
_ACTIVATION_BYTES = 34
_CHECKPOINT_BYTES = 2
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


class Span(BaseModel):
    """From, to."""

    low: float
    high: float


class Estimate(BaseModel):
    """What a run is expected to take. Ranges, not promises."""

    steps: Annotated[Span, Field(description="Optimizer steps of one training; it may stop early.")]
    seconds: Annotated[Span, Field(description="From claim to end, without waiting in the queue.")]
    peak_memory_bytes: Annotated[
        Span, Field(description="On the device: with one sequence at a time, to whole batches at once.")
    ]
    basis: Annotated[Literal["measured", "rule"], Field(description="Where `seconds` is from.")]
    explanation: str


@dataclass(frozen=True)
class EarlierRun:
    """What an evaluated run on the same base model took. Seconds; steps of all its trainings; sequences per step."""

    unlearning: float
    evaluating: float
    steps: int
    sequences: float

    @classmethod
    def of(cls, durations: Mapping[str, Any], method: Mapping[str, Any], steps: int) -> EarlierRun:
        """From the parts of an evaluation."""
        used = STORED_METHOD.validate_python(method)
        return cls(float(durations["unlearning"]), float(durations["evaluating"]), steps, _sequences(used, steps))

    @property
    def seconds_per_sequence(self) -> float:
        """Of training."""
        return self.unlearning / (self.steps * self.sequences)


def estimate(
    method: Method,
    attempts: int,
    base: BaseModelRow,
    statistics: JobStatistics,
    earlier: Sequence[EarlierRun],
    settings: Settings,
) -> Estimate:
    """What a job will take.

    Args:
        attempts: most trainings that its policy allows.
        earlier: runs on the same base model; those without a step say nothing.
    """
    least = min(_first_stop(method, statistics.forget.records), method.steps)
    steps = Span(low=least, high=method.steps)
    runs = [run for run in earlier if run.steps > 0]
    if runs:
        seconds = _measured(method, attempts, steps, runs)
        why = f"from {len(runs)} earlier run(s) on this base model, with a margin of {_MARGIN[0]} to {_MARGIN[1]}"
    else:
        seconds = _by_rule(method, attempts, steps, base, statistics, settings)
        where = "a CPU" if settings.device == "cpu" else "one GPU; a CPU takes a hundred to a thousand times as long"
        why = f"no run on this base model yet: 6 operations per parameter and token, at the speed of {where}"
    return Estimate(
        steps=steps,
        seconds=seconds,
        peak_memory_bytes=_memory(method, base, statistics, settings),
        basis="measured" if runs else "rule",
        explanation=f"Time is {why}. Memory is weights plus activations, by a rule.",
    )


def _first_stop(method: Method, forget_records: int) -> int:
    """The step after which training may stop at the earliest."""
    if method.stop.type != "targets":
        return method.steps
    if method.schedule.type == "stretch":
        return method.stop.every
    once = math.ceil(forget_records / method.forget_batch_size)
    return first_point(method.schedule, min(once, method.steps))  # what lies beyond the last step is not looked for


def _measured(method: Method, attempts: int, steps: Span, runs: Sequence[EarlierRun]) -> Span:
    batch = _sequences(method, method.steps)
    rates = [run.seconds_per_sequence for run in runs]
    evaluating = [run.evaluating for run in runs]
    low = steps.low * batch * min(rates) + min(evaluating)
    high = (steps.high * batch * max(rates) + max(evaluating)) * attempts
    return _rounded(low * _MARGIN[0], high * _MARGIN[1])


def _sequences(method: Method, steps: int) -> float:
    return sequences_per_step(method.schedule, max(1, steps), method.forget_batch_size, method.retain_batch_size)


def _by_rule(
    method: Method, attempts: int, steps: Span, base: BaseModelRow, statistics: JobStatistics, settings: Settings
) -> Span:
    batch = _sequences(method, method.steps)
    operations = 6 * base.parameters * batch * _usual_length(method, statistics)
    slow, fast = _CPU if settings.device == "cpu" else _GPU
    low = steps.low * operations / fast + steps.high * operations / fast * _EVALUATION[0]
    high = steps.high * operations / slow * (1 + _EVALUATION[1]) * attempts
    return _rounded(low + _START_SECONDS[0], high + _START_SECONDS[1])


def _usual_length(method: Method, statistics: JobStatistics) -> float:
    """Mean tokens of a training sequence."""
    counted = [
        part.tokens for part in (statistics.forget, statistics.retain) if part.tokens and part.tokens.sequences
    ]
    if not counted:
        return method.max_length
    return sum(each.total / each.sequences for each in counted) / len(counted)


def _memory(method: Method, base: BaseModelRow, statistics: JobStatistics, settings: Settings) -> Span:
    width, layers = _shape(base.shapes)
    number = 4 if settings.device == "cpu" else 2
    weights = base.parameters * (0.6 if settings.four_bit else number)
    per_token = layers * width * (_CHECKPOINT_BYTES if method.gradient_checkpointing else _ACTIVATION_BYTES)
    in_flight = (per_token + width * _ACTIVATION_BYTES) * number / 2
    sets = [part.tokens for part in (statistics.forget, statistics.retain) if part.tokens]
    longest = max((min(each.max, each.max_length) for each in sets), default=method.max_length)
    whole = method.retain_batch_size + (0 if method.type == "retrain" else method.forget_batch_size)
    most = whole if method.micro_batch_size == "auto" else min(whole, 2 * method.micro_batch_size)
    return _rounded(weights + in_flight * longest, (weights + in_flight * longest * most) * 1.2)


def _shape(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Width of the hidden states, which most matrices read, and number of layers."""
    widths = Counter(shape[-1] for shape in shapes.values() if len(shape) > 1)
    numbers = [int(found[1]) for name in shapes if (found := _LAYER.search(name))]
    return (widths.most_common(1)[0][0] if widths else 0), max(numbers, default=0) + 1


def _rounded(low: float, high: float) -> Span:
    """Two digits: more would promise more than is known."""
    return Span(low=float(f"{low:.2g}"), high=float(f"{high:.2g}"))
