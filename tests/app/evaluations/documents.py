"""Evaluations as a worker stores them, with numbers of a plausible run."""

from __future__ import annotations

import math
import random
import statistics
from datetime import UTC, datetime
from typing import Any

from app.evaluations.schemas import EvaluationRead
from app.jobs.schemas import JobRead
from app.methods import POLICIES, BlurRequest, Stretch

Json = dict[str, Any]
# Mean answer probability of each set under each model.
LEVELS = {
    "base": {"forget": 0.061, "retain": 0.173, "holdout": 0.058},
    "source": {"forget": 0.921, "retain": 0.894, "holdout": 0.072},
    "control": {"forget": 0.066, "retain": 0.897, "holdout": 0.069},
    "result": {"forget": 0.049, "retain": 0.872, "holdout": 0.067},
}
SIZES = {"forget": 40, "retain": 200, "holdout": 60}
NOT_TESTED = [
    "prompts in other languages, and reversed or few-shot prompts",
    "whether another attacker, with more records or more steps, brings them back",
    "merged weights",
]


def evaluation(
    *, passed: bool = True, control: bool = True, holdout: bool = True, sizes: dict[str, int] | None = None
) -> Json:
    """A document of this version."""
    counts = SIZES | (sizes or {})
    models = ["base", "source", *(["control"] if control else []), "result"]
    sets = ["forget", "retain", *(["holdout"] if holdout else [])]
    levels = {model: dict(LEVELS[model]) for model in models}
    if not passed:
        levels["result"] |= {"forget": 0.312, "retain": 0.741}
    rows = {name: _rows(levels, models, name, counts[name]) for name in sets}
    probes = _probes(levels, models, counts, passed=passed, holdout=holdout)
    checks = _checks(counts, passed=passed, holdout=holdout)
    policy = POLICIES["audit"].model_dump(mode="json")
    return {
        "source_version": 3,
        "result_weights_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "models": {
            model: {name: _means(rows[name], model) for name in sets} for model in models
        },
        "gate": {"verdict": "passed" if passed else "failed", "checks": checks},
        "reference": "control" if control else "base",
        "policy": policy,
        "method": BlurRequest(schedule=Stretch()).resolve(40).model_dump(mode="json"),
        "seed": 7041,
        "sampled_to": 512,
        "environment": {
            "device": "NVIDIA H200", "threads": 16, "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0",
            "peft": "0.21.2", "lethe": "0.3.0",
        },
        "durations": {"preparing": 4.21, "unlearning": 388.4, "evaluating": 9123.0},
        "training": _training(levels),
        "probes": probes,
        "records": rows,
        "tries": _tries(passed=passed),
        "warnings": ["the retain set covers 12 of the 31 topics that the adapter was trained on"],
        "not_tested": NOT_TESTED,
    }  # fmt: skip


def old_evaluation() -> Json:
    """A document of version 0.1: no training, probes, records, tries or control, checks without a probe."""
    document = evaluation(control=False, holdout=False)
    for name in ("training", "probes", "records", "tries"):
        del document[name]
    document["gate"]["checks"] = [
        {key: value for key, value in check.items() if key not in {"probe", "low", "high"}}
        for check in document["gate"]["checks"]
        if check["name"] in {"forget_probability", "forget_rouge_l_recall"}
    ]
    names = ("max_forget_probability", "max_forget_extraction_strength", "max_forget_rouge_l_recall")
    document["policy"] = {"name": "default", "version": 1} | {name: document["policy"][name] for name in names}
    document["method"] = {
        "type": "blur", "gamma": 0.5, "steps": 80, "forget_loss": {"type": "npo"}, "retain_loss": {"type": "nll"},
    }  # fmt: skip
    del document["environment"]
    document["environment"] = {
        "device": "cpu (x86_64)", "threads": 2, "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0",
        "peft": "0.21.2", "lethe": "0.1.0",
    }  # fmt: skip
    return document


def read(document: Json) -> EvaluationRead:
    """As the service shows it."""
    about = {
        "job": "job_4c1f0a9b2d7e8f3a5b6c7d8e",
        "run_id": "run_77aa00c1d2e3f4a5b6c7d8e9",
        "attempt": 1,
        "created_at": datetime(2026, 3, 5, 14, 22, tzinfo=UTC),
    }
    return EvaluationRead.model_validate(document | about)


def job(*, passed: bool = True, **changes: Any) -> JobRead:
    """The deletion request behind it."""
    moment = datetime(2026, 3, 3, 9, 0, tzinfo=UTC)
    fields: Json = {
        "id": "job_4c1f0a9b2d7e8f3a5b6c7d8e",
        "status": "succeeded" if passed else "gate_failed",
        "phase": None,
        "cancel_requested_at": None,
        "adapter": "support-bot",
        "source_version": 3,
        "result_version": 4 if passed else None,
        "run_id": "run_77aa00c1d2e3f4a5b6c7d8e9",
        "attempt": 1,
        "forget_set": "ds_f0a9b2d7e8f3a5b6c7d8e901",
        "retain_set": "ds_r0a9b2d7e8f3a5b6c7d8e902",
        "holdout_set": "ds_h0a9b2d7e8f3a5b6c7d8e903",
        "method": BlurRequest(schedule=Stretch()).resolve(40).model_dump(mode="json"),
        "policy": POLICIES["audit"].model_dump(mode="json"),
        "seed": 7041,
        "verdict": "passed" if passed else "failed",
        "progress": {"step": 180, "total_steps": 240, "percent": 100.0, "eta_seconds": None, "queue_position": None},
        "subject_request_id": "dsr-2026-0042",
        "requested_at": moment,
        "due_at": datetime(2026, 4, 3, 9, 0, tzinfo=UTC),
        "overdue": False,
        "original_due_at": None,
        "extended_at": None,
        "extension_reason": None,
        "submitted_by": "key_4c1f0a9b2d7e8f3a5b6c7d8e",
        "approval": None,
        "metadata": {"case": "privacy desk 12"},
        "error": None,
        "created_at": moment,
        "started_at": moment,
        "finished_at": moment,
    }
    return JobRead.model_validate(fields | changes)


def check(
    probe: str, name: str, value: float | None, limit: float, comparison: str, records: int, **more: Any
) -> Json:
    """A check as the gate makes it."""
    margin = None if value is None else (limit - value if comparison == "<=" else value - limit)
    words = more.pop("description", f"the {name.replace('_', ' ')} after unlearning")
    found = {"low": None, "high": None} | more
    return {
        "probe": probe, "name": name, "description": words, "value": value, "limit": limit, "comparison": comparison,
        "margin": margin, "records": records, "passed": margin is not None and margin >= 0, **found,
    }  # fmt: skip


def measure(name: str, model: str, value: float, records: int, **more: Any) -> Json:
    """A measure as a probe makes it."""
    return {"name": name, "model": model, "value": value, "records": records, "low": None, "high": None} | more


def _means(rows: list[Json], model: str) -> Json:
    scores = [row[model] for row in rows]
    level = statistics.fmean(score["probability"] for score in scores)
    return {
        "records": len(scores), "skipped": 0, "probability": round(level, 4),
        "nll": round(statistics.fmean(score["nll"] for score in scores), 4),
        "extraction_strength": round(statistics.fmean(score["extraction_strength"] for score in scores), 4),
        "exact_memorisation": round(0.3 + level * 0.66, 4), "rouge_l_recall": round(0.25 + level * 0.7, 4),
    }  # fmt: skip


def _rows(levels: Json, models: list[str], name: str, count: int) -> list[Json]:
    draw = random.Random(f"{name}{count}")  # noqa: S311 - numbers that look like some

    def scores(level: float) -> list[Json]:
        drawn = [draw.betavariate(level * 30, (1 - level) * 30) for _ in range(count)]
        exact = level / statistics.fmean(drawn)
        values = [min(max(value * exact, 0.002), 0.9999) for value in drawn]
        return [
            {
                "probability": round(value, 6), "nll": round(-math.log(value), 6),
                "extraction_strength": round(value * draw.uniform(0.7, 1), 6),
            }
            for value in values
        ]  # fmt: skip

    by_model = {model: scores(levels[model][name]) for model in models}
    return [{"record": place + 1} | {model: by_model[model][place] for model in models} for place in range(count)]


def _training(levels: Json) -> Json:
    end = levels["result"]["forget"]
    probes = []
    for place in range(10):
        left = 0.72**place
        probes.append(
            {
                "step": place * 20,
                "forget_probability": round(end + (0.921 - end) * left, 4),
                "forget_extraction_strength": round(0.02 + 0.76 * left**1.6, 4),
                "forget_sequences": 40,
                "retain_probability": round(0.894 - 0.004 * place + 0.0003 * place**2, 4),
                "retain_ratio": round(1 - 0.0045 * place + 0.00034 * place**2, 4),
                "retain_sequences": 64,
            }
        )
    return {
        "steps": 180, "kept_step": 160, "most_steps": 240, "reason": "targets_met",
        "explanation": "the policy's in-training targets held at step 160, confirmed on the whole forget set",
        "micro_batch_size": 8, "passes": 1, "resumed": False, "probes": probes,
    }  # fmt: skip


def _tries(*, passed: bool) -> list[Json]:
    first = BlurRequest(schedule=Stretch()).resolve(40).model_dump(mode="json")
    second = first | {"gamma": 1.0}
    missed = ["forget_probability", "rephrased_probability"]
    return [
        {"number": 1, "change": "", "method": first, "steps": 240, "verdict": "failed", "missed": missed},
        {
            "number": 2, "change": "gamma doubled", "method": second, "steps": 180,
            "verdict": "passed" if passed else "failed", "missed": [] if passed else missed[:1],
        },
    ]  # fmt: skip


def _checks(counts: dict[str, int], *, passed: bool, holdout: bool) -> list[Json]:
    forget, retain = counts["forget"], counts["retain"]
    bad = not passed
    checks = [
        check("recall", "forget_probability", 0.312 if bad else 0.049, 0.2, "<=", forget,
              low=0.271 if bad else 0.036, high=0.355 if bad else 0.064,
              description="mean answer probability on the forget set after unlearning"),
        check("recall", "forget_extraction_strength", 0.041, 0.1, "<=", forget,
              description="mean extraction strength on the forget set after unlearning"),
        check("recall", "forget_rouge_l_recall", 0.284, 0.45, "<=", forget,
              description="mean ROUGE-L recall of greedy answers on the forget set after unlearning"),
        check("recall", "forget_nll_excess", -0.117, 1.0, "<=", forget,
              description="nats per token by which the forget set is less likely than for a model that never saw it"),
        check("utility", "retain_probability_ratio", 0.829 if bad else 0.975, 0.9, ">=", retain,
              low=0.811 if bad else 0.966, high=0.846 if bad else 0.984,
              description="mean answer probability on the retain set, after unlearning divided by before"),
        check("utility", "retain_rouge_l_recall_ratio", 0.988, 0.9, ">=", retain,
              description="mean ROUGE-L recall of greedy answers on the retain set, after divided by before"),
        check("utility", "neighbour_probability_ratio", 0.931, 0.85, ">=", 50,
              description="mean answer probability on the nearest kept records, after divided by before"),
        check("utility", "general_nll_increase", 0.082, 0.5, "<=", 12,
              description="nats per token by which plain sentences became less likely"),
        check("rephrasing", "rephrased_probability", 0.118, 0.25, "<=", forget, low=0.095, high=0.142,
              description="mean answer probability on the forget set by the worst form of the question"),
        check("quantization", "quantized_probability", 0.0522, 0.25, "<=", forget,
              description="mean answer probability on the forget set with the worst way of rounding"),
        check("integrity", "integrity_violations", 0.0, 0.0, "<=", 28, description="faults of the files' structure"),
        check("resurfacing", "resurfaced_probability", 0.163, 0.25, "<=", forget, low=0.131, high=0.199,
              description="mean answer probability on the forget set after training on kept records alone"),
        check("sampling", "sampled_leak", None if bad else 0.025, 0.05, "<=", 0 if bad else forget,
              description="share of records with a leak among 16 sampled answers"),
    ]  # fmt: skip
    if holdout:
        checks.append(
            check("membership", "membership_auc_distance", 0.274 if bad else 0.061, 0.15, "<=", forget,
                  low=0.21 if bad else 0.004, high=0.331 if bad else 0.128,
                  description="distance between the membership AUCs of result and control, by the worst score")
        )  # fmt: skip
    return checks


def _probes(levels: Json, models: list[str], counts: dict[str, int], *, passed: bool, holdout: bool) -> list[Json]:
    forget = counts["forget"]

    def report(name: str, title: str, measures: list[Json], note: str = "", cost: str = "seconds") -> Json:
        return {
            "name": name, "title": title, "cost": cost, "measured": bool(measures), "note": note, "seconds": 12.4,
            "measures": measures,
        }  # fmt: skip

    recall = [
        measure(f"forget_{metric}", model, value, forget)
        for metric, factor in (("probability", 1.0), ("extraction_strength", 0.83), ("nll", 2.2))
        for model in models
        for value in [round(levels[model]["forget"] * factor, 4)]
    ]
    forms = [
        measure("rephrased_probability", model, round(levels[model]["forget"] * factor, 4), forget,
                low=levels[model]["forget"] * factor * 0.8, high=levels[model]["forget"] * factor * 1.2,
                detail=form)
        for form, factor in (("polite", 0.9), ("as an instruction", 0.8), ("lower case", 1.05))
        for model in ("source", "result")
    ]  # fmt: skip
    sign = -1 if not passed else 1
    membership = [
        *(measure("membership_auc", model, value, forget, low=value - 0.05, high=min(1, value + 0.05), detail="loss")
          for model, value in (("base", 0.52), ("source", 0.981), ("result", 0.57))),
        measure("membership_auc_difference", "result", sign * (0.274 if not passed else 0.061), forget, low=-0.331,
                high=0.128, detail="loss"),
    ]  # fmt: skip
    returns = [
        measure(f"resurfaced_{metric}", model, value * factor, forget, detail=detail)
        for model, factor in (("result", 1.0), ("control" if "control" in models else "base", 0.4))
        for metric, before, after in (("probability", 0.052, 0.163), ("extraction_strength", 0.031, 0.087))
        for detail, value in (
            ("before", before),
            ("learning rate 0.0005, 75 steps", after),
            ("learning rate 0.000125, 75 steps", after * 0.7),
        )
    ]
    attacks = [
        measure("relearned_probability", model, value * factor, forget // 2,
                detail=f"a new adapter on top, {steps} steps")
        for model, factor in (("result", 1.0), ("base", 0.9))
        for steps, value in ((0, 0.048), (10, 0.071), (50, 0.118))
    ]  # fmt: skip
    return [
        report("recall", "Does the model still know the records, asked as in training?", recall),
        report("utility", "Does the model still know what was to be kept?", [
            measure("neighbour_probability", model, 0.87 + place / 100, 50)
            for place, model in enumerate(models)
        ], "neighbours are the 50 kept records that share most tokens with a forgotten one"),
        report("rephrasing", "Does it answer when the question is put differently?", forms),
        report("membership", "Can forgotten records be told from records that were never trained on?",
               membership if holdout else [],
               "An AUC of 0.5 tells nothing apart." if holdout else "no holdout set was given"),
        report("quantization", "Does rounding the weights bring the records back?",
               [measure("quantized_probability", "result", 0.0522, forget, detail="4-bit NF4")]),
        report("integrity", "Are the packaged files what they should be?",
               [measure("integrity_violations", "result", 0.0, 28)]),
        report("history", "Did records come back that earlier requests had removed?", [],
               "no records of earlier requests on this adapter are still held"),
        report("resurfacing", "Does training on kept records alone bring the records back?", returns, cost="minutes"),
        report("sampling", "Does one of many sampled answers leak?",
               [measure("sampled_leak", "result", 0.025, forget)] if passed else [],
               "" if passed else "it ran out of time", cost="long"),
        *([report("relearning", "Does half of the forgotten records bring back the other half?", attacks,
                  "trained on 20 records drawn by the seed", cost="long")] if passed else []),
    ]  # fmt: skip
