"""Further training of an adapter, as anyone may do with it: plain NLL, AdamW, a constant learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from worker.evaluation.evaluate import fitting
from worker.unlearning.adamw import AdamW
from worker.unlearning.batches import TUNING_STREAM, batch_indices, collate, longest_first
from worker.unlearning.combiners import clip_
from worker.unlearning.encoding import Example
from worker.unlearning.factors import Factors, GradientTaps, Sink
from worker.unlearning.models import Head, hidden_states, pad_id
from worker.unlearning.scoring import Tokens, token_nll, token_values

# A job's own method stands for training as usual, but it does not get to make an attack harmless: its learning rate
# counts only upwards from here, its batches only up to here.
LEAST_RATE, MOST_ROWS, MAX_GRAD_NORM = 1e-4, 8, 1.0


class Diverged(RuntimeError):
    """Training left the range of finite numbers."""


@dataclass(frozen=True)
class Tuning:
    """How to train.

    Attributes:
        learning_rate: of AdamW, constant.
        batch_size: sequences per step.
        max_grad_norm: to which the gradient is clipped.
        seed: of the order of the examples.
    """

    learning_rate: float
    batch_size: int
    max_grad_norm: float
    seed: int


class Tuner:
    """Training that can be looked at between its steps. The same inputs, seed and hardware give the same factors.

    Args:
        model: whatever requires a gradient is trained, in place; it stays in evaluation mode, without dropout.
        tokenizer: of the base model.
        examples: sequences; those without a label are left out.
        tuning: how.

    Raises:
        ValueError: no example has a label.
        worker.unlearning.factors.FactorError: nothing can be trained.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], tuning: Tuning
    ) -> None:
        self._examples = [example for example in examples if example.labels]
        if not self._examples:
            raise ValueError("no sequence has a label")
        self._model, self._tuning, self._pad = model, tuning, pad_id(tokenizer)
        self._factors = Factors(model)
        self._optimizer = AdamW(self._factors.vector, weight_decay=0.0)
        self._head, self._taps = Head(model), GradientTaps(model, self._factors)
        self._gradient = self._factors.new_vector()
        self._parts = self._factors.views(self._gradient)
        self._rows = tuning.batch_size  # per forward pass; halves when memory runs out

    @property
    def epoch(self) -> int:
        """Steps in which every example is seen once."""
        return -(-len(self._examples) // self._tuning.batch_size)

    def train_to(self, step: int) -> None:
        """Take steps until there are so many.

        Raises:
            Diverged: the factors are not finite any more.
        """
        with self._taps.installed():
            while self._optimizer.steps < step:
                self._step()
        if not bool(torch.isfinite(self._factors.vector).all()):
            raise Diverged(f"further training at learning rate {self._tuning.learning_rate:g} diverged")

    def _step(self) -> None:
        tuning, step = self._tuning, self._optimizer.steps
        drawn = batch_indices(tuning.seed, step, len(self._examples), tuning.batch_size, stream=TUNING_STREAM)
        chosen = [self._examples[index] for index in drawn]
        fitting(self._rows, lambda rows: self._accumulate(chosen, rows))
        clip_(self._gradient, tuning.max_grad_norm)
        self._optimizer.observe(self._gradient)
        self._optimizer.step(self._gradient, tuning.learning_rate)
        self._factors.publish()

    def _accumulate(self, chosen: Sequence[Example], rows: int) -> None:
        """The gradient of the mean NLL over the label tokens of a step, so many rows at a time."""
        self._rows = rows
        self._gradient.zero_()
        labels = sum(len(example.labels) for example in chosen)
        for part in longest_first([len(example.input_ids) for example in chosen], rows):
            batch = collate([chosen[index] for index in part], self._pad).to(self._factors.device)
            with self._taps.collecting(batch.shape, Sink(slice(0, len(part)), self._parts)):
                hidden = hidden_states(self._model, batch)
                nll = token_values(self._head, hidden, Tokens(batch.labels), lambda z, y, _: token_nll(z, y))
                (nll.sum() / labels).backward()  # type: ignore[no-untyped-call]
