"""Whole runs: what they report, what they refuse, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from app.methods import FORGET_LOSSES
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, blur_method, encode, memorise
from tests.worker.unlearning.engine import PAD, SEED, Notes, flat, load, make_stepper, plain_outputs, see, sets
from worker.unlearning import loop
from worker.unlearning.encoding import Example
from worker.unlearning.likelihood import sequence_nll
from worker.unlearning.loop import StepReport, UnlearningError, Watcher, learning_rate_at, unlearn
from worker.unlearning.lora import adapter_state, attach_adapter, read_state
from worker.unlearning.losses.ga import Ga
from worker.unlearning.models import load_base

EMPTY = Example(9, (5,), 1, "", "")


def factors_of(model: Any) -> Tensor:
    return flat([p for p in model.parameters() if p.requires_grad])


def run(tiny: Tiny, watcher: Watcher | None = None, *, seed: int = 0, **knobs: Any) -> tuple[Any, list[StepReport]]:
    """The model after a run on both sets, and the reports."""
    model, tokenizer = load(tiny)
    notes = watcher or Notes()
    unlearn(model, tokenizer, *sets(tokenizer), blur_method(**knobs), seed=seed, watcher=notes)
    return model, getattr(notes, "reports", [])


# What comes out.


def test_forget_set_is_unlearned_and_retain_set_stays(tiny: Tiny) -> None:
    model, tokenizer = load(tiny)
    forget, retain = sets(tokenizer)
    memorise(model, forget + retain)
    before = [sequence_nll(model, part, PAD, 8).mean() for part in (forget, retain)]
    unlearn(model, tokenizer, forget, retain, blur_method(steps=40, learning_rate=5e-3), seed=1)
    after = [sequence_nll(model, part, PAD, 8).mean() for part in (forget, retain)]
    assert float(after[0]) > float(before[0]) + 20
    assert float(after[1]) < float(before[1]) + 1


@pytest.mark.parametrize("anchor", ["none", "base"])
@pytest.mark.parametrize("loss", FORGET_LOSSES)
def test_every_loss_forgets_and_keeps(memorised: Tiny, loss: str, anchor: str) -> None:
    model, tokenizer = load(memorised)
    forget, retain = sets(tokenizer)
    before = [sequence_nll(model, part, PAD, 8).mean() for part in (forget, retain)]
    method = blur_method(
        forget_loss={"type": loss}, anchor=anchor, steps=25, learning_rate=5e-3, gamma=0.5, gamma_scale="relative"
    )
    unlearn(model, tokenizer, forget, retain, method, seed=1)
    after = [sequence_nll(model, part, PAD, 8).mean() for part in (forget, retain)]
    assert float(after[0]) > float(before[0]) + 2
    # Nats per sequence. rmu alone comes near: its aim is drawn at random, and processors round its way differently.
    assert float(after[1]) < float(before[1]) + 5


def test_anchor_holds_what_would_be_pushed_below_never_seen(memorised: Tiny) -> None:
    """Gradient ascent has no end of its own."""
    model, tokenizer = load(memorised)
    forget = sets(tokenizer)[0]
    with model.disable_adapter():
        base = float(sequence_nll(model, forget, PAD, 8).mean())
    knobs: dict[str, Any] = {
        "forget_loss": {"type": "ga"},
        "gamma": 1.0,
        "gamma_scale": "relative",
        "steps": 60,
        "learning_rate": 5e-3,
    }
    held, free = (
        float(sequence_nll(run(memorised, **knobs, anchor=anchor)[0], forget, PAD, 8).mean())
        for anchor in ("base", "none")
    )
    assert free > 1.5 * base
    assert 0.7 * base < held < 1.2 * base


def test_base_weights_are_never_touched(tiny: Tiny) -> None:
    model, tokenizer = load(tiny)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    unlearn(model, tokenizer, *sets(tokenizer), blur_method(), seed=0)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    stored = read_state(tiny.adapter)
    state = adapter_state(model, like=stored)
    assert all(not torch.equal(state[key], stored[key]) for key in stored), "every factor is trained"


def test_same_seed_same_bytes_and_another_seed_other_bytes(tiny: Tiny) -> None:
    knobs: dict[str, Any] = {
        "steps": 6,
        "forget_batch_size": 2,
        "retain_batch_size": 2,
        "forget_loss": {"type": "idk_dpo"},
    }
    first, again, other = (factors_of(run(tiny, seed=seed, **knobs)[0]) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_draws_of_others_change_nothing(llama: Tiny) -> None:
    results = []
    for others in (1, 2):
        torch.manual_seed(others)
        results.append(factors_of(run(llama, forget_loss={"type": "rmu"})[0]))
    assert torch.equal(*results)


def test_reference_stays_exact_when_the_model_comes_in_training_mode(tiny: Tiny) -> None:
    model, tokenizer = load(tiny)
    model.train()  # dropout of the adapter, and of GPT-2, would be on
    notes = Notes()
    unlearn(model, tokenizer, *sets(tokenizer), blur_method(steps=1), seed=0, watcher=notes)
    assert notes.reports[0].forget_loss == pytest.approx(2 / 0.03 * math.log(2), rel=1e-5)
    _, reports = run(tiny, steps=1)
    assert notes.reports == reports


def test_bfloat16_base_is_unlearned_through_float32_factors(tiny: Tiny) -> None:
    base, tokenizer = load_base(tiny.base, dtype=torch.bfloat16)
    model = attach_adapter(base, tiny.adapter)
    notes = Notes()
    method = blur_method(steps=15, learning_rate=5e-3)
    unlearn(model, tokenizer, *sets(tokenizer), method, seed=0, watcher=notes)
    assert notes.reports[0].forget_loss == pytest.approx(2 / 0.03 * math.log(2), rel=0.01)
    assert notes.reports[-1].forget_loss < notes.reports[0].forget_loss - 5
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_one_pass_and_two_end_alike(llama: Tiny) -> None:
    one, two = (run(llama, steps=1, passes=passes, max_grad_norm=1e6)[1][0] for passes in ("one", "two"))
    for name, value in vars(one).items():
        wanted = getattr(two, name)
        assert value == (wanted if isinstance(wanted, str) else pytest.approx(wanted, rel=1e-4)), name


# Reports.


def test_every_step_is_begun_and_reported_once_in_order(llama: Tiny) -> None:
    notes = Notes()
    run(llama, notes, steps=4)
    assert notes.steps == [1, 2, 3, 4]
    assert [(report.step, report.total_steps) for report in notes.reports] == [(n, 4) for n in (1, 2, 3, 4)]
    assert notes.probes == []


def test_reports_are_the_same_where_they_are_read_late(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = run(llama, steps=7)
    monkeypatch.setattr(loop, "REPORT_EVERY", {})
    monkeypatch.setattr(loop, "REPORT_EVERY_ELSEWHERE", 3)
    order: list[tuple[str, int]] = []

    class Late(Notes):
        def on_step(self, step: int, total: int) -> None:
            order.append(("begun", step))

        def on_report(self, report: StepReport) -> None:
            order.append(("read", report.step))
            super().on_report(report)

        def wants_checkpoint(self) -> bool:
            return False

    _, found = run(llama, Late(), steps=7)
    assert found == expected
    assert [number for what, number in order if what == "read"] == list(range(1, 8))
    assert order.index(("read", 1)) > order.index(("begun", 2)), "read late, several at once"


def test_report_describes_the_step(llama: Tiny) -> None:
    """The second, where there is momentum and no update is what the optimizer moves along."""
    model, tokenizer = load(llama)
    points: list[Tensor] = [factors_of(model)]

    class Points(Notes):
        def on_step(self, step: int, total: int) -> None:
            super().on_step(step, total)
            points.append(factors_of(model))

    notes = Points()
    method = blur_method(steps=2, learning_rate=1e-3, learning_rate_schedule="linear", max_grad_norm=0.5)
    unlearn(model, tokenizer, *sets(tokenizer), method, seed=0, watcher=notes)
    made = make_stepper(*load(llama), *sets(tokenizer), method, away=0.0)
    made.factors.vector.copy_(points[1])
    seen = see(made)
    report, move = notes.reports[1], points[2] - points[1]
    f, r = seen.forget, seen.retain
    assert report.learning_rate == pytest.approx(5e-4)
    assert report.forget_loss == pytest.approx(seen.forget_loss, rel=1e-4)
    assert report.retain_loss == pytest.approx(seen.retain_loss, rel=1e-4)
    assert report.forget_norm == pytest.approx(float(f.norm()), rel=1e-4)
    assert report.retain_norm == pytest.approx(float(r.norm()), rel=1e-4)
    assert report.cosine == pytest.approx(float(torch.cosine_similarity(f, r, dim=0)), abs=1e-4)
    xi = 0.05 - f.dot(r) / f.dot(f)
    assert report.forget_weight == pytest.approx(float(xi), rel=1e-3)
    assert report.update_norm == pytest.approx(float((r + xi * f).norm()), rel=1e-4)
    assert report.clipped
    assert report.descent_cosine == pytest.approx(-float(torch.cosine_similarity(move, f, dim=0)), abs=1e-3)
    assert not run(llama, steps=1, max_grad_norm=1e6)[1][0].clipped


def test_preconditioned_first_step_never_raises_the_forget_loss_where_a_raw_one_may(llama: Tiny) -> None:
    """Both sets are the same, so that forgetting and retaining are in conflict."""
    _, tokenizer = load(llama)
    forget, retain = sets(tokenizer)
    descents: dict[str, list[float]] = {"raw": [], "preconditioned": []}
    for projection, found in descents.items():
        for examples in (forget, retain, forget[:1], forget[1:2]):
            model, _ = load(llama)
            notes = Notes()
            method = blur_method(projection=projection, gamma=0.0, steps=1, forget_loss={"type": "ihl"})
            unlearn(model, tokenizer, examples, examples, method, seed=0, watcher=notes)
            found.append(notes.reports[0].descent_cosine)
    assert min(descents["raw"]) < -1e-3
    assert descents["preconditioned"] == pytest.approx([0.0] * 4, abs=1e-4)


# The learning rate.


@pytest.mark.parametrize(
    ("knobs", "rates"),
    [
        ({}, [1.0, 1.0, 1.0, 1.0]),
        ({"warmup_steps": 1}, [1.0, 1.0, 1.0, 1.0]),
        ({"warmup_steps": 3}, [1 / 3, 2 / 3, 1.0, 1.0]),
        ({"learning_rate_schedule": "linear"}, [1.0, 0.75, 0.5, 0.25]),
        ({"learning_rate_schedule": "linear", "warmup_steps": 2}, [0.5, 1.0, 1.0, 0.5]),
        (
            {"learning_rate_schedule": "cosine"},
            [1.0, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0.5 - 0.5 * math.cos(math.pi / 4)],
        ),
        ({"learning_rate_schedule": "cosine", "warmup_steps": 2}, [0.5, 1.0, 1.0, 0.5]),
        ({"learning_rate_schedule": "cosine", "warmup_steps": 9}, [1 / 9, 2 / 9, 3 / 9, 4 / 9]),
        ({"learning_rate_schedule": "linear", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_learning_rate_rises_and_falls_as_scheduled(knobs: dict[str, Any], rates: list[float]) -> None:
    method = blur_method(**knobs, steps=4, learning_rate=1.0)
    assert [learning_rate_at(step, method) for step in range(4)] == pytest.approx(rates)


def test_steps_are_taken_at_the_scheduled_rate(llama: Tiny) -> None:
    knobs: dict[str, Any] = {"learning_rate_schedule": "linear", "warmup_steps": 2, "learning_rate": 1e-3}
    start = factors_of(load(llama)[0])
    model, reports = run(llama, **knobs, steps=4)
    assert [report.learning_rate for report in reports] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    model, _ = run(llama, **knobs, steps=1)
    largest = float((factors_of(model) - start).abs().max())
    assert largest == pytest.approx(5e-4, rel=1e-2), "AdamW's first step moves by the rate"


# What stops a run.


@pytest.mark.parametrize("method", ["on_step", "on_report", "on_probe", "wants_checkpoint", "on_checkpoint"])
def test_watcher_that_raises_stops_the_run(memorised: Tiny, method: str) -> None:
    class Cancel(Notes):
        pass

    def cancel(*_: object) -> None:
        raise InterruptedError

    setattr(Cancel, method, cancel)
    model, tokenizer = load(memorised)
    notes = Cancel(checkpoint_after=[1, 2, 3])
    stop = {"type": "targets", "every": 2}
    with pytest.raises(InterruptedError):
        unlearn(model, tokenizer, *sets(tokenizer), blur_method(steps=9, stop=stop), seed=0, watcher=notes)
    assert len(notes.steps) <= 2
    assert not any("forward" in module.__dict__ for module in model.modules()), "the model is as it was"
    plain_outputs(model, sets(tokenizer)[0])[0].sum().backward()  # type: ignore[no-untyped-call]


def poisoned(value: float) -> Callable[[Tiny], None]:
    def poison(tiny: Tiny) -> None:
        class Poison(Notes):
            def on_step(self, step: int, total: int) -> None:
                super().on_step(step, total)
                if step == 2:
                    next(p for p in model.parameters() if p.requires_grad).data.fill_(value)

        model, tokenizer = load(tiny)
        unlearn(model, tokenizer, *sets(tokenizer), blur_method(steps=9), seed=0, watcher=Poison())

    return poison


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e30])
def test_divergence_stops_with_the_number_of_the_step(llama: Tiny, value: float) -> None:
    with pytest.raises(UnlearningError, match=r"not finite in step 3$"):
        poisoned(value)(llama)


def test_divergence_of_the_last_step_is_noticed_too(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ga, "token_values", lambda _self, logits, *_: logits.sum(-1) * float("nan"))
    with pytest.raises(UnlearningError, match=r"not finite in step 1$"):
        run(llama, steps=1, forget_loss={"type": "ga"})


def test_gradients_that_are_all_zero_are_an_error(llama: Tiny) -> None:
    model, tokenizer = load(llama)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    with pytest.raises(UnlearningError, match="both gradients are zero in step 1: the adapter cannot be trained"):
        unlearn(model, tokenizer, *sets(tokenizer), blur_method(), seed=0)


def silence(monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
    """Let the forget loss have no gradient in these steps."""
    calls: list[int] = []
    shipped = Ga.token_values

    def values(self: Ga, logits: Tensor, labels: Tensor, source: Tensor | None) -> Tensor:
        calls.append(1)
        return shipped(self, logits, labels, source) * (0.0 if first <= len(calls) <= last else 1.0)

    monkeypatch.setattr(Ga, "token_values", values)


def test_nothing_to_forget_at_the_start_is_an_error(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    silence(monkeypatch, 1, 1)
    with pytest.raises(UnlearningError, match="the forget gradient is zero in step 1"):
        run(llama, forget_loss={"type": "ga"})


def test_nothing_left_to_forget_later_is_none(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    silence(monkeypatch, 2, 3)
    _, reports = run(llama, forget_loss={"type": "ga"}, steps=4)
    assert [report.forget_norm > 0 for report in reports] == [True, False, False, True]
    assert reports[1].cosine == reports[1].descent_cosine == 0.0


def test_nothing_to_draw_to_the_anchor_at_the_start_is_none(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    silence(monkeypatch, 1, 1)
    _, reports = run(llama, forget_loss={"type": "ga"}, steps=2, anchor="base")
    assert reports[0].forget_norm == 0


def test_zero_retain_gradient_of_the_source_is_none(llama: Tiny) -> None:
    """KL is zero there."""
    _, reports = run(llama, retain_loss={"type": "kl"}, steps=3)
    assert reports[0].retain_loss == pytest.approx(0, abs=1e-6)
    assert reports[2].retain_loss > 1e-6


# What a run refuses.


@pytest.mark.parametrize("empty", ["forget", "retain"])
@pytest.mark.parametrize("nothing", [[], [EMPTY]])
def test_set_without_labels_is_refused(llama: Tiny, empty: str, nothing: list[Example]) -> None:
    model, tokenizer = load(llama)
    forget, retain = sets(tokenizer)
    chosen = (nothing, retain) if empty == "forget" else (forget, nothing)
    with pytest.raises(UnlearningError, match=f"{empty} set has no sequence"):
        unlearn(model, tokenizer, *chosen, blur_method(), seed=0)


def test_examples_without_labels_change_nothing(llama: Tiny) -> None:
    _, expected = run(llama, steps=2)
    model, tokenizer = load(llama)
    forget, retain = sets(tokenizer)
    notes = Notes()
    unlearn(model, tokenizer, [EMPTY, *forget, EMPTY], [*retain, EMPTY], blur_method(steps=2), seed=0, watcher=notes)
    assert notes.reports == expected


def test_model_that_cannot_be_trained_is_refused(llama: Tiny) -> None:
    model, tokenizer = load(llama)
    model.requires_grad_(False)
    with pytest.raises(UnlearningError, match="no trainable parameter"):
        unlearn(model, tokenizer, *sets(tokenizer), blur_method(), seed=0)


def test_model_that_a_knob_does_not_fit_is_refused(embedded: Tiny) -> None:
    with pytest.raises(UnlearningError, match="embeddings need two passes"):
        run(embedded, passes="one")


def test_small_sets_and_large_batches_go_together(llama: Tiny) -> None:
    model, tokenizer = load(llama)
    forget = encode(FORGET_RECORDS[:1], tokenizer)
    retain = encode(RETAIN_RECORDS[:3], tokenizer)
    notes = Notes()
    method = blur_method(steps=3, forget_batch_size=64, retain_batch_size=2)
    outcome = unlearn(model, tokenizer, forget, retain, method, seed=SEED, watcher=notes)
    assert (outcome.steps, outcome.kept_step, outcome.reason) == (3, 3, "steps_taken")
    assert outcome.micro_batch_size == 64
    assert len(notes.reports) == 3
