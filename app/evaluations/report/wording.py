"""The report's words: names of what was measured, and the sentences of the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from app.evaluations.report.numbers import beside, count, counted, number, setting
from app.evaluations.schemas import Check, EvaluationRead, ModelName
from app.jobs.schemas import JobRead
from app.methods import ProbeName

MODELS: Mapping[ModelName, str] = {
    "base": "Base alone",
    "source": "Before",
    "control": "Control",
    "result": "After",
}
"""In the order in which the report shows them."""
METRICS = {
    "probability": "Answer probability",
    "nll": "NLL, nats per token",
    "extraction_strength": "Extraction strength",
    "exact_memorisation": "Exact memorisation",
    "rouge_l_recall": "ROUGE-L recall",
}
SETS = {"forget": "Forget set", "retain": "Retain set", "holdout": "Holdout set"}
METHODS = {
    "blur": "bi-level unlearning (BLUR)",
    "forget_upper": "bi-level unlearning with the levels swapped (forget-upper)",
    "weighted_sum": "a weighted sum of both losses",
    "pdu": "primal-dual unlearning (PDU)",
    "retrain": "training anew",
}
REASONS = {
    "targets_met": "because the policy's in-training targets were met",
    "no_progress": "because further training made no progress",
    "steps_taken": "because all steps were taken",
}
_SUBJECTS = {
    "forget": "Forget set",
    "retain": "Retain set",
    "holdout": "Holdout set",
    "neighbour": "Nearest kept records",
    "general": "Plain sentences",
    "history": "Earlier forget set",
    "rephrased": "Rephrased questions",
    "quantized": "Rounded weights",
    "resurfaced": "Forget set after further training",
    "relearned": "One half of the forget set after training on the other",
    "sampled": "Sampled answers",
}
_ABBREVIATIONS = {"auc": "AUC", "nll": "NLL", "rouge": "ROUGE", "tpr": "TPR", "fpr": "FPR", "ks": "KS", "kl": "KL"}
GLOSSARY = (
    ("Forget set", "The records whose removal was asked for."),
    ("Retain set", "Records that the adapter was to keep."),
    ("Holdout set", "Records like the forgotten ones that the adapter was never trained on."),
    (
        "Base alone",
        "The base model without any adapter: it never saw the records, unless the request is about what it knows.",
    ),
    ("Before, after", "The adapter as it was, and the packaged adapter after unlearning, loaded afresh."),
    ("Control", "An adapter that was trained without the forget set. The closest thing to “never seen”."),
    (
        "Answer probability",
        "How sure the model is of a record's true answer, from 0 to 1: geometric mean over the answer's tokens.",
    ),
    ("NLL", "Negative log-likelihood of the true answer in nats per token. Higher is less likely."),
    ("Extraction strength", "Share of the answer's end that the model completes word for word, from 0 to 1."),
    ("Exact memorisation", "Share of the answer's tokens that are the model's first choice, from 0 to 1."),
    (
        "ROUGE-L recall",
        "How much of the true answer shows, in order, in the answer that the model writes, from 0 to 1.",
    ),
    ("Interval", "Where the value lies with 95 % confidence, given the sample. Shown where the probe computes one."),
    ("Margin", "Distance of the value to its limit: positive inside, negative beyond."),
)


def measured(name: str) -> str:
    """The name of a measure in words: "forget_probability" is "Forget set: answer probability"."""
    subject, _, metric = name.partition("_")
    if subject in _SUBJECTS and metric in METRICS:
        words = METRICS[metric]
        return f"{_SUBJECTS[subject]}: {words if words[1].isupper() else words[0].lower() + words[1:]}"
    words = " ".join(_ABBREVIATIONS.get(word, word) for word in name.split("_"))
    return capital(words)


def must_be(check: Check) -> str:
    """What a check asks: "at most 0.2"."""
    return f"{'at most' if check.comparison == '<=' else 'at least'} {limit(check)}"


def limit(check: Check) -> str:
    """A limit as it was set; one that came from a reference model is a measured number."""
    return setting(check.limit) if round(check.limit, 4) == check.limit else beside(check.limit, check.value or 0.0)


def outcome(check: Check) -> str:
    """A check in a sentence."""
    words = check.description
    found = "could not be measured" if check.value is None else value_of(check)
    return f"{words}: {found}, must be {must_be(check)}."


def value_of(check: Check) -> str:
    """What was measured, told apart from its limit."""
    if check.value is None:
        return "not measured"
    return shown(check.name, check.value) if is_count(check.name) else beside(check.value, check.limit)


def shown(name: str, value: float) -> str:
    """A measured number: a number of things without decimals."""
    return setting(value) if is_count(name) else number(value)


def is_count(name: str) -> bool:
    """Whether what is measured under this name is a number of things."""
    return name.endswith("_violations")


def listed(words: list[str]) -> str:
    """Words with commas and a last "and"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def headline(evaluation: EvaluationRead) -> str:
    """The verdict in one line."""
    checks = evaluation.gate.checks
    if evaluation.gate.verdict == "passed":
        how_many = {1: "the one check holds", 2: "both checks hold"}.get(
            len(checks), f"all {len(checks)} checks hold"
        )
        return f"Passed: {how_many}."
    if not checks:
        return "Failed: there was nothing to check."
    failed = sum(not check.passed for check in checks)
    return f"Failed: {failed} of {counted(len(checks), 'check')} {'does' if failed == 1 else 'do'} not hold."


def consequence(evaluation: EvaluationRead, job: JobRead) -> str:
    """What became of the result."""
    if job.result_version is not None:
        return f"The unlearned adapter was released as version {job.result_version} of {job.adapter}."
    if evaluation.gate.verdict == "failed":
        if evaluation.source_version is None:
            return f"Nothing was released. There is no version of {job.adapter} yet."
        return f"Nothing was released. Version {evaluation.source_version} of {job.adapter} is as it was."
    return f"No version has been released by this job; its status is {job.status.replace('_', ' ')}."


def asked(evaluation: EvaluationRead, job: JobRead) -> str:
    """What the request was."""
    forget = evaluation.models.result.forget
    records = counted(forget.records + forget.skipped, "record")
    reference = f" Reference of the request: {job.subject_request_id}." if job.subject_request_id else ""
    version = f"version {evaluation.source_version} of the adapter {job.adapter}"
    if evaluation.source_version is None:
        version = f"what the base model {job.base_model} itself knows, by a fresh adapter {job.adapter}"
    return (
        f"To remove {records} from {version}, and to keep "
        f"what else it knows. Requested on {day(job.requested_at)}, due by {day(job.due_at)}.{reference}"
    )


def done(evaluation: EvaluationRead) -> str:
    """What was done."""
    method, training = evaluation.method, evaluation.training
    words = (
        f"The adapter was trained further by {METHODS[method.type]}, which makes the answers of the forget set "
        "unlikely and holds on to those of the retain set."
    )
    if (anew := evaluation.retraining) is not None:
        words = (
            f"The adapter was trained anew from the base model, by its recorded recipe, on the "
            f"{counted(anew.training_records, 'record')} of its training set that are left without the forget set; "
            f"{count(anew.found)} of {counted(anew.forget_records, 'forget record')} were in it. "
            f"The result is {'exact' if anew.exact else 'not exact'} in this sense and no other."
        )
    if training is None:
        words += f" That took at most {counted(method.steps, 'step')}."
    else:
        words += (
            f" Training ended after {count(training.steps)} of at most {counted(training.most_steps, 'step')}, "
            f"{REASONS[training.reason]}; the weights of step {count(training.kept_step)} were kept."
        )
    if len(evaluation.tries) > 1:
        words += f" It was trained {len(evaluation.tries)} times, each time anew; the last result is judged here."
    return words + " The packaged files were loaded afresh and measured."


def found(evaluation: EvaluationRead) -> str:
    """What shows of the records, in plain words."""
    models = evaluation.models
    before, after = models.source.forget, models.result.forget
    reference = getattr(models, evaluation.reference or "base")
    who = {
        "control": "An adapter that never saw them",
        None: "The base model alone, which knows them,",
    }.get(evaluation.reference, "The base model alone, which never saw them,")
    kept = f"{number(models.source.retain.probability)} before and {number(models.result.retain.probability)} after"
    return (
        f"On a scale from 0 to 1, the adapter gave the true answers of the forget set a mean probability of "
        f"{number(before.probability)} before and gives them {number(after.probability)} now. {who} gives them "
        f"{number(reference.forget.probability)}. For what was to be kept it is {kept}."
    )


def gate(evaluation: EvaluationRead) -> str:
    """What the gate says."""
    policy, checks = evaluation.policy, evaluation.gate.checks
    named = f"the policy {policy.name}, version {policy.version}"
    if not checks:
        return f"There was nothing to hold against {named}. The gate passes on evidence only."
    failed = [check for check in checks if not check.passed]
    if failed:
        return f"Held against {named}, {counted(len(failed), 'check')} failed:"
    # Files are whole or not: they cannot come close.
    measures = [check for check in checks if check.probe != "integrity" and check.limit] or checks
    least = min(measures, key=lambda check: (check.margin or 0.0) / abs(check.limit or 1.0))
    return f"Held against {named}, every check passed. The one nearest to its limit: {outcome(least)}"


def basis(evaluation: EvaluationRead) -> str:
    """On how many records."""
    result = evaluation.models.result
    words = f"{counted(result.forget.records, 'forget record')}"
    sets = [("retain", result.retain), ("holdout", result.holdout)]
    others = [f"{count(scores.records)} {name}" for name, scores in sets if scores is not None]
    words += f", all that were asked for. For comparison {listed(others)} records; of larger sets a sample of "
    words += f"{count(evaluation.sampled_to)} was drawn."
    skipped = result.forget.skipped
    if skipped:
        words += f" {counted(skipped, 'forget record')} without an answer could not be scored."
    return words


def limits(evaluation: EvaluationRead) -> str:
    """What no verdict proves."""
    opening = (
        "A passed gate says that the records no longer show in the tests listed here. It is no proof that every "
        "trace is gone from the weights, nor that the adapter equals one that never saw them."
        if evaluation.gate.verdict == "passed"
        else "A failed gate says what these tests saw in this result. It does not say that the records cannot be "
        "removed, nor that another method would do better."
    )
    return (
        f"{opening} It says nothing about the base model, other adapters, copies handed out earlier, logs or backups."
    )


class CameBack(Protocol):
    """What a sentence on further training needs."""

    @property
    def words(self) -> str:
        """What was measured."""

    @property
    def detail(self) -> str:
        """After which training."""

    @property
    def before(self) -> float | None:
        """Before it."""

    @property
    def after(self) -> float:
        """After it."""

    @property
    def never_seen(self) -> float | None:
        """Of a model that never saw the records."""


def came_back(worst: CameBack, note: str) -> str:
    """How large the risk is, by the training after which most was back."""
    changed = "" if worst.before is None else f"from {number(worst.before)} to "
    what = worst.words.replace(": ", ", ", 1)
    words = f"{what}: {changed}{number(worst.after)} at worst ({worst.detail or 'one training'})."
    if worst.never_seen is not None:
        words += f" A model that never saw the records comes to {number(worst.never_seen)} by the same training."
    return f"{words} {sentence(note)}".rstrip()


def not_known(probe: ProbeName, note: str) -> str:
    """That a risk was not measured, and why."""
    training = {
        "resurfacing": "further training on kept records alone",
        "relearning": "training on a part of the forgotten records",
    }[probe]
    return f"How much comes back by {training} was not measured: {note or 'the policy does not ask for it'}."


def sentence(words: str) -> str:
    """With a capital and a full stop."""
    return capital(words) + ("" if not words or words[-1] in ".!?" else ".")


def failures(evaluation: EvaluationRead) -> Iterator[str]:
    """The failed checks, each in a sentence."""
    return (capital(outcome(check)) for check in evaluation.gate.checks if not check.passed)


def capital(words: str) -> str:
    """With a first letter that opens a sentence."""
    return words[:1].upper() + words[1:]


def day(moment: object) -> str:
    """A date such as 3 March 2026."""
    return f"{moment:%-d %B %Y}"
