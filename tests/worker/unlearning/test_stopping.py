"""When a run stops and which point it keeps: by made-up probes, and on an adapter that knows its records by heart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from app.methods import Targets
from tests.worker.conftest import Tiny, blur_method
from tests.worker.unlearning.engine import Notes, load, sets
from worker.unlearning import loop, probe
from worker.unlearning.encoding import Example
from worker.unlearning.loop import Outcome, unlearn
from worker.unlearning.lora import adapter_state
from worker.unlearning.probe import Probe, Shown
from worker.unlearning.stopping import EXPLANATIONS, MIN_PROGRESS, StopRule

TARGETS = Targets(max_forget_probability=0.1, max_forget_extraction_strength=0.05, min_retain_probability_ratio=0.95)


def at(step: int, probability: float, kept: float, strength: float = 0.0) -> Probe:
    return Probe(step, Shown(probability, strength, 4), Shown(0.9 * kept, 1.0, 4), kept)


def rule(patience: int = 2, first_step: int = 1) -> StopRule:
    return StopRule(TARGETS, patience, first_step)


def best_step(made: StopRule) -> int | None:
    return None if made.best is None else made.best.step


def test_stops_where_all_targets_hold() -> None:
    made = rule()
    assert made.judge(at(10, 0.5, 0.99)) == (True, None)
    assert made.judge(at(20, 0.1, 0.95, 0.05)) == (True, "targets_met")
    assert best_step(made) == 20


@pytest.mark.parametrize("missed", [at(10, 0.11, 1.0), at(10, 0.0, 1.0, 0.06), at(10, 0.0, 0.94)])
def test_one_target_missed_is_no_reason_to_stop(missed: Probe) -> None:
    assert rule().judge(missed) == (True, None)


def test_gives_up_after_probes_without_progress() -> None:
    made = rule(patience=2)
    reasons = [made.judge(at(10 * i, p, 1.0))[1] for i, p in enumerate((0.6, 0.5, 0.5, 0.55), start=1)]
    assert reasons == [None, None, None, "no_progress"]
    assert best_step(made) == 20


def test_progress_starts_the_patience_over() -> None:
    made = rule(patience=2)
    found = [made.judge(at(i, p, 1.0))[1] for i, p in enumerate((0.6, 0.6, 0.5, 0.5, 0.4, 0.4), start=1)]
    assert found == [None] * 6
    assert made.judge(at(7, 0.4, 1.0))[1] == "no_progress"


def test_progress_within_the_noise_is_kept_and_wears_the_patience_out() -> None:
    made = rule(patience=2)
    made.judge(at(1, 0.6, 1.0))
    assert made.judge(at(2, 0.6 - MIN_PROGRESS / 2, 1.0)) == (True, None)
    assert made.judge(at(3, 0.6 - MIN_PROGRESS, 1.0)) == (True, "no_progress")
    assert best_step(made) == 3


def test_point_that_forgets_beats_one_that_does_not_whatever_it_kept() -> None:
    made = rule(patience=9)
    assert made.judge(at(1, 0.101, 1.0))[0]
    assert made.judge(at(2, 0.05, 0.1))[0]
    assert not made.judge(at(3, 0.101, 1.0))[0]
    assert best_step(made) == 2


def test_of_points_that_forget_the_one_that_keeps_more_is_better() -> None:
    made = rule(patience=9)
    made.judge(at(1, 0.05, 0.7))
    assert not made.judge(at(2, 0.0, 0.6))[0], "forgetting more than enough is worth nothing"
    assert made.judge(at(3, 0.1, 0.8))[0]
    assert best_step(made) == 3


def test_of_points_that_do_not_forget_the_one_that_shows_less_is_better() -> None:
    made = rule(patience=9)
    made.judge(at(1, 0.5, 1.0, strength=0.3))
    assert made.judge(at(2, 0.52, 0.2, strength=0.2))[0], "both excesses count"
    assert not made.judge(at(3, 0.53, 1.0, strength=0.2))[0]


def test_excess_of_one_target_is_not_paid_for_by_the_other() -> None:
    made = rule(patience=9)
    made.judge(at(1, 0.15, 1.0, strength=0.04))
    assert not made.judge(at(2, 0.16, 1.0, strength=0.0))[0]


def test_no_point_counts_before_every_record_was_seen() -> None:
    made = rule(patience=1, first_step=15)
    assert made.judge(at(0, 0.0, 1.0)) == (False, None)
    assert made.judge(at(10, 0.0, 1.0)) == (False, None)
    assert best_step(made) is None
    assert made.judge(at(20, 0.0, 1.0)) == (True, "targets_met")
    assert [probe.step for probe in made.history] == [0, 10, 20]


def test_state_survives_json() -> None:
    made, other = rule(patience=3), rule(patience=3)
    for number, probability in enumerate((0.6, 0.5, 0.5), start=1):
        made.judge(at(number, probability, 1.0, 0.3))
    other.restore(json.loads(json.dumps(made.state())))
    assert (other.history, other.best) == (made.history, made.best)
    later = at(4, 0.5, 1.0, 0.3), at(5, 0.5, 1.0, 0.3)
    assert [other.judge(probe) for probe in later] == [made.judge(probe) for probe in later]
    assert made.judge(later[1])[1] == "no_progress"


def test_state_of_a_rule_that_has_no_best_survives() -> None:
    made = rule(first_step=9)
    made.judge(at(1, 0.6, 1.0))
    other = rule(first_step=9)
    other.restore(made.state())
    assert other.best is None
    assert other.history == made.history


# On a real adapter.

STOP = {"type": "targets", "every": 5, "patience": 4}
LOOSE = {"max_forget_probability": 0.2, "max_forget_extraction_strength": 0.2, "min_retain_probability_ratio": 0.8}
OUT_OF_REACH = LOOSE | {"min_retain_probability_ratio": 1.0}
CONTENT = {"max_forget_probability": 1.0, "max_forget_extraction_strength": 1.0, "min_retain_probability_ratio": 0.0}
#: Forgets at once, and then loses ever more of the retain set.
BRUTAL: dict[str, Any] = {"forget_loss": {"type": "ga"}, "gamma": 3.0, "learning_rate": 2e-3}


def run(
    tiny: Tiny, targets: dict[str, float] = LOOSE, stop: dict[str, Any] = STOP, **knobs: Any
) -> tuple[Outcome, Notes, dict[str, Tensor]]:
    model, tokenizer = load(tiny)
    usual = {"learning_rate": 5e-3, "steps": 60, "gamma": 0.3, "gamma_scale": "relative", "stop": stop}
    notes, reached = Notes(), Targets.model_validate(targets)
    outcome = unlearn(
        model, tokenizer, *sets(tokenizer), blur_method(**usual | knobs), seed=1, targets=reached, watcher=notes
    )
    return outcome, notes, adapter_state(model)


def assert_factors_are_those_of(step: int, state: dict[str, Tensor], tiny: Tiny, **knobs: Any) -> None:
    """The same run, of so many steps and no more."""
    outcome, _, fixed = run(tiny, stop={"type": "steps"}, **knobs, steps=step)
    assert (outcome.reason, outcome.kept_step, outcome.probes) == ("steps_taken", step, ())
    assert all(torch.equal(state[key], fixed[key]) for key in fixed)


def test_run_stops_early_where_the_targets_hold(memorised: Tiny) -> None:
    outcome, notes, state = run(memorised)
    assert (outcome.reason, outcome.explanation) == ("targets_met", EXPLANATIONS["targets_met"])
    assert 5 <= outcome.steps < 60
    assert outcome.kept_step == outcome.steps == notes.steps[-1]
    assert [probe.step for probe in outcome.probes] == list(range(0, outcome.steps + 1, 5))
    assert outcome.probes == tuple(notes.probes)
    first, last = outcome.probes[0], outcome.probes[-1]
    assert first.forget.probability > 0.5
    assert first.retain_ratio == 1.0
    assert last.forget.probability <= 0.2
    assert last.retain_ratio == pytest.approx(last.retain.probability / first.retain.probability)
    assert_factors_are_those_of(outcome.steps, state, memorised)


def test_run_that_gets_nowhere_keeps_its_best_point(memorised: Tiny) -> None:
    outcome, _, state = run(memorised, OUT_OF_REACH, STOP | {"every": 2, "patience": 2}, **BRUTAL)
    assert outcome.reason == "no_progress"
    assert 0 < outcome.kept_step < outcome.steps < 60
    kept = {probe.step: probe for probe in outcome.probes}[outcome.kept_step]
    forgotten = [p for p in outcome.probes if p.forget.probability <= 0.2 and p.forget.extraction_strength <= 0.2]
    assert kept.retain_ratio == max(probe.retain_ratio for probe in forgotten)
    assert_factors_are_those_of(outcome.kept_step, state, memorised, **BRUTAL)


def test_last_step_is_probed_whenever_it_comes(memorised: Tiny) -> None:
    outcome, _, _ = run(memorised, OUT_OF_REACH, steps=7)
    assert [probe.step for probe in outcome.probes] == [0, 5, 7]
    assert outcome.reason == "steps_taken"


def test_run_that_is_content_with_anything_shows_it_every_record_once(memorised: Tiny) -> None:
    outcome, _, _ = run(memorised, CONTENT, STOP | {"every": 1}, forget_batch_size=1)
    assert (outcome.steps, outcome.reason) == (4, "targets_met")


def test_run_that_ends_before_every_record_was_seen_keeps_its_last_point(memorised: Tiny) -> None:
    outcome, _, state = run(memorised, CONTENT, STOP | {"every": 1}, steps=3, forget_batch_size=1)
    assert (outcome.steps, outcome.kept_step, outcome.reason) == (3, 3, "steps_taken")
    assert_factors_are_those_of(3, state, memorised, forget_batch_size=1)


def test_sample_that_meets_the_targets_is_confirmed_by_the_whole_forget_set(
    memorised: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[int, bool]] = []
    whole = iter((0.5, 0.05))

    def look(_model: Any, examples: Sequence[Example], *_: Any) -> Shown:
        tokenizer = load(memorised)[1]
        forget = set(examples) <= set(sets(tokenizer)[0])
        looks.append((len(examples), forget))
        probability = next(whole) if len(examples) == 4 else 0.01
        return Shown(probability if forget else 0.9, 0.0, len(examples))

    monkeypatch.setattr(loop, "look", look)
    outcome, _, _ = run(memorised, stop=STOP | {"records": 2, "every": 4})
    sampled = [(2, True), (2, False)]
    # The source's probe is confirmed too: it met the targets by its sample.
    assert looks == [*sampled, (4, True), *sampled, (4, True)]
    assert (outcome.reason, outcome.steps) == ("targets_met", 4)
    assert [probe.forget.probability for probe in outcome.probes] == [0.5, 0.05]
    assert [probe.forget.sequences for probe in outcome.probes] == [4, 4]


def test_sample_is_the_same_at_every_probe(memorised: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: set[tuple[Example, ...]] = set()
    shipped = probe.look

    def look(model: Any, examples: Sequence[Example], *rest: Any) -> Shown:
        looks.add(tuple(examples))
        return shipped(model, examples, *rest)

    monkeypatch.setattr(loop, "look", look)
    outcome, _, _ = run(memorised, OUT_OF_REACH, STOP | {"records": 2, "every": 3}, steps=3)
    assert [probe.step for probe in outcome.probes] == [0, 3]
    assert sorted(map(len, looks)) == [2, 2]


def test_probe_that_runs_out_of_memory_takes_fewer_rows(memorised: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = probe.look

    def look(model: Any, examples: Sequence[Example], pad: int, end: int | None, rows: int) -> Shown:
        if rows > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return shipped(model, examples, pad, end, rows)

    monkeypatch.setattr(loop, "look", look)
    outcome, _, _ = run(memorised)
    assert outcome.reason == "targets_met"
    assert outcome.micro_batch_size == 2
