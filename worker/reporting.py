"""What a run says of itself: the sections of its evaluation, warnings, and the reason why a gate failed."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch

from app.methods import Method, ProbeName, StopAtTargets
from app.settings import Settings
from worker.evaluation.battery.history import PREFIX as HISTORY
from worker.evaluation.checks import Gate
from worker.evaluation.evaluate import SetScores
from worker.evaluation.judgement import Judgement
from worker.order import Order, Sample
from worker.unlearning.loop import Outcome
from worker.unlearning.probe import Probe

# Where a probe did not look, what remains unknown; and what no probe looks at.
UNTESTED: dict[ProbeName, str] = {
    "rephrasing": "rephrased, completed and few-shot questions, and instructions put in front",
    "membership": "membership inference",
    "quantization": "rounded or merged weights",
    "integrity": "the files' structure",
    "history": "what earlier requests had removed",
    "resurfacing": "whether further fine-tuning on kept records brings the forgotten ones back",
    "sampling": "sampled instead of greedy answers",
    "relearning": "whether fine-tuning on some of the forgotten records brings the others back",
}
JUST_SEEN = " (measured, not judged)"
WHAT_TO_CHANGE = "The report says what may help: lethe report JOB, or the evaluation as text/html"
NO_REFERENCE = (
    "whether the records are now less likely than for a model that never saw them: the base model knows them, and no "
    "such model is there"
)
NEVER_TESTED = (
    "translated questions, and questions that need several steps",
    "copies of the source adapter, merged checkpoints and training data elsewhere",
)


@dataclass(frozen=True)
class Trained:
    """How training went, and whether it went on from the checkpoint of an earlier attempt."""

    outcome: Outcome
    resumed: bool


@dataclass
class Tried:
    """One training of a run, and how the gate took it.

    Attributes:
        next_change: what the next try made stronger; empty for the last one.
    """

    method: Method
    trained: Trained
    gate: Gate
    next_change: str = ""


def models(judgement: Judgement) -> dict[str, dict[str, dict[str, float]]]:
    """Means by model and set, without the sets of earlier requests, which their probe reports."""
    return {
        model: {name: means(scores) for name, scores in sets.items() if not name.startswith(HISTORY)}
        for model, sets in judgement.scores.items()
    }


def means(scores: SetScores) -> dict[str, float]:
    """Without the scores of single records."""
    fields = asdict(scores)
    del fields["per_record"]
    return fields


def records(judgement: Judgement, samples: Mapping[str, Sample]) -> dict[str, list[dict[str, object]]]:
    """Single records by set, under every model."""
    return {
        name: _rows({model: sets[name] for model, sets in judgement.scores.items()}, found.lines)
        for name, found in samples.items()
        if not name.startswith(HISTORY)
    }


def _rows(of_models: Mapping[str, SetScores], lines: Sequence[int]) -> list[dict[str, object]]:
    rows: dict[int, dict[str, object]] = {}
    for model, scores in of_models.items():
        for found in scores.per_record:
            row = rows.setdefault(found.record, {"record": lines[found.record]})
            row[model] = {
                "probability": found.probability,
                "nll": found.nll,
                "extraction_strength": found.extraction_strength,
            }
    return [rows[record] for record in sorted(rows)]


def tries(made: Sequence[Tried]) -> list[dict[str, object]]:
    """The section of that name."""
    changes = ["", *(tried.next_change for tried in made)]
    return [
        {
            "number": number,
            "change": change,
            "method": tried.method,
            "steps": tried.trained.outcome.steps,
            "verdict": tried.gate.verdict,
            "missed": [check.name for check in tried.gate.checks if not check.passed],
        }
        for number, (change, tried) in enumerate(zip(changes, made, strict=False), start=1)
    ]


def not_tested(judgement: Judgement) -> list[str]:
    """What the verdict says nothing about."""
    judged = {check.probe for check in judgement.gate.checks}
    seen = {report.name for report in judgement.probes if report.measured} - judged
    missing = [words + (JUST_SEEN if name in seen else "") for name, words in UNTESTED.items() if name not in judged]
    return missing + ([NO_REFERENCE] if judgement.reference is None else []) + list(NEVER_TESTED)


def training(last: Tried) -> dict[str, object]:
    """The section of that name."""
    outcome = last.trained.outcome
    return {
        "steps": outcome.steps,
        "kept_step": outcome.kept_step,
        "most_steps": last.method.steps,
        "reason": outcome.reason,
        "explanation": outcome.explanation,
        "micro_batch_size": outcome.micro_batch_size,
        "passes": outcome.passes,
        "sequences": outcome.sequences,
        "resumed": last.trained.resumed,
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
        "resurfaced_probability": probe.resurfaced.probability if probe.resurfaced else None,
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


def missed_targets(order: Order, last: Tried) -> list[str]:
    """That training could not get to where it was to stop."""
    outcome = last.trained.outcome
    if not isinstance(last.method.stop, StopAtTargets) or outcome.reason == "targets_met":
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


def unknown_records(judgement: Judgement) -> list[str]:
    """What a verdict does not say: records that the source never showed cannot be seen to be forgotten."""
    if judgement.known_before:
        return []
    return [
        f"before unlearning the model did not show these records (answer probability "
        f"{judgement.scores['source']['forget'].probability:.3f}), so that passing the gate says little; check that "
        "the prompts are written as in training"
    ]


def unfit_control(judgement: Judgement) -> list[str]:
    """That the control cannot be what it was named for."""
    if judgement.control_fits:
        return []
    control, base = (judgement.scores[name] for name in ("control", "base"))
    shown, kept = control["forget"], control["retain"]
    return [
        "the control does not look like an adapter that was trained alike but never on the forget set, so that the "
        f"base model alone was the reference (forget set: answer probability {shown.probability:.3f}, NLL "
        f"{shown.nll:.2f} per token against the base's {base['forget'].nll:.2f}; retain set: answer probability "
        f"{kept.probability:.3f})"
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
