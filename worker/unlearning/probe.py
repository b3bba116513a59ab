"""A quick look at a model in training: how much of both sets it still shows, with teacher forcing alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from worker.unlearning.batches import by_length, collate
from worker.unlearning.encoding import Example
from worker.unlearning.models import Head, hidden_states
from worker.unlearning.scoring import label_scores


@dataclass(frozen=True)
class Shown:
    """Means over sequences.

    Attributes:
        probability: exp of minus the mean NLL of the labels, the end token included.
        extraction_strength: longest run of right first choices that reaches the end of the answer, as a share of it.
        sequences: how many.
    """

    probability: float
    extraction_strength: float
    sequences: int


@dataclass(frozen=True)
class Probe:
    """What was seen at one step.

    Attributes:
        step: optimizer steps taken before.
        forget, retain: the two sets.
        retain_ratio: retain probability over that of the source adapter.
        resurfaced: the forget set at the end of the last rehearsal: what training on retain sequences alone brought
            back. None before the first.
    """

    step: int
    forget: Shown
    retain: Shown
    retain_ratio: float
    resurfaced: Shown | None = None


def sample(examples: Sequence[Example], most: int, seed: int) -> list[Example]:
    """At most so many of the examples, drawn by the seed, in their order."""
    if len(examples) <= most:
        return list(examples)
    chosen = np.random.default_rng([seed, len(examples)]).choice(len(examples), most, replace=False)
    return [examples[i] for i in sorted(chosen.tolist())]


@torch.no_grad()
def look(model: nn.Module, examples: Sequence[Example], pad: int, end: int | None, batch_size: int) -> Shown:
    """Measure one set.

    Args:
        model: a model in training, between two steps.
        examples: at least one, each with labels.
        pad: any token id.
        end: id of the end token, which does not count as part of an answer.
        batch_size: sequences per forward pass.
    """
    head, device = Head(model), next(model.parameters()).device
    probability = strength = 0.0
    for part in by_length(examples, batch_size):
        rows = [examples[index] for index in part]
        batch = collate(rows, pad).to(device)
        nll, first = (values.tolist() for values in label_scores(head, hidden_states(model, batch), batch.labels))
        start = 0
        for example in rows:
            stop = start + len(example.labels)
            probability += float(np.exp(-np.mean(nll[start:stop])))
            strength += _strength(first[start : stop - (example.labels[-1] == end)])
            start = stop
    return Shown(probability / len(examples), strength / len(examples), len(examples))


def _strength(right: Sequence[bool]) -> float:
    """Extraction strength of one answer; 0 for an empty one."""
    run = next((i for i, hit in enumerate(reversed(right)) if not hit), len(right))
    return run / len(right) if right else 0.0
