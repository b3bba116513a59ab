"""The yardstick: a step on the weighted sum of both losses, as fast as plain torch and PEFT take it.

One forward pass over forget and retain rows together, one loss, one backward pass in which automatic differentiation
sums up the gradients by itself, one optimizer. No method that keeps the two gradients apart can do with less work.
So that the comparison is of the step alone, it gets every advantage that the engine has: log-probabilities
under the source adapter computed once, no attention mask, logits at label positions only, no look for packed rows,
and factors that compute in the type of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from app.methods import BlurMethod, NpoLoss
from benchmarks.engine_models import Case
from worker.unlearning.batches import Batch, collate
from worker.unlearning.encoding import Example
from worker.unlearning.likelihood import sequence_nll
from worker.unlearning.models import Head, hidden_states, pad_id


def npo_beta(method: BlurMethod) -> float:
    """What the benchmark fixes: NPO as the forget loss."""
    if not isinstance(method.forget_loss, NpoLoss):
        raise TypeError("the benchmark compares on NPO")
    return method.forget_loss.beta


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The factors, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def computing_in(case: Case, model: nn.Module) -> torch.autocast:
    """A context for forward passes in which float32 factors compute in the type of the frozen weights."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
    return torch.autocast(case.device.type, case.dtype, enabled=case.dtype != torch.float32)


class WeightedSum:
    """Minimises retain NLL + gamma * NPO."""

    def __init__(self, case: Case, method: BlurMethod) -> None:
        self._case, self._method = case, method
        self._model = case.twin()
        self._pad, self._head = pad_id(case.tokenizer), Head(self._model)
        self._precision = computing_in(case, self._model)
        self._parameters = trained(self._model)
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=method.learning_rate, weight_decay=method.weight_decay, fused=True
        )
        with self._precision:
            self._source = sequence_nll(self._model, case.forget, self._pad, method.forget_batch_size)

    def step(self, forget: Sequence[int], retain: Sequence[int]) -> None:
        """One optimizer step on these records."""
        self._loss(forget, retain).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, self._method.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def update(self, forget: Sequence[int], retain: Sequence[int]) -> Tensor:
        """The gradient that a step would clip and take: (parameters,)."""
        grads = torch.autograd.grad(self._loss(forget, retain), self._parameters)
        return torch.cat([gradient.flatten() for gradient in grads])

    def _loss(self, forget: Sequence[int], retain: Sequence[int]) -> Tensor:
        lower = [self._case.forget[i] for i in forget]
        upper = [self._case.retain[i] for i in retain]
        batch = collate([*lower, *upper], self._pad).to(self._case.device)
        with self._precision:
            logits = self._head(hidden_states(self._model, batch)).float()
        nll = F.cross_entropy(logits, batch.labels, reduction="none")
        border = sum(len(example.labels) for example in lower)
        return nll[border:].mean() + self._method.gamma * self._npo(nll[:border], batch, lower, forget)

    def _npo(self, nll: Tensor, batch: Batch, examples: Sequence[Example], chosen: Sequence[int]) -> Tensor:
        beta = npo_beta(self._method)
        sums = nll.new_zeros(len(examples)).index_add(0, batch.rows[: len(nll)], nll)
        source = self._source[torch.tensor(chosen).to(nll.device, non_blocking=True)]
        return -(2 / beta) * F.logsigmoid(beta * (sums - source)).mean()
