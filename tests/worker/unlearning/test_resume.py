"""Runs that are killed and go on, to the very bytes that they would have ended with."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from safetensors.torch import save

from app.methods import METHOD, Method, Targets
from tests.worker.conftest import CONTEXT, Tiny
from tests.worker.unlearning.engine import Killed, Notes, drift, load, sets
from worker.unlearning import loop, step
from worker.unlearning.checkpoint import Checkpoint, CheckpointError
from worker.unlearning.encoding import Example
from worker.unlearning.loop import Outcome, UnlearningError, unlearn
from worker.unlearning.lora import adapter_state

STEPS = 12
STOP = {"type": "targets", "every": 3, "patience": 9}
TARGETS = Targets(max_forget_probability=0.3, max_forget_extraction_strength=0.5, min_retain_probability_ratio=1.0)
METHODS: dict[str, dict[str, Any]] = {
    "blur": {"gamma": 0.3},
    "relative": {
        "gamma": 0.3,
        "gamma_scale": "relative",
        "scope": "module",
        "learning_rate_schedule": "cosine",
        "warmup_steps": 5,
    },
    "preconditioned": {
        "gamma": 0.3,
        "gamma_scale": "relative",
        "projection": "preconditioned",
        "weight_decay": 0.1,
    },
    "pdu": {"type": "pdu", "max_retain_loss": 0.01, "dual_warmup_steps": 2},
    "forget_upper": {"type": "forget_upper", "gamma": 0.3},
    "kl": {"gamma": 0.3, "retain_loss": {"type": "kl"}, "forget_loss": {"type": "undial"}, "anchor": "base"},
    "rmu": {"gamma": 0.3, "forget_loss": {"type": "rmu"}},
    "idk_dpo": {"gamma": 0.3, "forget_loss": {"type": "idk_dpo"}},
    "steps": {"gamma": 0.3, "stop": {"type": "steps"}},
    "cycles": {"gamma": 0.3, "schedule": {"type": "cycles", "forget_steps": 2, "rehearsal_steps": 3}},
    "meta_cycles": {
        "gamma": 0.3,
        "schedule": {
            "type": "meta_cycles",
            "forget_steps": 2,
            "rehearsal_steps": 2,
            "cycles": 1,
            "simulation_steps": 3,
            "settling_steps": 1,
            "attack_steps": 4,
        },
    },
}


def method_of(name: str, **knobs: Any) -> Method:
    small = {"steps": STEPS, "max_length": CONTEXT, "stop": STOP, "anchor": "none", "learning_rate": 5e-3}
    batches = {"forget_batch_size": 2, "retain_batch_size": 3}
    return METHOD.validate_python(small | batches | METHODS[name] | knobs)


def run(
    tiny: Tiny, method: Method, notes: Notes, resume: Checkpoint | None = None, *, seed: int = 3
) -> tuple[Outcome, bytes]:
    """The outcome, and the adapter as a file's content."""
    model, tokenizer = load(tiny)
    outcome = unlearn(
        model, tokenizer, *sets(tokenizer), method, seed=seed, targets=TARGETS, watcher=notes, resume=resume
    )
    return outcome, save(adapter_state(model))


@lru_cache(maxsize=32)
def whole(tiny: Tiny, name: str) -> tuple[Outcome, bytes, Notes]:
    """Without interruption."""
    notes = Notes()
    return *run(tiny, method_of(name), notes), notes


def killed(tiny: Tiny, method: Method, at: int, every: int = 1, resume: Checkpoint | None = None) -> Checkpoint:
    """The last checkpoint of a run that is killed after a step, by way of its bytes."""
    notes = Notes(checkpoint_after=range(0, STEPS, every), kill_after=at)
    with pytest.raises(Killed):
        run(tiny, method, notes, resume)
    return Checkpoint.from_bytes(notes.checkpoints[-1].to_bytes())


def assert_alike(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.fingerprint, one.scalars) == (other.fingerprint, other.scalars)
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


@pytest.mark.parametrize("name", METHODS)
def test_run_goes_on_to_the_same_bytes_from_wherever_it_was_killed(memorised: Tiny, name: str) -> None:
    expected, adapter, seen = whole(memorised, name)
    assert expected.steps == STEPS, "the targets are out of reach"
    kills = {"blur": 5, "preconditioned": 5, "pdu": 5, "meta_cycles": 9}.get(name, 2)
    for at in random.Random(name).sample(range(3, STEPS), kills):  # noqa: S311
        checkpoint = killed(memorised, method_of(name), at, every=2)
        assert checkpoint.scalars["step"] in (at - 1, at - 2)
        notes = Notes()
        outcome, again = run(memorised, method_of(name), notes, checkpoint)
        assert outcome == expected
        assert again == adapter
        assert notes.reports == seen.reports[checkpoint.scalars["step"] :]
        assert [probe.step for probe in notes.probes] == [
            probe.step for probe in seen.probes if probe.step > checkpoint.scalars["step"]
        ]


def test_best_point_from_before_the_kill_is_kept(memorised: Tiny) -> None:
    knobs = {"forget_loss": {"type": "ga"}, "gamma": 30.0, "learning_rate": 2e-3}
    method = method_of("blur", **knobs)
    notes = Notes()
    expected, adapter = run(memorised, method, notes)
    assert 0 < expected.kept_step < STEPS - 4
    checkpoint = killed(memorised, method, STEPS - 1)
    assert checkpoint.scalars["step"] > expected.kept_step
    assert run(memorised, method, Notes(), checkpoint) == (expected, adapter)


def test_patience_from_before_the_kill_counts(memorised: Tiny) -> None:
    knobs = {"forget_loss": {"type": "ga"}, "gamma": 30.0, "learning_rate": 2e-3}
    method = method_of("blur", **knobs, stop=STOP | {"every": 2, "patience": 3})
    expected, adapter = run(memorised, method, Notes())
    assert expected.reason == "no_progress"
    checkpoint = killed(memorised, method, expected.steps - 1)
    assert run(memorised, method, Notes(), checkpoint) == (expected, adapter)


def test_run_may_be_killed_again_after_it_went_on(memorised: Tiny) -> None:
    expected, adapter, _ = whole(memorised, "pdu")
    method = method_of("pdu")
    first = killed(memorised, method, 5, every=2)
    second = killed(memorised, method, 7, every=2, resume=first)
    third = killed(memorised, method, 11, every=2, resume=second)
    assert [checkpoint.scalars["step"] for checkpoint in (first, second, third)] == [4, 6, 10]
    assert run(memorised, method, Notes(), third) == (expected, adapter)


def test_checkpoint_may_be_used_twice(memorised: Tiny) -> None:
    checkpoint = killed(memorised, method_of("preconditioned"), 7)
    before = Checkpoint.from_bytes(checkpoint.to_bytes())
    first, second = (run(memorised, method_of("preconditioned"), Notes(), checkpoint) for _ in range(2))
    assert first == second
    assert_alike(checkpoint, before)


def test_checkpoint_stays_as_it_is_while_the_run_goes_on(memorised: Tiny) -> None:
    notes = Notes(checkpoint_after=[4])
    run(memorised, method_of("pdu"), notes)
    alone = killed(memorised, method_of("pdu"), 5, every=4)
    assert_alike(notes.checkpoints[0], alone)


def test_checkpoints_change_nothing(memorised: Tiny) -> None:
    expected, adapter, _ = whole(memorised, "blur")
    notes = Notes(checkpoint_after=range(STEPS + 1))
    assert run(memorised, method_of("blur"), notes) == (expected, adapter)
    assert [c.scalars["step"] for c in notes.checkpoints] == list(range(1, STEPS)), "none after the last step"


def test_what_memory_forced_is_remembered(memorised: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another micro-batch size adds in another order, and ends in other bytes."""
    monkeypatch.setattr(step, "ONE_PASS_DEVICES", ("cpu",))
    method = method_of("blur", passes="auto", micro_batch_size=3)

    def starved(resume: Checkpoint | None, notes: Notes) -> tuple[Outcome, bytes]:
        """One pass that does not fit, in the third step."""
        passes: list[int] = []
        shipped = step.Stepper._micro_batch

        def limited(self: Any, *args: Any) -> None:
            passes.append(1)
            if len(passes) == 3 and resume is None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            shipped(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step.Stepper, "_micro_batch", limited)
            return run(memorised, method, notes, resume)

    notes = Notes(checkpoint_after=[8])
    expected, adapter = starved(None, notes)
    assert (expected.micro_batch_size, expected.passes) == (1, 1)
    assert starved(notes.checkpoints[0], Notes()) == (expected, adapter)


def test_checkpoint_before_a_divergence_is_good(memorised: Tiny) -> None:
    class Poisoned(Notes):
        def on_step(self, step: int, total: int) -> None:
            super().on_step(step, total)
            if step == 6:
                model.get_parameter(factor).data[0, 0] = float("nan")

    expected, adapter, _ = whole(memorised, "steps")
    model, tokenizer = load(memorised)
    factor = next(name for name, p in model.named_parameters() if p.requires_grad)
    notes = Poisoned(checkpoint_after=range(1, 6))
    with pytest.raises(UnlearningError, match=r"not finite in step 7$"):
        unlearn(model, tokenizer, *sets(tokenizer), method_of("steps"), seed=3, targets=TARGETS, watcher=notes)
    assert len(notes.checkpoints) == 5
    assert run(memorised, method_of("steps"), Notes(), notes.checkpoints[-1]) == (expected, adapter)


def test_divergence_is_never_put_into_a_checkpoint(memorised: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, numbers are read some steps late; but always before a checkpoint."""

    class Poisoned(Notes):
        def on_step(self, step: int, total: int) -> None:
            super().on_step(step, total)
            if step == 2:
                model.get_parameter(factor).data[0, 0] = float("nan")

    monkeypatch.setattr(loop, "REPORT_EVERY", {})
    model, tokenizer = load(memorised)
    factor = next(name for name, p in model.named_parameters() if p.requires_grad)
    notes = Poisoned(checkpoint_after=[4])
    with pytest.raises(UnlearningError, match=r"not finite in step 3$"):
        unlearn(model, tokenizer, *sets(tokenizer), method_of("steps"), seed=3, watcher=notes)
    assert notes.checkpoints == []
    assert [report.step for report in notes.reports] == [1, 2]


# Checkpoints of other runs.


def other_data(examples: list[Example]) -> list[Example]:
    first = examples[0]
    return [replace(first, input_ids=(*first.input_ids[:-2], 7, first.input_ids[-1])), *examples[1:]]


def other_labels(examples: list[Example]) -> list[Example]:
    return [replace(examples[0], prompt_length=examples[0].prompt_length + 1), *examples[1:]]


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "seed": lambda run: run.update(seed=4),
    "method": lambda run: run.update(method=method_of("blur", gamma=0.31)),
    "combiner": lambda run: run.update(method=method_of("forget_upper")),
    "stop rule": lambda run: run.update(method=method_of("steps")),
    "targets": lambda run: run.update(targets=TARGETS.model_copy(update={"max_forget_probability": 0.29})),
    "forget set": lambda run: run.update(forget=other_data(run["forget"])),
    "forget labels": lambda run: run.update(forget=other_labels(run["forget"])),
    "retain set": lambda run: run.update(retain=other_data(run["retain"])),
    "order": lambda run: run.update(retain=run["retain"][::-1]),
    "sets swapped": lambda run: run.update(forget=run["retain"], retain=run["forget"]),
    "source adapter": lambda run: drift([p for p in run["model"].parameters() if p.requires_grad], 1e-6),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_checkpoint_of_another_run_is_refused(memorised: Tiny, changed: str) -> None:
    checkpoint = killed(memorised, method_of("blur"), 4)
    model, tokenizer = load(memorised)
    forget, retain = sets(tokenizer)
    other = {"model": model, "forget": forget, "retain": retain, "method": method_of("blur"), "seed": 3}
    other["targets"] = TARGETS
    CHANGES[changed](other)
    with pytest.raises(CheckpointError, match="another run"):
        unlearn(tokenizer=tokenizer, resume=checkpoint, **other)


def test_checkpoint_of_another_frozen_layer_is_refused(memorised: Tiny) -> None:
    """RMU trains the lower layer alone; what it computes with is in the upper one too."""
    method = method_of("rmu")
    checkpoint = killed(memorised, method, 4)
    model, tokenizer = load(memorised)
    name = next(name for name, _ in model.named_parameters() if "lora_B" in name and ".layers.1." in name)
    model.get_parameter(name).data.mul_(1.01)
    with pytest.raises(CheckpointError, match="another run"):
        unlearn(model, tokenizer, *sets(tokenizer), method, seed=3, targets=TARGETS, resume=checkpoint)
