"""Training anew, or unlearning: what both would cost, and which it is to be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from app.adapters.tables import Adapter
from app.datasets.fingerprints import overlap
from app.datasets.statistics import token_statistics
from app.datasets.tables import Dataset
from app.datasets.vault import Vault
from app.jobs.fresh import unanchored
from app.jobs.schemas import Cost, JobCosts
from app.jobs.sets import GivenSets
from app.kit.problems import FieldError, Problem
from app.methods import (
    METHOD_REQUEST,
    AutoRequest,
    Method,
    Policy,
    Recipe,
    RetrainMethod,
    RetrainRequest,
    sequences_per_step,
)


class CannotRetrain(Problem):
    """The adapter cannot be trained anew without the records."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "cannot_retrain"


@dataclass(frozen=True)
class Choice:
    """A job's method, and what led to it where there was something to choose."""

    method: Method
    costs: JobCosts | None


@dataclass(frozen=True)
class Held:
    """What the service holds of an adapter's training.

    Attributes:
        dataset: what it was trained on.
        recipe: how.
        vault: opens the dataset.
        directory: where the base model lies.
    """

    dataset: Dataset
    recipe: Recipe
    vault: Vault
    directory: Path

    def found(self, sets: GivenSets) -> int:
        """Different forget records that were trained on."""
        forget = sets.forget
        return overlap(forget.vault.index(forget.dataset), self.vault.index(self.dataset)).records

    def sequences(self, records: int) -> int:
        """Training sequences that so many of its records become, about."""
        counted = token_statistics(self.vault, self.dataset, self.directory, self.recipe.max_length)
        each = counted.sequences / self.dataset.records if counted else 1.0
        return max(1, round(each * records))


def choose(
    wanted: RetrainRequest | AutoRequest, adapter: Adapter, held: Held | None, sets: GivenSets, policy: Policy
) -> Choice:
    """Settle whether the adapter is trained anew. Reads the indexes of two sets.

    Args:
        held: None where the service holds no training set of the adapter.

    Raises:
        CannotRetrain: that was asked for, and cannot be.
    """
    forget = sets.forget.dataset
    different = forget.records - (forget.duplicates or 0)
    found = held.found(sets) if held else None
    unlearning = _unlearning(adapter, sets)
    unlearn = _cost_of_unlearning(unlearning, sets)
    asked, retraining, retrain = wanted.type, None, None
    obstacle = _obstacle(adapter, held, found)
    if held is not None and found is not None and obstacle is None:
        request = wanted if isinstance(wanted, RetrainRequest) else RetrainRequest()
        sequences = held.sequences(held.dataset.records - found)
        retraining = request.resolve(held.recipe, sequences)
        retrain = _cost_of_training(retraining, sequences)
    if obstacle is not None and asked == "retrain":
        raise CannotRetrain(obstacle, errors=[FieldError("/method", obstacle)])
    costs = JobCosts(
        asked=asked,
        reason=obstacle or "",
        forget_records=different,
        found=found,
        training_records=held.dataset.records if held else None,
        retrain=retrain,
        unlearn=unlearn,
        exact_if_cheaper_than=policy.exact_if_cheaper_than,
    )
    if retraining is None:
        return Choice(unlearning, costs)
    anew, reason = _bargain(costs)
    return Choice(retraining if anew else unlearning, costs.model_copy(update={"reason": reason}))


def _obstacle(adapter: Adapter, held: Held | None, found: int | None) -> str | None:
    """Why the adapter cannot be trained anew without the records."""
    if held is None:
        return "the service holds no training set of the adapter (training_set and recipe of POST /adapters)"
    if adapter.unmatched_records:
        return (
            f"earlier jobs have unlearned {adapter.unmatched_records} record(s) that were not found in the training "
            "set: training anew would bring them back"
        )
    if not found:
        return "no forget record is in the adapter's training set, which is compared record by record"
    if found >= held.dataset.records:
        return "nothing would be left of the adapter's training set"
    return None


def _bargain(costs: JobCosts) -> tuple[bool, str]:
    """Whether to train anew, and why or why not."""
    retrain, unlearn, found = costs.retrain, costs.unlearn, costs.found or 0
    assert retrain is not None  # noqa: S101 - there is no obstacle
    ratio = retrain.sequences / unlearn.sequences
    compared = (
        f"training anew costs {ratio:.2g} times what unlearning costs ({retrain.sequences} sequences against "
        f"{unlearn.sequences})"
    )
    if costs.asked == "retrain":
        return True, f"it was asked for; {compared}"
    if found < costs.forget_records:
        missing = costs.forget_records - found
        return False, f"{missing} forget record(s) are not in the training set, so it would not be exact; {compared}"
    most = costs.exact_if_cheaper_than
    if retrain.sequences <= most * unlearn.sequences:
        return True, f"{compared}, and the policy takes the exact way up to {most:g} times"
    return False, f"{compared}, and the policy takes the exact way only up to {most:g} times"


def _unlearning(adapter: Adapter, sets: GivenSets) -> Method:
    """The default method."""
    default = METHOD_REQUEST.validate_python({})
    return (unanchored(default) if adapter.fresh else default).resolve(sets.forget.dataset.records)


def _cost_of_unlearning(method: Method, sets: GivenSets) -> Cost:
    # A batch holds no record twice.
    forget = min(method.forget_batch_size, sets.forget.dataset.records)
    retain = min(method.retain_batch_size, sets.retain.dataset.records)
    each = sequences_per_step(method.schedule, method.steps, forget, retain)
    return Cost(steps=method.steps, sequences=round(method.steps * each))


def _cost_of_training(method: RetrainMethod, sequences: int) -> Cost:
    batches = math.ceil(sequences / method.batch_size)
    return Cost(steps=method.steps, sequences=round(method.steps * sequences / batches))
