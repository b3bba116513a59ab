"""How likely a model finds sequences, label by label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.unlearning.batches import by_length, collate
from worker.unlearning.encoding import Example
from worker.unlearning.models import Head, hidden_states
from worker.unlearning.scoring import Tokens, token_nll, token_values


@torch.no_grad()
def label_nll(model: nn.Module, examples: Sequence[Example], pad_token_id: int, batch_size: int) -> list[Tensor]:
    """NLL in nats of every label of each example: (labels,) float32 each, on the model's device."""
    head, device = Head(model), next(model.parameters()).device
    result: dict[int, Tensor] = {}
    for chosen in by_length(examples, batch_size):
        rows = [examples[index] for index in chosen]
        batch = collate(rows, pad_token_id).to(device)
        tokens = Tokens(batch.labels)
        nll = token_values(
            head, hidden_states(model, batch), tokens, lambda logits, labels, _: token_nll(logits, labels)
        )
        parts: tuple[Tensor, ...] = nll.split([len(example.labels) for example in rows])  # type: ignore[no-untyped-call]
        result.update(zip(chosen, parts, strict=True))
    return [result[index] for index in range(len(examples))]


@torch.no_grad()
def sequence_nll(model: nn.Module, examples: Sequence[Example], pad_token_id: int, batch_size: int) -> Tensor:
    """Summed NLL of the labels of each example, in nats: (examples,) float32 on the model's device."""
    return torch.stack([nll.sum() for nll in label_nll(model, examples, pad_token_id, batch_size)])
