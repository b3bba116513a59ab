"""What a run says of itself: the sections of its evaluation, warnings, and the reason why a gate failed."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch

from app.methods import StopAtTargets
from app.settings import Settings
from worker.evaluation.evaluate import SetScores
from worker.evaluation.gate import Gate, judge
from worker.order import Order
from worker.unlearning.loop import Outcome
from worker.unlearning.probe import Probe

NOT_TESTED = (
    "whether further fine-tuning, on kept or on forgotten records, brings the forgotten ones back",
    "paraphrased, translated, reversed or few-shot prompts, and sampled instead of greedy answers",
    "membership inference",
    "quantised or merged weights",
)


@dataclass(frozen=True)
class Trained:
    """How training went, and whether it went on from the checkpoint of an earlier attempt."""

    outcome: Outcome
    resumed: bool


def means(scores: SetScores) -> dict[str, float]:
    """Without the scores of single records."""
    fields = asdict(scores)
    del fields["per_record"]
    return fields


def training(order: Order, trained: Trained) -> dict[str, object]:
    """The section of that name."""
    outcome = trained.outcome
    return {
        "steps": outcome.steps,
        "kept_step": outcome.kept_step,
        "most_steps": order.method.steps,
        "reason": outcome.reason,
        "explanation": outcome.explanation,
        "micro_batch_size": outcome.micro_batch_size,
        "passes": outcome.passes,
        "resumed": trained.resumed,
        "probes": [_probe(probe) for probe in outcome.probes],
    }


def _probe(probe: Probe) -> dict[str, object]:
    return {
        "step": probe.step,
        "forget_probability": probe.forget.probability,
        "forget_extraction_strength": probe.forget.extraction_strength,
        "forget_sequences": probe.forget.sequences,
        "retain_probability": probe.retain.probability,
        "retain_ratio": probe.retain_ratio,
        "retain_sequences": probe.retain.sequences,
    }


def environment(device: torch.device, threads: int, settings: Settings) -> dict[str, object]:
    """Where it was computed."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu ({platform.machine()})",
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "lethe")},
        "four_bit": settings.four_bit,
        "spread": settings.spread_model,
    }


def missed_targets(order: Order, outcome: Outcome) -> list[str]:
    """That training could not get to where it was to stop."""
    if not isinstance(order.method.stop, StopAtTargets) or outcome.reason == "targets_met":
        return []
    kept = next((probe for probe in outcome.probes if probe.step == outcome.kept_step), None)
    if kept is None:
        return [f"training did not reach the policy's in-training targets: {outcome.explanation}"]
    seen, targets = kept.forget, order.policy.targets
    return [
        f"training did not reach the policy's in-training targets: {outcome.explanation}. The weights of step "
        f"{kept.step} were kept, where the probe saw forget probability {seen.probability:.3f} (target at most "
        f"{targets.max_forget_probability:g}), extraction strength {seen.extraction_strength:.3f} (at most "
        f"{targets.max_forget_extraction_strength:g}), retain ratio {kept.retain_ratio:.3f} (at least "
        f"{targets.min_retain_probability_ratio:g})"
    ]


def unknown_records(order: Order, source: Mapping[str, SetScores]) -> list[str]:
    """What a verdict does not say: records that the source never showed cannot be seen to be forgotten."""
    known = judge(order.policy, source, source)
    if any(check.name.startswith("forget_") and not check.passed for check in known.checks):
        return []
    return [
        f"before unlearning the adapter did not show these records (answer probability "
        f"{source['forget'].probability:.3f}), so that passing the gate says little; check that the prompts are "
        "written as in training"
    ]


def why(gate: Gate) -> str:
    """Which thresholds were missed."""
    missed = [
        f"{check.name} is {'not measurable' if check.value is None else format(check.value, '.3f')}, "
        f"must be {check.comparison} {check.limit:g}"
        for check in gate.checks
        if not check.passed
    ]
    return "the gate failed: " + "; ".join(missed)
