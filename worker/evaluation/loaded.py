"""The models that probes look at: one base model in memory, and one adapter on it at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.methods import Method, Policy
from worker.evaluation.battery.base import ModelName
from worker.evaluation.battery.recall import forget_checks
from worker.evaluation.evaluate import SetScores, evaluate_model
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.lora import (
    ADAPTER_NAME,
    AdapterError,
    attach_adapter,
    detach_adapter,
    known_peft_warnings,
    read_config,
)
from worker.unlearning.models import context_length

ON_TOP = "on_top"
MOST_EXCESS_OF_A_CONTROL = 1.0  # nats per token beyond the base model alone
# Tokens per sequence, unless the method has more. A method may train in shorter windows; what is asked here is
# whether the model knows the records as they are.
LEAST_LENGTH = 512
_Measured = TypeVar("_Measured")
MODELS: tuple[ModelName, ...] = ("base", "source", "control", "result")


class LoadedSubject:
    """A `worker.evaluation.battery.base.Subject` over files.

    Args:
        base: frozen, from `load_base`; held by this object from now on.
        tokenizer: of the base model.
        folders: adapters by name: "source" and "result", and "control" where there is one. The result may be written
            later, before it is asked for.
        records: by the name of their set, already sampled.
        policy, method, seed: of the run.
        batch_size: sequences per forward pass.
        base_knows: the base model itself knows the records.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folders: Mapping[str, Path],
        records: Mapping[str, Sequence[Mapping[str, Any]]],
        *,
        policy: Policy,
        method: Method,
        seed: int,
        batch_size: int = 16,
        base_knows: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.records: Mapping[str, Sequence[Mapping[str, Any]]] = records
        self.policy, self.method, self.seed, self.batch_size = policy, method, seed, batch_size
        self.base_knows = base_knows
        self.models: tuple[ModelName, ...] = tuple(name for name in MODELS if name == "base" or name in folders)
        context = context_length(base.config)
        length = max(method.max_length, LEAST_LENGTH)
        self.max_length = min(length, context) if context else length
        self._base, self._folders = base, folders
        self._attached: tuple[str, PeftModel, dict[str, Tensor]] | None = None
        self._lent = False
        self._scores: dict[ModelName, dict[str, SetScores]] = {}
        self._examples: dict[str, list[Example]] = {}
        self._measured: dict[tuple[str, ...], Any] = {}

    @property
    def reference(self) -> ModelName | None:
        """Who stands for "never saw the records": the control, if there is one that looks like that."""
        if self.base_knows:
            return None
        return "control" if "control" in self.models and self.control_fits else "base"

    @property
    def control_fits(self) -> bool:
        """Whether the control can be what it was named for. One that cannot is shown, and compared with nothing.

        It must not show the forget set more than the base alone may, not find it so unlikely that somebody has
        unlearned it, and know what was to be kept.
        """
        if "control" not in self.models:
            return True
        control, base, source = (self.scores(name) for name in ("control", "base", "source"))
        policy = self.policy.model_copy(update={"max_forget_nll_excess": MOST_EXCESS_OF_A_CONTROL})
        checks = forget_checks(policy, control["forget"], base["forget"], base["forget"])
        kept = control["retain"].probability >= policy.min_retain_probability_ratio * source["retain"].probability
        return kept and all(check.passed for check in checks)

    def examples(self, name: str) -> list[Example]:
        """A set's sequences; encoded once."""
        if name not in self._examples:
            self._examples[name] = self.encode(self.records[name])
        return self._examples[name]

    def encode(self, records: Sequence[Mapping[str, Any]]) -> list[Example]:
        """Other records, encoded in the same way."""
        return encode_records(records, self.tokenizer, self.max_length)

    def folder(self, name: Literal["source", "control", "result"]) -> Path:
        """Where that adapter's files lie."""
        return self._folders[name]

    def scores(self, name: ModelName) -> Mapping[str, SetScores]:
        """Recall of every set under a model; measured once. Raises AdapterError where a score is not finite."""
        if name not in self._scores:
            sets = {of: self.examples(of) for of in self.records}
            with self.model(name) as model:
                found = evaluate_model(model, self.tokenizer, sets, batch_size=self.batch_size)
            if not all(math.isfinite(score.nll) for scores in found.values() for score in scores.per_record):
                raise AdapterError(f"under the {name} model a record has no finite likelihood")
            self._scores[name] = found
        return self._scores[name]

    def once(self, key: tuple[str, ...], measure: Callable[[], _Measured]) -> _Measured:
        """What was measured under this key; measured now if it was not yet."""
        if key not in self._measured:
            self._measured[key] = measure()
        found: _Measured = self._measured[key]
        return found

    @contextmanager
    def model(self, name: ModelName) -> Iterator[nn.Module]:
        """A model. What a probe does to its factors is gone when the block ends."""
        with self._lending():
            if name == "base":
                self._detach()
                yield self._base
            else:
                yield self._adapter(name)

    @contextmanager
    def fresh(self, seed: int) -> Iterator[nn.Module]:
        """The base model with a new adapter of the source's rank and modules."""
        with self._lending():
            self._detach()
            with known_peft_warnings(), _drawn_from(seed):
                model = PeftModel(self._base, self._blank(), adapter_name=ADAPTER_NAME)
            try:
                yield _ready(model, ADAPTER_NAME)
            finally:
                detach_adapter(model)

    @contextmanager
    def on_top(self, name: ModelName, seed: int) -> Iterator[nn.Module]:
        """A model whose adapter is frozen, with a new trainable adapter on top of it."""
        if name == "base":
            with self.fresh(seed) as model:
                yield model
            return
        with self._lending():
            self._detach()
            stacked = attach_adapter(self._base, self._folders[name])
            with known_peft_warnings(), _drawn_from(seed):
                stacked.add_adapter(ON_TOP, self._blank())
            stacked.base_model.set_adapter([ADAPTER_NAME, ON_TOP])
            try:
                yield _ready(stacked, ON_TOP)
            finally:
                detach_adapter(stacked)

    @contextmanager
    def _lending(self) -> Iterator[None]:
        if self._lent:
            raise RuntimeError("one model at a time: blocks of a subject do not nest")
        self._lent = True
        try:
            yield
        finally:
            self._lent = False

    def _adapter(self, name: str) -> PeftModel:
        """The base model with that adapter on it: the one that is on it already, if nobody has changed it."""
        if self._attached is not None:
            held, model, factors = self._attached
            if held == name and _unchanged(model, factors):
                return model.eval()
        self._detach()
        model = attach_adapter(self._base, self._folders[name])
        self._attached = name, model, {key: factor.detach().clone() for key, factor in _factors(model).items()}
        return model

    def _detach(self) -> None:
        """Take off whatever adapter is on the base model."""
        if self._attached is not None:
            detach_adapter(self._attached[1])
            self._attached = None

    def _blank(self) -> Any:  # noqa: ANN401 - peft's LoraConfig
        """The source's configuration, for an adapter whose B factors start at zero."""
        config = deepcopy(_config(self._folders["source"]))
        config.init_lora_weights = True
        config.inference_mode = False
        return config


@lru_cache(maxsize=4)
def _config(folder: Path) -> Any:  # noqa: ANN401 - peft's LoraConfig
    return read_config(folder)


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _factors(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}


def _unchanged(model: nn.Module, before: Mapping[str, Tensor]) -> bool:
    now = _factors(model)
    return now.keys() == before.keys() and all(
        now[name].requires_grad and torch.equal(now[name], before[name]) for name in before
    )


def _ready(model: PeftModel, trained: str) -> PeftModel:
    """Only the factors of one adapter are trained, in float32."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name and f".{trained}." in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return model.eval()
