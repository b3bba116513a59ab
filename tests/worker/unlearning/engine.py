"""What tests of the engine share: steppers, the gradients that a step sees, and the same gradients by other means."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from app.methods import FORGET_LOSSES, RETAIN_LOSSES, Method
from tests.worker.conftest import CONTEXT, FORGET_RECORDS, RETAIN_RECORDS, VOCABULARY, Tiny, encode
from worker.unlearning.adamw import AdamW
from worker.unlearning.checkpoint import Checkpoint
from worker.unlearning.combiners import Combined
from worker.unlearning.encoding import Example
from worker.unlearning.levels import Item
from worker.unlearning.loop import StepReport, Watcher
from worker.unlearning.losses import Loss, Rows, StepSize, build_loss
from worker.unlearning.models import causal_model, decoder_layers
from worker.unlearning.probe import Probe
from worker.unlearning.refusals import refuse
from worker.unlearning.scoring import FULL_PULL
from worker.unlearning.step import Stepper

PAD = 2
SEED = 5
LONGEST = 36
#: Knobs that name every loss once, at its level; and what else changes a loss.
LOSSES: list[dict[str, Any]] = [
    *({"forget_loss": {"type": kind}} for kind in FORGET_LOSSES),
    *({"retain_loss": {"type": kind}} for kind in RETAIN_LOSSES),
    {"forget_loss": {"type": "npo", "per_token": True, "beta": 1.0}},
    *({"forget_loss": {"type": kind}, "anchor": "base"} for kind in ("npo", "idk_dpo", "rmu")),
]


def loss_name(knobs: dict[str, Any]) -> str:
    """For the names of parametrised tests."""
    return "-".join(str(part["type"] if isinstance(part, dict) else part) for part in knobs.values())


def sets(tokenizer: PreTrainedTokenizerBase) -> tuple[list[Example], list[Example]]:
    """The forget and the retain records as examples."""
    return encode(FORGET_RECORDS, tokenizer), encode(RETAIN_RECORDS, tokenizer)


@lru_cache(maxsize=16)
def source(tiny: Tiny) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model as it is stored, not to be changed, and its tokenizer."""
    return tiny.load()


def load(tiny: Tiny) -> tuple[Any, PreTrainedTokenizerBase]:
    """The same, to be changed: faster than from the files."""
    model, tokenizer = source(tiny)
    return deepcopy(model), tokenizer


@lru_cache(maxsize=64)
@torch.no_grad()
def sequences(tiny: Tiny, count: int, seed: int) -> list[Example]:
    """Sequences of many lengths, some longer than a sliding window, of which the model knows every other token.

    Half of the tokens are random and half are the model's first choice, so that no loss is saturated.
    """
    model, _ = source(tiny)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (count, LONGEST), generator=generator)
    lengths: list[int] = torch.randint(8, LONGEST + 1, (count,), generator=generator).tolist()
    starts: list[int] = torch.randint(1, 6, (count,), generator=generator).tolist()
    for at in range(1, LONGEST):
        known = torch.rand(count, generator=generator) < 0.5
        first = model(input_ids=ids[:, :at]).logits[:, -1].argmax(-1)
        ids[:, at] = torch.where(known, first, ids[:, at])
    return [
        Example(i, tuple(row[:length]), start, "", " an answer")
        for i, (row, length, start) in enumerate(zip(ids.tolist(), lengths, starts, strict=True))
    ]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to ``tolerance`` of the norm."""
    assert float(expected.norm()) > 1e-8
    difference = float((actual - expected).norm() / expected.norm())
    assert difference <= tolerance


class Killed(Exception):
    """The process is gone."""


class Notes(Watcher):
    """Writes down what a run does, wants checkpoints after some steps, and kills it after one."""

    def __init__(self, *, checkpoint_after: Collection[int] = (), kill_after: int | None = None) -> None:
        self._checkpoint_after, self._kill_after = checkpoint_after, kill_after
        self.steps: list[int] = []
        self.reports: list[StepReport] = []
        self.probes: list[Probe] = []
        self.checkpoints: list[Checkpoint] = []

    def on_step(self, step: int, total: int) -> None:
        self.steps.append(step)
        if step == self._kill_after:
            raise Killed

    def on_report(self, report: StepReport) -> None:
        self.reports.append(report)

    def on_probe(self, probe: Probe) -> None:
        self.probes.append(probe)

    def wants_checkpoint(self) -> bool:
        return self.steps[-1] in self._checkpoint_after

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)


@dataclass
class Seen:
    """Losses of a step and their gradients, (parameters,) each."""

    forget_loss: float
    retain_loss: float
    forget: Tensor
    retain: Tensor

    def assert_same(self, other: Seen, tolerance: float = 1e-5) -> None:
        """Both the same up to rounding."""
        assert abs(self.forget_loss - other.forget_loss) <= tolerance * abs(other.forget_loss)
        assert abs(self.retain_loss - other.retain_loss) <= tolerance * abs(other.retain_loss)
        assert_same(self.forget, other.forget, tolerance)
        assert_same(self.retain, other.retain, tolerance)


class Still:
    """A combiner that stands still and keeps what it was given."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.forget = self.retain = torch.zeros(0)

    def combine_(self, forget: Tensor, retain: Tensor, retain_loss: Tensor, optimizer: AdamW) -> Combined:
        self.forget, self.retain = forget.clone(), retain.clone()
        return Combined(retain.zero_(), None, torch.zeros_like(retain_loss))


def drift(parameters: Sequence[Tensor], size: float) -> None:
    """Move the factors away from the source, by the same vector every time."""
    numbers = sum(parameter.numel() for parameter in parameters)
    noise = size * torch.randn(numbers, generator=torch.Generator().manual_seed(1))
    parts = noise.split([parameter.numel() for parameter in parameters])  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.add_(part.view_as(parameter))


def make_stepper(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Example],
    retain: Sequence[Example],
    method: Method,
    *,
    away: float = 0.05,
) -> Stepper:
    """A stepper whose factors have left the source, so that losses that compare with it have something to do."""
    made = Stepper(model, tokenizer, forget, retain, method, SEED)
    drift([made.factors.vector], away)
    return made


def stepper(tiny: Tiny, method: Method, *, count: int = 8, away: float = 0.05) -> Stepper:
    """The same, on random sequences."""
    return make_stepper(*load(tiny), sequences(tiny, count, 0), sequences(tiny, count, 1), method, away=away)


def see(made: Stepper, forget: Sequence[int] | None = None, retain: Sequence[int] | None = None) -> Seen:
    """What a step on these items sees, all of them by default. The factors stay."""
    still = Still()
    made.combiner = still
    with made.computing():
        scalars = made.step(
            forget or range(len(made.forget.items)), retain or range(len(made.retain.items)), learning_rate=0.0
        )
    return Seen(float(scalars[0]), float(scalars[1]), still.forget, still.retain)


def see_plainly(tiny: Tiny, method: Method, *, count: int = 8, away: float = 0.05) -> Seen:
    """The same from one padded batch, an attention mask, all logits and plain automatic differentiation."""
    model, tokenizer = load(tiny)
    forget_loss, retain_loss = build_loss(method.forget_loss), build_loss(method.retain_loss)
    chosen = forget_loss.place(len(decoder_layers(model)))
    if forget_loss.needs_layer:
        for layer in decoder_layers(model)[chosen:]:
            layer.requires_grad_(False)
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    drift(factors, away)
    totals, gradients = [], []
    for loss, examples in ((forget_loss, sequences(tiny, count, 0)), (retain_loss, sequences(tiny, count, 1))):
        items: list[Item] = [(example,) for example in examples]
        if loss.needs_refusals:
            answers = refuse(examples, tokenizer, seed=SEED, max_length=CONTEXT)
            items = list(zip(examples, answers, strict=True))
        anchor = method.anchor == "base" and loss is forget_loss
        total = _plain_total(loss, items, model, source(tiny)[0], chosen, anchor=anchor)
        parts = torch.autograd.grad(total, factors, retain_graph=True, allow_unused=True)
        totals.append(float(total.detach()))
        gradients.append(flat([torch.zeros_like(f) if p is None else p for f, p in zip(factors, parts, strict=True)]))
    return Seen(totals[0], totals[1], gradients[0], gradients[1])


def _plain_total(loss: Loss, items: Sequence[Item], model: Any, before: Any, layer: int, *, anchor: bool) -> Tensor:
    """A loss on all sequences at once."""
    examples = [example for item in items for example in item]
    lengths = torch.tensor([len(example.labels) for example in examples])
    labels = torch.tensor([label for example in examples for label in example.labels])
    logits, states = plain_outputs(model, examples, layer)
    with torch.no_grad():
        source_logits, source_states = plain_outputs(before, examples, layer)
        with before.disable_adapter():
            base_logits, _ = plain_outputs(before, examples, layer)
    if loss.needs_layer:
        loss.aim(source_states, SEED)
        values = loss.token_values(states, labels, None)
    else:
        values = loss.token_values(logits, labels, source_logits if loss.needs_source_logits else None)
    if anchor:  # only the first sequence of an item is to be forgotten
        answer = torch.tensor([at == 0 for item in items for at, e in enumerate(item) for _ in e.labels])
        distance = (nll_of(base_logits, labels) - nll_of(logits, labels)).detach()
        assert 0.1 < float((answer & (distance <= 0)).float().mean()) < 0.9
        pull = (distance / FULL_PULL).clamp(-1.0 if loss.reversible else 0.0, 1.0)
        values = torch.where(answer, values.detach() + pull * (values - values.detach()), values)
    source_nll = sums(nll_of(source_logits, labels), examples)
    known = Rows(torch.arange(len(examples)).repeat_interleave(lengths), lengths.float(), source_nll)
    return loss.total(values, known, StepSize(len(items), int(lengths.sum())))


def nll_of(logits: Tensor, labels: Tensor) -> Tensor:
    """(labels, vocab), (labels,) -> (labels,)."""
    return logits.log_softmax(-1).gather(1, labels[:, None])[:, 0].neg()


def plain_outputs(model: nn.Module, examples: Sequence[Example], layer: int = 1) -> tuple[Tensor, Tensor]:
    """Logits and states of a layer at the positions that predict labels: (labels, vocab), (labels, hidden)."""
    width = max(len(example.input_ids) for example in examples)
    ids = torch.tensor([[*e.input_ids, *[PAD] * (width - len(e.input_ids))] for e in examples])
    mask = torch.tensor([[1] * len(e.input_ids) + [0] * (width - len(e.input_ids)) for e in examples])
    output = causal_model(model)(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    where = [(row, at - 1) for row, e in enumerate(examples) for at in range(e.prompt_length, len(e.input_ids))]
    rows, positions = (list(column) for column in zip(*where, strict=True))
    return output.logits[rows, positions], output.hidden_states[layer][rows, positions]


def plain_nll(model: nn.Module, examples: Sequence[Example]) -> Tensor:
    """Summed NLL of the labels of each example: (examples,)."""
    logits, _ = plain_outputs(model, examples)
    labels = torch.tensor([label for example in examples for label in example.labels])
    return sums(nll_of(logits, labels), examples)


def sums(values: Tensor, examples: Sequence[Example]) -> Tensor:
    """Of the labels of each example: (labels,) -> (examples,)."""
    parts: tuple[Tensor, ...] = values.split([len(example.labels) for example in examples])  # type: ignore[no-untyped-call]
    return torch.stack([part.sum() for part in parts])
