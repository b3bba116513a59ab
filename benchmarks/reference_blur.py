"""BLUR step by step as the paper's code takes it, made correct for LoRA: what the engine's speed-up is measured on.

Written from its description, not from its text. What costs time or memory there costs it here: two forward graphs
that are alive at once, logits of every position with an attention mask, the source model's forward pass in every
step, ``retain_graph`` in the first backward pass, a copy of every gradient, two numbers read back from the device
for every tensor, and a combination tensor by tensor. What was wrong there is right here: frozen parameters are left
alone, the NPO loss is a mean over sequences, and the combined update is what is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor, nn

from app.methods import BlurMethod
from benchmarks.engine_models import Case
from benchmarks.weighted_sum import computing_in, npo_beta, trained
from worker.unlearning.encoding import Example
from worker.unlearning.models import pad_id

IGNORED = -100  # a label that no loss counts, as transformers has it

Inputs = dict[str, Tensor]


class ReferenceBlur:
    """Forget-lower BLUR with an absolute gamma."""

    def __init__(self, case: Case, method: BlurMethod) -> None:
        self._case, self._method = case, method
        self._model = case.twin()
        # The frozen weights are shared: kinder than the paper's code, which holds a second model.
        self._source = case.twin().requires_grad_(False)
        self._precision = computing_in(case, self._model)
        computing_in(case, self._source)
        self._parameters = trained(self._model)
        self._pad = pad_id(case.tokenizer)
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=method.learning_rate, weight_decay=method.weight_decay
        )

    def step(self, forget: Sequence[int], retain: Sequence[int]) -> None:
        """One optimizer step on these records."""
        for parameter, part in zip(self._parameters, self._combined(forget, retain), strict=True):
            parameter.grad = part
        torch.nn.utils.clip_grad_norm_(self._parameters, self._method.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def update(self, forget: Sequence[int], retain: Sequence[int]) -> Tensor:
        """The update that a step would clip and take: (parameters,)."""
        return torch.cat([part.flatten() for part in self._combined(forget, retain)])

    def _combined(self, forget: Sequence[int], retain: Sequence[int]) -> list[Tensor]:
        """g_r + (gamma - <g_r, g_f> / <g_f, g_f>) g_f, tensor by tensor."""
        forget_loss = self._npo(self._inputs([self._case.forget[i] for i in forget]))
        retain_loss = self._nll(self._inputs([self._case.retain[i] for i in retain]))
        forget_loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        lower = self._taken_gradients()
        retain_loss.backward()  # type: ignore[no-untyped-call]
        upper = self._taken_gradients()
        product = squared = 0.0
        for g_f, g_r in zip(lower, upper, strict=True):
            product += (g_f * g_r).sum().item()
            squared += (g_f * g_f).sum().item()
        weight = self._method.gamma - product / squared if squared > 0 else 0.0
        return [g_r + weight * g_f for g_f, g_r in zip(lower, upper, strict=True)]

    def _taken_gradients(self) -> list[Tensor]:
        """Copies of the gradients, which are cleared."""
        taken = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        self._optimizer.zero_grad()
        return taken

    def _npo(self, inputs: Inputs) -> Tensor:
        beta = npo_beta(self._method)
        with torch.no_grad():
            source = self._sequence_nll(self._source, inputs)
        return -(2 / beta) * F.logsigmoid(beta * (self._sequence_nll(self._model, inputs) - source)).mean()

    def _nll(self, inputs: Inputs) -> Tensor:
        logits, labels = self._logits(self._model, inputs)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def _sequence_nll(self, model: nn.Module, inputs: Inputs) -> Tensor:
        logits, labels = self._logits(model, inputs)
        # Flat: over a dimension that is not the last one, torch's kernel is slower and rounds more.
        nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return nll.view_as(labels).sum(1)

    def _logits(self, model: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - called as PEFT allows
        """Logits of every position, (batch, tokens - 1, vocab) float32, and what they predict."""
        with self._precision:
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return logits.float()[:, :-1], inputs["labels"][:, 1:]

    def _inputs(self, examples: Sequence[Example]) -> Inputs:
        """Padded on the right, with a mask and with labels that are ignored where none is wanted."""
        width = max(len(example.input_ids) for example in examples)
        ids, mask, labels = [], [], []
        for example in examples:
            tokens, padding = list(example.input_ids), width - len(example.input_ids)
            ids.append(tokens + [self._pad] * padding)
            mask.append([1] * len(tokens) + [0] * padding)
            labels.append([IGNORED] * example.prompt_length + list(example.labels) + [IGNORED] * padding)
        columns = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.tensor(rows).to(self._case.device) for name, rows in columns.items()}
