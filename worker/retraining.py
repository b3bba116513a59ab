"""Training an adapter anew: what it is trained on, and what comes of it for the papers of its result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.evaluations.schemas import Retraining
from app.jobs.schemas import JobCosts, MeasuredCost
from app.kit.crypto import CryptoError
from app.methods import RetrainMethod
from worker import training_sets
from worker.errors import JobError
from worker.order import Order
from worker.reporting import Tried
from worker.unlearning.encoding import Example, encode_records


@dataclass(frozen=True)
class Material:
    """What is left of an adapter's training set, as it is trained on.

    Attributes:
        examples: its sequences.
        method: with as many steps as these ask for.
        facts: how it came about.
    """

    examples: list[Example]
    method: RetrainMethod
    facts: Retraining


def gather(order: Order, method: RetrainMethod, tokenizer: PreTrainedTokenizerBase, longest: int) -> Material:
    """Take the forget set out of the adapter's training set.

    Args:
        longest: tokens per sequence.

    Raises:
        JobError: there is no training set any more, it would bring back what others had erased, nothing is left of
            it, or a set cannot be opened.
        worker.unlearning.encoding.EncodingError: a record cannot be encoded.
    """
    held = order.training_set
    if held is None:
        raise JobError("training_set_missing", "the service holds no training set of the adapter any more")
    if order.adapter.unmatched_records:
        raise JobError(
            "training_set_stale",
            "an earlier job has unlearned records that were not found in the training set; training anew would bring "
            "them back",
        )
    left = training_sets.remainder(held, order)
    try:
        records: list[dict[str, Any]] = [json.loads(line) for line in left.lines()]
    except (CryptoError, FileNotFoundError):
        raise JobError("dataset_unreadable", "the training set was purged or cannot be opened") from None
    if not records:
        raise JobError("training_set_empty", "nothing is left of the training set without the records to forget")
    examples = encode_records(records, tokenizer, longest, prompts_too=method.supervised == "all")
    facts = Retraining(
        exact=left.found == left.wanted,
        forget_records=left.wanted,
        found=left.found,
        removed=left.removed,
        training_records=len(records),
    )
    return Material(examples, method.on(sum(bool(example.labels) for example in examples)), facts)


def not_exact(facts: Retraining | None) -> list[str]:
    """That records were asked for which the training set did not hold."""
    if facts is None or facts.exact:
        return []
    return [
        f"{facts.forget_records - facts.found} of {facts.forget_records} forget records were not in the adapter's "
        "training set, so that the result is not exact"
    ]


def measured(costs: JobCosts, tries: list[Tried], seconds: float) -> JobCosts:
    """A job's costs with what its trainings took.

    Args:
        seconds: of all trainings of this attempt.
    """
    outcomes = [tried.trained.outcome for tried in tries]
    took = MeasuredCost(
        steps=sum(outcome.steps for outcome in outcomes),
        sequences=sum(outcome.sequences for outcome in outcomes),
        seconds=round(seconds, 3),
    )
    return costs.model_copy(update={"measured": took})


def compared(costs: JobCosts, *, anew: bool) -> str:
    """The estimate against the outcome, for the history."""
    expected, took = costs.retrain if anew and costs.retrain else costs.unlearn, costs.measured
    assert took is not None  # noqa: S101 - the run has ended
    return (
        f"training passed over {took.sequences} sequences in {took.steps} steps; the estimate was "
        f"{expected.sequences} in {expected.steps}"
    )
