"""What every probe of the battery is: a name, a cost, and a way to look at the models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from app.methods import Method, Policy, ProbeName
from worker.evaluation.checks import Check
from worker.evaluation.evaluate import SetScores
from worker.unlearning.encoding import Example

ModelName = Literal["base", "source", "control", "result"]
"""The base model alone; the adapter before and after; an adapter that never saw the forget set."""
_Measured = TypeVar("_Measured")
Cost = Literal["seconds", "minutes", "long"]
"""On a GPU and a forget set of hundreds: seconds; about as long as the training; several times as long."""


class NotApplicable(Exception):
    """What the probe needs was not given. The message says what; it is reported among what was not tested."""


@dataclass(frozen=True)
class Measure:
    """One number.

    Attributes:
        name: what it is, such as "forget_probability".
        model: whose.
        value: finite.
        records: sample size.
        low, high: 95 % interval, where there is one.
        detail: which variant it belongs to, such as a form of the question or a learning rate.
    """

    name: str
    model: ModelName
    value: float
    records: int
    low: float | None = None
    high: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Found:
    """What a probe found.

    Attributes:
        measures: every number, in the order in which they are to be read.
        checks: those that the policy has a limit for.
        note: what a reader must know to read the numbers; empty where they speak for themselves.
    """

    measures: Sequence[Measure]
    checks: Sequence[Check] = ()
    note: str = ""


class Subject(Protocol):
    """The models and the records that a probe may look at. One model lies in memory at a time.

    Attributes:
        tokenizer: of the base model.
        policy: limits.
        method: how the result was trained; its learning rate and batch sizes stand for "training as usual".
        seed: of the run; everything that is drawn is drawn from it.
        batch_size: sequences per forward pass.
        max_length: tokens per sequence.
        models: those that there are; "base", "source" and "result" always.
        base_knows: the base model itself knows the records: what it shows allows nothing, and nobody stands for
            "never saw the records".
        records: raw records by the name of their set: "forget" and "retain" always, "holdout" where it was given,
            and one "history/<job id>" per earlier forget set that is still held. Retain and holdout may be samples.
    """

    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    method: Method
    seed: int
    batch_size: int
    max_length: int
    base_knows: bool

    @property
    def models(self) -> Sequence[ModelName]:
        """Names of the models, the base first."""
        ...

    @property
    def records(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Raw records by set."""
        ...

    @property
    def reference(self) -> ModelName | None:
        """Who stands for "never saw the records": the control where there is one, else the base model alone.

        None where that knows them.
        """
        ...

    def examples(self, name: str) -> list[Example]:
        """A set's sequences."""
        ...

    def encode(self, records: Sequence[Mapping[str, Any]]) -> list[Example]:
        """Other records, encoded in the same way."""
        ...

    def model(self, name: ModelName) -> AbstractContextManager[nn.Module]:
        """A model, in evaluation mode, with the adapter's factors in float32 and trainable.

        What a probe does to the factors is gone when the block ends. Blocks do not nest.
        """
        ...

    def fresh(self, seed: int) -> AbstractContextManager[nn.Module]:
        """The base model with a new adapter of the source's rank and modules, as before its first training step."""
        ...

    def on_top(self, name: ModelName, seed: int) -> AbstractContextManager[nn.Module]:
        """A model whose adapter is frozen, with a new trainable adapter on top of it."""
        ...

    def folder(self, name: Literal["source", "control", "result"]) -> Path:
        """Where that adapter's adapter_config.json and adapter_model.safetensors lie."""
        ...

    def scores(self, name: ModelName) -> Mapping[str, SetScores]:
        """Recall of every set under a model; measured once."""
        ...

    def once(self, key: tuple[str, ...], measure: Callable[[], _Measured]) -> _Measured:
        """What was measured under this key, which begins with the probe's name; measured now if it was not yet."""
        ...


class Probe(Protocol):
    """A plug-in of the battery; `worker.evaluation.battery.PROBES` lists them."""

    name: ClassVar[ProbeName]
    cost: ClassVar[Cost]
    title: ClassVar[str]
    """What it asks, in a reader's words."""

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Measure a model that is there before the result is, in a way that `run` need not do it again.

        Raises as `run` does.
        """
        ...

    def run(self, subject: Subject) -> Found:
        """Look. Raises NotApplicable."""
        ...


def shown_models(subject: Subject) -> list[ModelName]:
    """Those that a probe shows which takes its time: a control only where it stands for never having seen."""
    return [model for model in subject.models if model in ("base", "source", "result", subject.reference)]


def allowed(subject: Subject, shown: float | None) -> float | None:
    """What the base model alone shows, which the result may show too; None where it knows the records."""
    return None if subject.base_knows else shown


def by_record(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """The windows of one record after the other."""
    group: list[Example] = []
    for example in examples:
        if group and group[-1].record != example.record:
            yield group
            group = []
        group.append(example)
    if group:
        yield group
