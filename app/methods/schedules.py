"""How the steps of a run are spread over forgetting and retaining (docs/method.md, schedules)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Annotated, Literal, Self

from pydantic import Field, Tag

from app.methods.fields import Auto, Strict, by_type, members

StepKind = Literal["forgetting", "rehearsal", "simulation", "training"]
MOST_IN_A_PHASE = 10_000


@dataclass(frozen=True)
class Phase:
    """Steps of one kind in a row; ``length`` None lasts to the end."""

    kind: StepKind
    length: int | None


@dataclass(frozen=True)
class Course:
    """Phases that come once, then others again and again."""

    first: tuple[Phase, ...]
    again: tuple[Phase, ...]

    def phases(self) -> Iterator[Phase]:
        """All of them, without end where they are not."""
        return chain(self.first, cycle(self.again))


class Stretch(Strict):
    """One stretch: every step forgets and retains."""

    type: Literal["stretch"] = "stretch"

    def course(self) -> Course:
        """One without end."""
        return Course((), (Phase("forgetting", None),))

    def planned_steps(self) -> int | None:
        """As many as the forget set asks for."""
        return None

    def for_batches(self, _batches: int) -> Self:
        """The same for every forget set."""
        return self


_Length = Annotated[int, Field(ge=1, le=MOST_IN_A_PHASE)] | Auto


class Training(Strict):
    """Training anew: no step forgets. No choice of a method that unlearns."""

    type: Literal["training"] = "training"

    def course(self) -> Course:
        """One without end."""
        return Course((), (Phase("training", None),))

    def planned_steps(self) -> int | None:
        """As many as the recipe says."""
        return None


class _Rehearsing(Strict):
    forget_steps: Annotated[
        _Length,
        Field(
            description='Steps of the method before a rehearsal. "auto": one pass over the forget set, at least 20.'
        ),
    ] = "auto"
    rehearsal_steps: Annotated[
        _Length,
        Field(
            description='Steps of a rehearsal, on retain sequences alone. "auto": as many as two passes over the '
            "forget set take, at least 48."
        ),
    ] = "auto"
    rehearsal_learning_rate: Annotated[
        float, Field(gt=0, le=1, description="At the start of a rehearsal, from where it falls to zero as a cosine.")
    ] = 1e-3

    def for_batches(self, batches: int) -> Self:
        """With a length in the place of every "auto", for a forget set of so many batches."""
        return self.model_copy(update=self._lengths(batches))

    def _lengths(self, batches: int) -> dict[str, int]:
        return {
            "forget_steps": _length(self.forget_steps, 20, batches),
            "rehearsal_steps": _length(self.rehearsal_steps, 48, 2 * batches),
        }

    def _cycle(self) -> tuple[Phase, Phase]:
        steps = self._lengths(1)
        return Phase("forgetting", steps["forget_steps"]), Phase("rehearsal", steps["rehearsal_steps"])


def _length(chosen: int | Auto, least: int, wanted: int) -> int:
    return min(max(least, wanted), MOST_IN_A_PHASE) if chosen == "auto" else chosen


class Cycles(_Rehearsing):
    """Rehearsal cycles: train on what is kept between stretches of the method, so that what would come back does."""

    type: Literal["cycles"] = "cycles"
    cycles: Annotated[
        int, Field(ge=1, le=1000, description='Cycles for which "auto" steps suffice; a last stretch follows them.')
    ] = 8

    def course(self) -> Course:
        """Cycles without end."""
        return Course((), self._cycle())

    def planned_steps(self) -> int:
        """All cycles and the last stretch."""
        forgetting, rehearsal = self._cycle()
        return sum(phase.length or 0 for phase in (forgetting, rehearsal) * self.cycles + (forgetting,))


class MetaCycles(_Rehearsing):
    """Cycles, then rounds against simulated relearning: forget what half of the forget set would bring back.

    A simulated attacker trains on half of the forget set beside the run, a step of its own for each of the run's.
    """

    type: Literal["meta_cycles"] = "meta_cycles"
    cycles: Annotated[int, Field(ge=0, le=1000, description="Rehearsal cycles before the first round.")] = 2
    rounds: Annotated[int, Field(ge=1, le=1000, description='Rounds for which "auto" steps suffice.')] = 3
    simulation_steps: Annotated[
        _Length,
        Field(
            description='Steps of a round; a rehearsal follows all but the last. "auto": two passes over the forget '
            "set, at least 40."
        ),
    ] = "auto"
    settling_steps: Annotated[
        _Length,
        Field(
            description="Steps of the method after a round: what the round pushed below the anchor comes back to it. "
            '"auto": one pass over the forget set, at least 10.'
        ),
    ] = "auto"
    attack_steps: Annotated[
        int,
        Field(ge=1, le=1000, description="Steps of a simulated attacker, before one with the other half comes."),
    ] = 10
    attack_learning_rate: Annotated[
        float,
        Field(
            gt=0, le=1, description="Highest of the simulated attackers; each draws its own, from an eighth of it on."
        ),
    ] = 2e-3

    def course(self) -> Course:
        """The cycles, then rounds without end."""
        steps, cycle_of = self._lengths(1), self._cycle()
        settling = Phase("forgetting", steps["settling_steps"])
        return Course(cycle_of * self.cycles, (Phase("simulation", steps["simulation_steps"]), settling, cycle_of[1]))

    def planned_steps(self) -> int:
        """All cycles and rounds, without the rehearsal after the last."""
        phases = islice(self.course().phases(), 2 * self.cycles + 3 * self.rounds - 1)
        return sum(phase.length or 0 for phase in phases)

    def _lengths(self, batches: int) -> dict[str, int]:
        return super()._lengths(batches) | {
            "simulation_steps": _length(self.simulation_steps, 40, 2 * batches),
            "settling_steps": _length(self.settling_steps, 10, batches),
        }


Schedule = Annotated[
    Annotated[Stretch, Tag("stretch")] | Annotated[Cycles, Tag("cycles")] | Annotated[MetaCycles, Tag("meta_cycles")],
    by_type("meta_cycles"),
]
SCHEDULES = members(Schedule)
AnySchedule = Schedule | Training


@dataclass(frozen=True)
class Place:
    """Where a step is in a schedule.

    Attributes:
        kind: what it does.
        index: 0-based, within its phase.
        length: of its phase; None where it has no end.
        forgotten, rehearsed: steps before it that forgot (simulations too), and that rehearsed.
    """

    kind: StepKind
    index: int
    length: int | None
    forgotten: int
    rehearsed: int

    @property
    def ends(self) -> bool:
        """Whether the phase ends with this step."""
        return self.length is not None and self.index + 1 == self.length


def place_of(step: int, schedule: AnySchedule) -> Place:
    """Where a step is, counted from 0: a pure function, so that a run can go on from any step."""
    course = schedule.course()
    before, phases = _whole_turns(step, course)
    for phase in phases:
        passed = sum(before.values())
        if phase.length is None or step < passed + phase.length:
            break
        before[phase.kind] += phase.length
    index = step - passed
    forgotten, rehearsed = before["forgetting"] + before["simulation"], before["rehearsal"]
    if phase.kind == "rehearsal":
        return Place(phase.kind, index, phase.length, forgotten, rehearsed + index)
    return Place(phase.kind, index, phase.length, forgotten + index, rehearsed)


def _whole_turns(step: int, course: Course) -> tuple[Counter[StepKind], Iterator[Phase]]:
    """Steps by kind up to a turn of the course in which a step is, or to its start, and what comes from there."""
    first, turn = _steps_of(course.first), _steps_of(course.again)
    beyond = step - first.total()
    if beyond < 0 or not turn.total():
        return Counter(), course.phases()
    turns = beyond // turn.total()
    whole = Counter({kind: turns * steps for kind, steps in turn.items()})
    return first + whole, iter(course.again)


def _steps_of(phases: Iterable[Phase]) -> Counter[StepKind]:
    found: Counter[StepKind] = Counter()
    for phase in phases:
        found[phase.kind] += phase.length or 0
    return found


def first_point(schedule: AnySchedule, once: int) -> int:
    """The first step after which a point may be kept: a rehearsal has shown what comes back, where there are any.

    No probe shows what an attacker would bring back, so that all rounds against simulated ones are taken before.

    Args:
        once: how many forgetting steps, simulations among them, train on every forget record once.
    """
    taken, left, rehearsed = 0, once, isinstance(schedule, Stretch | Training)
    phases = schedule.course().phases()
    while left > 0 or not rehearsed:
        phase = next(phases)
        length = left if phase.length is None else phase.length
        if phase.kind == "rehearsal":
            rehearsed = True
        else:
            length = min(length, left) if rehearsed else length
            left -= length
        taken += length
    return max(taken, schedule.planned_steps()) if isinstance(schedule, MetaCycles) else taken


def sequences_per_step(schedule: AnySchedule, steps: int, forget_batch: int, retain_batch: int) -> float:
    """Sequences that a step passes over, forward and backward, on average over the first so many steps."""
    total, left = 0.0, steps
    for phase in schedule.course().phases():
        taken = left if phase.length is None else min(left, phase.length)
        each: float = retain_batch if phase.kind in ("rehearsal", "training") else forget_batch + retain_batch
        if phase.kind == "simulation":
            each += 2 * forget_batch  # the attacker's step, and what it is tried on
        total += taken * each
        left -= taken
        if left <= 0:
            break
    return total / steps
