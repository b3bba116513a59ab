"""The training loop of BLUR on LoRA factors: two gradients, one projection, one AdamW step.

Dropout stays off although the factors are trained. The forget loss compares each sequence with its
log-probability under the source adapter, which is computed once and cached. That number is exact only if the
same forward pass, without random masks, would give it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from app.methods import BlurMethod
from worker.unlearning.batches import FORGET_STREAM, RETAIN_STREAM, batch_indices, by_length, collate
from worker.unlearning.blur import Combination, combine_
from worker.unlearning.encoding import Example
from worker.unlearning.losses import npo, sum_by_row, token_nll
from worker.unlearning.models import label_logits


class UnlearningError(RuntimeError):
    """Training cannot start or went wrong. The adapter in memory must be thrown away."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. Losses and norms are taken before the step.

    Attributes:
        step: 1-based number of the step.
        total_steps: steps of the whole run.
        forget_loss: NPO, mean over the step's forget sequences.
        retain_loss: NLL in nats, mean over the step's retain label tokens.
        forget_norm, retain_norm: norms of the two gradients.
        cosine: cosine of the angle between them, 0 where one vanishes. Negative: the levels are in conflict.
        update_norm: norm of the combined update before clipping.
        clipped: whether it was clipped.
        learning_rate: AdamW's, in this step.
    """

    step: int
    total_steps: int
    forget_loss: float
    retain_loss: float
    forget_norm: float
    retain_norm: float
    cosine: float
    update_norm: float
    clipped: bool
    learning_rate: float


def unlearn(
    model: nn.Module,
    pad_token_id: int,
    forget: Sequence[Example],
    retain: Sequence[Example],
    method: BlurMethod,
    *,
    seed: int,
    on_step: Callable[[StepReport], None],
) -> None:
    """Train the LoRA factors in place so that the forget examples become unlikely and the retain examples
    stay.

    The same inputs, seed and hardware give the same bytes. Examples without a label are left out.

    Args:
        model: a model from `worker.unlearning.lora.attach_adapter`. Everything that requires a gradient is
            trained.
        pad_token_id: any token id; padding is masked.
        forget: sequences to unlearn. Windows of one long record count as sequences of their own.
        retain: sequences to keep.
        method: every knob.
        seed: order of the examples, not negative.
        on_step: called after every optimizer step. It may raise, to stop the run.

    Raises:
        UnlearningError: nothing to train or to train on, or a loss or gradient that is not finite.
    """
    trainer = Trainer(model, pad_token_id, _labelled(forget, "forget"), _labelled(retain, "retain"), method, seed)
    for step in range(method.steps):
        on_step(trainer.step(step))


def _labelled(examples: Sequence[Example], name: str) -> list[Example]:
    """Examples that can be learned from."""
    kept = [example for example in examples if example.labels]
    if not kept:
        raise UnlearningError(f"the {name} set has no sequence with a label")
    return kept


class FlatGradient:
    """One float32 vector that holds the gradient of all parameters; autograd adds into its slices."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        self.vector = torch.zeros(sum(sizes), dtype=torch.float32, device=parameters[0].device)
        parts: tuple[Tensor, ...] = self.vector.split(sizes)  # type: ignore[no-untyped-call]
        self._slices = [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]

    def attach(self) -> None:
        """Make the slices the parameters' gradients: backward adds here, an optimizer reads from here."""
        for parameter, part in zip(self._parameters, self._slices, strict=True):
            parameter.grad = part

    def collect(self) -> None:
        """Start a new sum at zero."""
        self.vector.zero_()
        self.attach()


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient, in the model's order.

    Raises:
        UnlearningError: there are none, or one is not float32.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UnlearningError("the model has no trainable parameter")
    if any(parameter.dtype != torch.float32 for parameter in parameters):
        raise UnlearningError("the trainable parameters are not float32")
    return parameters


@torch.no_grad()
def sequence_nll(model: nn.Module, examples: Sequence[Example], pad_token_id: int, batch_size: int) -> Tensor:
    """Summed NLL of the labels of each example, in nats: (examples,) float32 on the model's device."""
    device = next(model.parameters()).device
    result = torch.zeros(len(examples), device=device)
    for chosen in by_length(examples, batch_size):
        rows = [examples[index] for index in chosen]
        result[torch.tensor(chosen, device=device)] = _row_nll(model, rows, pad_token_id, device)
    return result


def _row_nll(model: nn.Module, rows: Sequence[Example], pad_token_id: int, device: torch.device) -> Tensor:
    """Summed NLL of each row, in nats: (rows,)."""
    batch = collate(rows, pad_token_id).to(device)
    return sum_by_row(token_nll(label_logits(model, batch), batch.labels), batch.rows, len(rows))


def learning_rate_at(step: int, method: BlurMethod) -> float:
    """Linear warm-up over ``warmup_steps``, then constant. ``step`` counts from 0."""
    return method.learning_rate * min(1.0, (step + 1) / max(1, method.warmup_steps))


class Trainer:
    """State of one run: the cached reference, two gradient vectors and AdamW's moments."""

    def __init__(
        self,
        model: nn.Module,
        pad_token_id: int,
        forget: Sequence[Example],
        retain: Sequence[Example],
        method: BlurMethod,
        seed: int,
    ) -> None:
        self.model = model.eval()
        self.pad_token_id = pad_token_id
        self.forget, self.retain = forget, retain
        self.method, self.seed = method, seed
        self.parameters = trainable_parameters(model)
        self.device = self.parameters[0].device
        self.forget_gradient = FlatGradient(self.parameters)
        self.retain_gradient = FlatGradient(self.parameters)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=method.learning_rate, weight_decay=method.weight_decay, fused=True
        )
        self.reference = sequence_nll(model, forget, pad_token_id, method.micro_batch_size)  # (forget,)

    def step(self, step: int) -> StepReport:
        """One optimizer step. The host waits for the device once, at the end."""
        method = self.method
        forget_loss = self.forget_pass(self._choose(step, len(self.forget), FORGET_STREAM))
        retain_loss = self.retain_pass(self._choose(step, len(self.retain), RETAIN_STREAM))
        # The gradients of the whole step enter one projection; u takes the place of the retain gradient.
        combination = combine_(
            self.forget_gradient.vector,
            self.retain_gradient.vector,
            gamma=method.gamma,
            max_norm=method.max_grad_norm,
        )
        rate = learning_rate_at(step, method)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.retain_gradient.attach()
        self.optimizer.step()
        return _report(step, method.steps, forget_loss, retain_loss, combination, rate)

    def _choose(self, step: int, n: int, stream: int) -> list[int]:
        """Indices of the step's examples."""
        size = self.method.forget_batch_size if stream == FORGET_STREAM else self.method.retain_batch_size
        return batch_indices(self.seed, step, n, size, stream=stream)

    def forget_pass(self, chosen: Sequence[int]) -> Tensor:
        """Fill the forget gradient; return the loss: mean NPO over the step's sequences."""
        self.forget_gradient.collect()
        total = torch.zeros((), device=self.device)
        examples = [self.forget[index] for index in chosen]
        for part in by_length(examples, self.method.micro_batch_size):
            nll = _row_nll(self.model, [examples[i] for i in part], self.pad_token_id, self.device)
            reference = self.reference[torch.tensor([chosen[i] for i in part], device=self.device)]
            # Divided by the sequences of the step, not of the micro-batch: 1 x 16 = 4 x 4.
            loss = npo(nll, reference, self.method.forget_loss.beta).sum() / len(chosen)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def retain_pass(self, chosen: Sequence[int]) -> Tensor:
        """Fill the retain gradient; return the loss: mean NLL over the step's label tokens."""
        self.retain_gradient.collect()
        total = torch.zeros((), device=self.device)
        examples = [self.retain[index] for index in chosen]
        tokens = sum(len(example.labels) for example in examples)
        for part in by_length(examples, self.method.micro_batch_size):
            nll = _row_nll(self.model, [examples[i] for i in part], self.pad_token_id, self.device)
            loss = nll.sum() / tokens  # tokens of the step: long and short micro-batches weigh what they hold
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total


def _report(
    step: int,
    total_steps: int,
    forget_loss: Tensor,
    retain_loss: Tensor,
    combination: Combination,
    rate: float,
) -> StepReport:
    """Bring the step's scalars to the host in one copy and check them."""
    scalars = (
        forget_loss,
        retain_loss,
        combination.lower_squared,
        combination.upper_squared,
        combination.product,
        combination.norm,
        combination.clip,
    )
    values: list[float] = torch.stack(scalars).tolist()
    if not all(math.isfinite(value) for value in values):
        raise UnlearningError(f"a loss or gradient is not finite in step {step + 1}")
    forget, retain, forget_squared, retain_squared, product, norm, clip = values
    forget_norm, retain_norm = math.sqrt(forget_squared), math.sqrt(retain_squared)
    length = forget_norm * retain_norm
    return StepReport(
        step=step + 1,
        total_steps=total_steps,
        forget_loss=forget,
        retain_loss=retain,
        forget_norm=forget_norm,
        retain_norm=retain_norm,
        cosine=product / length if length > 0 else 0.0,
        update_norm=norm,
        clipped=clip < 1.0,
        learning_rate=rate,
    )
