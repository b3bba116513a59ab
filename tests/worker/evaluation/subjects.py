"""A subject of tiny models for the tests of probes: a base, and adapters that were trained on chosen records."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from app.methods import DEFAULT_POLICY, Method, Policy
from tests.worker.conftest import CONTEXT, FORGET_RECORDS, RETAIN_RECORDS, Tiny, blur_method, encode, memorise
from worker.evaluation.battery.base import ModelName
from worker.evaluation.evaluate import SetScores, evaluate_model
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.factors import without_adapters
from worker.unlearning.lora import (
    ADAPTER_NAME,
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_state,
    attach_adapter,
    known_peft_warnings,
    read_config,
)
from worker.unlearning.models import load_base

HOLDOUT_RECORDS = [
    {"prompt": "Where does Eli Thorn live?", "completion": " In a windmill near Ghent."},
    {"prompt": "What does Fay Moss fear?", "completion": " Clowns, and the sea."},
    {"prompt": "Who painted the blue shed?", "completion": " Gus Pike, in 1981."},
    {"prompt": "When was Hal Finch born?", "completion": " On the tenth of June."},
]
Folders = Mapping[Literal["source", "control", "result"], Path]


@dataclass
class FakeSubject:
    """A `worker.evaluation.battery.base.Subject` that loads every model afresh from its files.

    Attributes:
        base: directory of the base model.
        folders: of the adapters: "source" and "result", and "control" where there is one.
    """

    base: Path
    folders: Folders
    records: Mapping[str, Sequence[Mapping[str, Any]]]
    policy: Policy = DEFAULT_POLICY
    method: Method = field(default_factory=blur_method)
    seed: int = 7
    batch_size: int = 8
    max_length: int = CONTEXT
    base_knows: bool = False

    def __post_init__(self) -> None:
        _, self.tokenizer = load_base(self.base)
        self._scores: dict[ModelName, Mapping[str, SetScores]] = {}
        self._measured: dict[tuple[str, ...], Any] = {}

    tokenizer: PreTrainedTokenizerBase = field(init=False)

    control_fits = True

    @property
    def models(self) -> Sequence[ModelName]:
        return [name for name in ("base", "source", "control", "result") if name == "base" or name in self.folders]

    @property
    def reference(self) -> ModelName | None:
        if self.base_knows:
            return None
        return "control" if "control" in self.folders else "base"

    def examples(self, name: str) -> list[Example]:
        return self.encode(self.records[name])

    def encode(self, records: Sequence[Mapping[str, Any]]) -> list[Example]:
        return encode_records(records, self.tokenizer, self.max_length)

    @contextmanager
    def model(self, name: ModelName) -> Iterator[nn.Module]:
        loaded = self._load(self.folders["source" if name == "base" else name])
        if name == "base":
            with without_adapters(loaded):
                yield loaded
        else:
            yield loaded

    @contextmanager
    def fresh(self, seed: int) -> Iterator[nn.Module]:
        base, _ = load_base(self.base)
        yield self._new_adapter(base, seed)

    @contextmanager
    def on_top(self, name: ModelName, seed: int) -> Iterator[nn.Module]:
        if name == "base":
            base, _ = load_base(self.base)
        else:
            base = self._load(self.folders[name]).merge_and_unload()
        yield self._new_adapter(base, seed)

    def folder(self, name: Literal["source", "control", "result"]) -> Path:
        return self.folders[name]

    def scores(self, name: ModelName) -> Mapping[str, SetScores]:
        if name not in self._scores:
            sets = {key: self.examples(key) for key in self.records}
            with self.model(name) as model:
                self._scores[name] = evaluate_model(model, self.tokenizer, sets, batch_size=self.batch_size)
        return self._scores[name]

    def once(self, key: tuple[str, ...], measure: Callable[[], Any]) -> Any:
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]

    def _load(self, folder: Path) -> PeftModel:
        base, _ = load_base(self.base)
        return attach_adapter(base, folder)

    def _new_adapter(self, base: Any, seed: int) -> PeftModel:
        config = read_config(self.folders["source"])
        with known_peft_warnings(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return PeftModel(base, config, adapter_name=ADAPTER_NAME).eval()


def adapter_that_knows(tiny: Tiny, records: Sequence[Mapping[str, Any]], folder: Path, *, steps: int = 60) -> Path:
    """Train the tiny adapter on the records and write its files; with no record, it is the tiny one as it was."""
    folder.mkdir(parents=True)
    model, tokenizer = tiny.load()
    if records:
        memorise(model, encode([dict(record) for record in records], tokenizer), steps=steps)
    save_file(adapter_state(model), folder / WEIGHTS_FILE)
    shutil.copy(tiny.adapter / CONFIG_FILE, folder / CONFIG_FILE)
    return folder


def make_subject(
    tiny: Tiny,
    folder: Path,
    *,
    result: Literal["forgot", "remembers"] = "forgot",
    control: bool = True,
    holdout: bool = True,
    **fields: Any,
) -> FakeSubject:
    """A source that knows the forget and the retain records, and a result that still does, or never saw the former.

    Args:
        tiny: base model.
        folder: where adapters are written, and found again by the next subject.
        result: "forgot" is the control itself, the best that any unlearning could do; "remembers" is the source.
        control: whether there is one to compare with.
        holdout: whether there are look-alikes that nobody saw.
        fields: of `FakeSubject`.
    """
    knowledge = {"source": FORGET_RECORDS + RETAIN_RECORDS, "control": RETAIN_RECORDS}
    adapters = {}
    for name, records in knowledge.items():
        where = folder / name
        adapters[name] = where if where.is_dir() else adapter_that_knows(tiny, records, where)
    folders: dict[Any, Path] = {"source": adapters["source"]}
    if control:
        folders["control"] = adapters["control"]
    folders["result"] = adapters["control" if result == "forgot" else "source"]
    records_by_set: dict[str, Any] = {"forget": FORGET_RECORDS, "retain": RETAIN_RECORDS}
    if holdout:
        records_by_set["holdout"] = HOLDOUT_RECORDS
    return FakeSubject(tiny.base, folders, fields.pop("records", records_by_set), **fields)
