"""Schedules: which step does what, and what each kind of step computes."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from app.methods import (
    METHOD,
    METHOD_REQUEST,
    STORED_METHOD,
    Cycles,
    MetaCycles,
    Method,
    Stretch,
    Targets,
    first_point,
    place_of,
    sequences_per_step,
)
from tests.worker.conftest import CONTEXT, Tiny
from tests.worker.unlearning.engine import Notes, load, sets
from worker.unlearning.attacker import Attack
from worker.unlearning.batches import attack_indices, attack_rate
from worker.unlearning.loop import learning_rate_at, unlearn
from worker.unlearning.probe import Probe, Shown
from worker.unlearning.step import SCALARS, Stepper
from worker.unlearning.stopping import StopRule

CYCLES = Cycles(forget_steps=2, rehearsal_steps=3, cycles=2)
META = MetaCycles(forget_steps=2, rehearsal_steps=2, cycles=1, rounds=2, simulation_steps=3, settling_steps=1)


def kinds(schedule: Any, steps: int) -> str:
    """The first letter of what each step does."""
    return "".join(place_of(step, schedule).kind[0] for step in range(steps))


def method_of(**knobs: Any) -> Method:
    small = {"gamma": 0.3, "steps": 6, "max_length": CONTEXT, "stop": {"type": "steps"}, "anchor": "none"}
    return METHOD.validate_python(small | {"forget_batch_size": 2, "retain_batch_size": 3} | knobs)


def factors_of(stepper: Stepper) -> Tensor:
    return stepper.factors.vector.clone()


def move_to(stepper: Stepper, vector: Tensor) -> None:
    stepper.factors.vector.copy_(vector)
    stepper.factors.publish()


def apart(found: Tensor, wanted: Tensor) -> float:
    """Relative to how long the wanted vector is."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture
def stepper(llama: Tiny) -> Stepper:
    """Before the first step."""
    model, tokenizer = load(llama)
    return Stepper(model, tokenizer, *sets(tokenizer), method_of(passes="two", schedule=META), 0)


# Which step does what.


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (Stretch(), "ffffffffffff"),
        (CYCLES, "ffrrrffrrrff"),
        (META, "ffrrsssfrrss"),
        (MetaCycles(cycles=0, rehearsal_steps=1, simulation_steps=2, settling_steps=1), "ssfrssfrssfr"),
    ],
)
def test_a_schedule_takes_its_turns(schedule: Any, wanted: str) -> None:
    assert kinds(schedule, 12) == wanted


@pytest.mark.parametrize("schedule", [Stretch(), CYCLES, META])
def test_places_count_what_was_done_before_them(schedule: Any) -> None:
    course = kinds(schedule, 40)
    for step in range(40):
        place, before = place_of(step, schedule), course[:step]
        assert (place.forgotten, place.rehearsed) == (step - before.count("r"), before.count("r"))
        assert place.index == len(before) - len(before.rstrip(course[step]))
        assert place.ends == (course[step] != place_of(step + 1, schedule).kind[0])


def test_a_place_after_many_turns_is_found_without_taking_them() -> None:
    turns = 10**15
    place = place_of(5 * turns + 3, CYCLES)
    assert (place.kind, place.index) == ("rehearsal", 1)
    assert (place.forgotten, place.rehearsed) == (2 * turns + 2, 3 * turns + 1)


@pytest.mark.parametrize(("schedule", "course"), [(CYCLES, "ffrrrffrrrff"), (META, "ffrrsssfrrsssf")])
def test_automatic_steps_suffice_for_the_plan_and_end_with_forgetting(schedule: Any, course: str) -> None:
    request = METHOD_REQUEST.validate_python({"schedule": schedule.model_dump()})
    assert kinds(schedule, request.resolve(1000).steps) == course
    assert request.model_copy(update={"steps": 7}).resolve(1000).steps == 7


def test_rehearsals_have_a_learning_rate_of_their_own_that_falls_to_zero() -> None:
    knobs = {"type": "cycles", "forget_steps": 2, "rehearsal_steps": 4, "rehearsal_learning_rate": 0.8}
    method = method_of(schedule=knobs, learning_rate=0.1, steps=8)
    rates = [learning_rate_at(step, method) for step in range(8)]
    half = [0.8, 0.8 * (0.5 + 0.5 * 2**-0.5), 0.4, 0.8 * (0.5 - 0.5 * 2**-0.5)]
    assert rates == pytest.approx([0.1, 0.1, *half, 0.1, 0.1])


def test_a_job_from_before_schedules_keeps_the_course_of_its_learning_rate() -> None:
    stored = method_of(learning_rate_schedule="cosine").model_dump()
    del stored["learning_rate_schedule"]
    read = STORED_METHOD.validate_python(stored | {"schedule": "cosine"})
    assert (read.learning_rate_schedule, read.schedule) == ("cosine", Stretch())
    with pytest.raises(ValidationError, match="schedule"):
        METHOD_REQUEST.validate_python({"schedule": "cosine"})


def test_the_work_of_a_step_is_counted_in_sequences() -> None:
    assert sequences_per_step(Stretch(), 100, 8, 8) == 16
    assert sequences_per_step(CYCLES, 5, 2, 3) == (2 * 5 + 3 * 3) / 5
    attacker_and_held_out = 2 + 2
    assert sequences_per_step(META, 6, 2, 3) == (2 * 5 + 2 * 3 + 2 * (5 + attacker_and_held_out)) / 6


@pytest.mark.parametrize(
    ("schedule", "once", "wanted"),
    [
        (Stretch(), 5, 5),
        # ffrrrffrrrf
        *((CYCLES, once, wanted) for once, wanted in ((1, 5), (2, 5), (3, 6), (4, 7), (5, 11))),
        # ffrrsssfrrsssf, all rounds in any case
        *((META, once, wanted) for once, wanted in ((1, 14), (10, 14), (11, 17))),
    ],
)
def test_a_point_counts_once_all_was_trained_on_and_a_rehearsal_has_shown_it(
    schedule: Any, once: int, wanted: int
) -> None:
    assert first_point(schedule, once) == wanted


def test_phases_grow_with_the_forget_set_where_their_lengths_are_left_to_the_service() -> None:
    request = METHOD_REQUEST.validate_python({"schedule": {"rehearsal_steps": 7}})
    small, large = (request.resolve(records).schedule for records in (8, 800))
    assert isinstance(small, MetaCycles)
    assert isinstance(large, MetaCycles)
    lengths = [
        (each.forget_steps, each.rehearsal_steps, each.simulation_steps, each.settling_steps)
        for each in (small, large)
    ]
    assert lengths == [(20, 7, 40, 10), (100, 7, 200, 100)]
    assert first_point(large, 100) == request.resolve(800).steps == 2 * 107 + 3 * 300 + 2 * 7


def test_a_method_that_names_no_schedule_is_durable_and_a_stored_one_is_from_before_there_were_any() -> None:
    assert isinstance(METHOD_REQUEST.validate_python({}).resolve(8).schedule, MetaCycles)
    stored = method_of().model_dump()
    del stored["schedule"]
    assert STORED_METHOD.validate_python(stored).schedule == Stretch()


# What a step computes.


def test_a_rehearsal_is_ordinary_training(stepper: Stepper, llama: Tiny) -> None:
    start = factors_of(stepper)
    with stepper.computing():
        stepper._accumulate([], [0, 2])
        gradient = stepper._gradients[1].clone()
        stepper.rehearse([0, 2], 1e-2)
    parameter = start.clone().requires_grad_()
    parameter.grad = gradient
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0.0)
    torch.nn.utils.clip_grad_norm_([parameter], stepper.method.max_grad_norm)
    optimizer.step()
    assert torch.allclose(factors_of(stepper), parameter.detach(), atol=1e-6)
    assert not torch.equal(factors_of(stepper), start)


def attack(number: int = 0, *, begins: bool = True) -> Attack:
    return Attack(begins=begins, batch=[number % 2], held_out=[2], learning_rate=1e-2)


def test_a_simulated_attacker_goes_its_own_way_and_the_gradient_is_that_of_where_it_is(stepper: Stepper) -> None:
    start = factors_of(stepper)
    with stepper.computing():
        found = [stepper._gradient_under(attack(number, begins=number == 0)) for number in range(3)]
        assert torch.equal(factors_of(stepper), start)
        assert stepper.optimizer.steps == 0
        # The same by hand: train on the answers with torch's own AdamW, and look before every step.
        parameter = start.clone().requires_grad_()
        optimizer = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0.0)
        for number in range(3):
            move_to(stepper, parameter.detach())
            stepper._accumulate([2], [number % 2], (stepper.forget, stepper._attacked))
            assert apart(found[number], stepper._gradients[0]) < 1e-3
            parameter.grad = stepper._gradients[1].clone()
            optimizer.step()
        move_to(stepper, start)
    assert apart(found[0], found[2]) > 1e-2


def test_an_attacker_keeps_its_distance_where_the_factors_move(stepper: Stepper) -> None:
    assert stepper.attacker is not None
    with stepper.computing():
        stepper._gradient_under(attack())
        way = stepper.attacker.way.clone()
        moved = factors_of(stepper) + 0.25
        move_to(stepper, moved)
        with stepper.attacker.in_place():
            assert torch.allclose(factors_of(stepper), moved + way)
        assert torch.equal(factors_of(stepper), moved)
        stepper._gradient_under(attack())
        assert stepper.attacker.optimizer.steps == 1


def test_an_attack_that_breaks_off_leaves_the_factors_too(stepper: Stepper, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stepper.attacker is not None
    start = factors_of(stepper)
    monkeypatch.setattr(stepper.attacker, "step", lambda *_: 1 / 0)
    with stepper.computing(), pytest.raises(ZeroDivisionError):
        stepper.step([0], [0], 1e-2, attack())
    assert torch.equal(factors_of(stepper), start)


def test_a_step_against_an_attack_forgets_along_the_mean_of_both_gradients(stepper: Stepper) -> None:
    with stepper.computing():
        stepper._gradient_under(attack())
        simulated = stepper._gradient_under(attack(1, begins=False))
        stepper._gradient_under(attack())
        stepper._accumulate([0, 1], [0, 1])
        mean = (stepper._gradients[0] + simulated) / 2
        retain = stepper._gradients[1].clone()
        step = stepper.step([0, 1], [0, 1], 1e-3, attack(1, begins=False))
    scalars = dict(zip(SCALARS, step.tolist(), strict=True))
    assert scalars["forget_squared"] == pytest.approx(float(mean.dot(mean)), rel=1e-4)
    assert scalars["product"] == pytest.approx(float(mean.dot(retain)), rel=1e-3, abs=1e-6)


def test_an_attacker_learns_the_answers_that_it_trains_on(stepper: Stepper) -> None:
    with stepper.computing():
        sets = (stepper.forget, stepper._attacked)
        before = stepper._accumulate([], [0, 1], sets)[1]
        stepper.factors.vector.sub_(1e-1 * stepper._gradients[1])
        stepper.factors.publish()
        assert stepper._accumulate([], [0, 1], sets)[1] < before


@pytest.mark.parametrize("n", [1, 2, 3, 7, 32])
def test_an_attacker_is_tried_on_what_it_does_not_have(n: int) -> None:
    tried: set[int] = set()
    for attacker in range(2):
        drawn = [attack_indices(3, 40, attacker, step, n, 4) for step in range(12)]
        had = {index for batch, _ in drawn for index in batch}
        held_out = {index for _, batch in drawn for index in batch}
        assert n == 1 or not had & held_out
        assert had | held_out == set(range(n))
        assert all(0 < len(batch) == len(set(batch)) <= 4 for pair in drawn for batch in pair)
        tried |= held_out
    # Two attackers in a row share the set between them.
    assert tried == set(range(n))


def test_attackers_are_drawn_anew_after_two_and_in_every_stretch() -> None:
    pairs = [set(attack_indices(3, stage, attacker, 0, 32, 16)[0]) for stage in (0, 40) for attacker in (0, 1, 2)]
    first, other_half, next_one, *elsewhere = pairs
    assert first | other_half == set(range(32))
    assert first not in (next_one, *elsewhere)


def test_every_attacker_draws_its_learning_rate() -> None:
    rates = [attack_rate(3, 40, attacker, 0.8) for attacker in range(200)]
    assert 0.1 < min(rates) < 0.11
    assert 0.75 < max(rates) <= 0.8
    assert sorted(rates)[100] == pytest.approx(0.1 * 8**0.5, rel=0.2)  # evenly in the logarithm
    assert rates[7] == attack_rate(3, 40, 7, 0.8)


def test_a_run_lets_attackers_take_turns_and_begin_anew_with_every_round(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Attack | None] = []
    take = Stepper.step

    def step(self: Stepper, forget: Any, retain: Any, rate: float, attack: Attack | None = None) -> Tensor:
        seen.append(attack)
        return take(self, forget, retain, rate, attack)

    monkeypatch.setattr(Stepper, "step", step)
    model, tokenizer = load(llama)
    schedule = META.model_copy(update={"attack_steps": 2})
    unlearn(model, tokenizer, *sets(tokenizer), method_of(schedule=schedule, steps=14), seed=3)
    # ff(rr)sssf(rr)sssf
    begins = [None if attack is None else attack.begins for attack in seen]
    assert begins == [None, None, True, False, True, None, True, False, True, None]
    first, other = seen[2], seen[4]
    assert first is not None
    assert other is not None
    assert not set(first.batch) & set(other.batch)
    assert first.learning_rate != other.learning_rate


def test_moments_of_one_kind_of_step_are_not_taken_into_another(llama: Tiny) -> None:
    knobs = {"schedule": {"type": "cycles", "forget_steps": 2, "rehearsal_steps": 3}, "learning_rate": 1e-3}
    model, tokenizer = load(llama)
    points: list[Tensor] = []

    class Points(Notes):
        def on_step(self, step: int, total: int) -> None:
            super().on_step(step, total)
            points.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))

    method = method_of(**knobs, max_grad_norm=1e6)
    unlearn(model, tokenizer, *sets(tokenizer), method, seed=0, watcher=Points())
    # The first step of AdamW moves every coordinate by the learning rate; with old moments it would not.
    first_rehearsed, first_after = points[2] - points[1], points[5] - points[4]
    assert float(first_rehearsed.abs().median()) == pytest.approx(1e-3, rel=0.02)
    assert float(first_after.abs().median()) == pytest.approx(1e-3, rel=0.02)


# When it stops.


def shown(probability: float) -> Shown:
    return Shown(probability, 0.0, 1)


TARGETS = Targets(max_forget_probability=0.1, max_forget_extraction_strength=0.1, min_retain_probability_ratio=0.9)


def test_what_comes_back_in_a_rehearsal_has_to_stay_below_the_targets_too() -> None:
    rule = StopRule(TARGETS, 9, 0)
    forgotten = Probe(4, shown(0.05), shown(0.9), 1.0, resurfaced=shown(0.3))
    assert rule.judge(forgotten) == (True, None)
    assert rule.judge(replace(forgotten, step=8, resurfaced=shown(0.2))) == (True, None)
    assert rule.judge(replace(forgotten, step=12, resurfaced=shown(0.05))) == (True, "targets_met")


def test_a_run_in_cycles_is_probed_where_the_schedule_turns_and_stops_after_a_rehearsal(memorised: Tiny) -> None:
    loose = Targets(max_forget_probability=1, max_forget_extraction_strength=1, min_retain_probability_ratio=0)
    model, tokenizer = load(memorised)
    notes = Notes()
    method = method_of(schedule=CYCLES.model_dump(), steps=12, stop={"type": "targets", "every": 1})
    outcome = unlearn(model, tokenizer, *sets(tokenizer), method, seed=0, targets=loose, watcher=notes)
    assert [probe.step for probe in outcome.probes] == [0, 2, 5]
    assert [probe.resurfaced is None for probe in outcome.probes] == [True, True, False]
    assert outcome.probes[-1].resurfaced == outcome.probes[-1].forget
    assert (outcome.reason, outcome.kept_step) == ("targets_met", 5)
    assert [report.kind[0] for report in notes.reports] == list(islice("ffrrr", 5))
    assert [report.forget_loss == 0 for report in notes.reports] == [False, False, True, True, True]


def test_a_run_in_cycles_does_not_end_before_it_has_trained_on_every_forget_record(memorised: Tiny) -> None:
    loose = Targets(max_forget_probability=1, max_forget_extraction_strength=1, min_retain_probability_ratio=0)
    model, tokenizer = load(memorised)
    forget, retain = sets(tokenizer)
    schedule = {"type": "cycles", "forget_steps": 1, "rehearsal_steps": len(forget)}
    method = method_of(schedule=schedule, steps=100, stop={"type": "targets"}, forget_batch_size=1)
    outcome = unlearn(model, tokenizer, forget, retain, method, seed=0, targets=loose)
    assert outcome.reason == "targets_met"
    assert place_of(outcome.kept_step, method.schedule).forgotten == len(forget)


def test_what_the_whole_forget_set_shows_after_a_rehearsal_counts_later_too(memorised: Tiny) -> None:
    loose = Targets(max_forget_probability=1, max_forget_extraction_strength=1, min_retain_probability_ratio=0)
    model, tokenizer = load(memorised)
    forget, retain = sets(tokenizer)
    method = method_of(schedule=CYCLES.model_dump(), steps=12, stop={"type": "targets", "records": 1})
    outcome = unlearn(model, tokenizer, forget, retain, method, seed=0, targets=loose)
    last = outcome.probes[-1]
    assert last.step == 5
    assert last.forget.sequences == len(forget) > 1
    assert last.resurfaced == last.forget
