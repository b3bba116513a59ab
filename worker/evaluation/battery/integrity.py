"""Integrity: what the result's files hold, and whether the source is still inside."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from app.methods import ProbeName
from worker.evaluation.battery.base import Cost, Found, Measure, ModelName, Subject
from worker.evaluation.checks import Value, at_most
from worker.unlearning.lora import CONFIG_FILE, WEIGHTS_FILE

# Packaging writes these anew. They say which base model the adapter is for, not what it does.
RENAMED = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")
WHOLE = "all modules"
MOST_CHANGED = 5  # modules that are reported one by one
NOTE = f"of single modules, the {MOST_CHANGED} whose product turned furthest from the source's are shown"
SAME = 1e-6  # relative distance of two products that differ by rounding in float32 alone
# Factors are hidden when a slice of them gives the source's product back but for this share of its norm, while the
# rest of them has at least that share of the slice's norm: any rest where the rank has grown. Unlearning moves all
# factors at once, so that an honest result is near the source as a whole, never by a part of it against the others.
UNEXPLAINED, COUNTERWEIGHT = 0.01, 0.1


_LORA_A = re.compile(r"\.lora_(?:embedding_)?A\b")


class Unreadable(Exception):
    """Files that are no adapter. The message says why."""


@dataclass(frozen=True)
class Files:
    """An adapter as it lies on disk: settings, and tensors by their names."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class Products:
    """A module's Delta W = scaling B A, in the source and in the result.

    Attributes:
        module: its name.
        before, after: squared norms of source and result.
        both: inner product of source and result.
        hidden: first and last of the result's rank-one parts that give the source back by themselves, or None.
    """

    module: str
    before: float
    after: float
    both: float
    hidden: tuple[int, int] | None = None

    @property
    def distance(self) -> float:
        """Norm of the difference."""
        return math.sqrt(max(0.0, self.before - 2 * self.both + self.after))

    @property
    def cosine(self) -> float:
        """Of the angle between both; 0 where one of them is zero."""
        length = math.sqrt(self.before) * math.sqrt(self.after)
        return self.both / length if length else 0.0


class Integrity:
    """Source and result are compared as files, and as the products that they stand for."""

    name: ClassVar[ProbeName] = "integrity"
    cost: ClassVar[Cost] = "seconds"
    title: ClassVar[str] = "Is the file what it should be, with nothing of the source left in it?"

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Nothing: files are compared, and one of them is the result's."""

    def run(self, subject: Subject) -> Found:
        """Look."""
        source = _read(subject.folder("source"))
        try:
            result = _read(subject.folder("result"))
        except Unreadable as problem:
            return _found([str(problem)], [], len(source.state))
        products = [_products(key, source, result) for key in _comparable(source.state, result.state)]
        violations = [*_differences(source, result), *_of_products(products)]
        return _found(violations, products, len(source.state))


def _read(folder: Path) -> Files:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise Unreadable(f"the files cannot be read ({type(error).__name__})") from error
    if not isinstance(config, dict):
        raise Unreadable(f"{CONFIG_FILE} is no JSON object")
    return Files(config, state)


def _differences(source: Files, result: Files) -> Iterator[str]:
    """What the files differ in, one line per kind."""
    before, after = source.state, result.state
    both = [key for key in before if key in after]
    kinds = {
        "missing": [key for key in before if key not in after],
        "added": [key for key in after if key not in before],
        "of another shape": [key for key in both if before[key].shape != after[key].shape],
        "of another type": [key for key in both if before[key].dtype != after[key].dtype],
        "not finite": [key for key in after if not bool(torch.isfinite(after[key]).all())],
    }
    for kind, keys in kinds.items():
        if keys:
            yield f"{len(keys)} tensors are {kind}, such as {keys[0]}"
    for name in sorted((source.config.keys() | result.config.keys()) - set(RENAMED)):
        if _plain(source.config.get(name)) != _plain(result.config.get(name)):
            yield f"the setting {name} is another"


def _plain(value: Any) -> object:  # noqa: ANN401 - anything that JSON holds
    """Lists of names are sets: PEFT writes them in any order."""
    return sorted(value, key=str) if isinstance(value, list) else value


def _of_products(products: Sequence[Products]) -> Iterator[str]:
    """What the adapters do, rather than how it is written down."""
    whole = _whole(products)
    if products and whole.distance <= SAME * math.sqrt(whole.before):
        yield "the result does what the source does: its factors have the same products"
    elif products and math.sqrt(whole.after) <= SAME * math.sqrt(whole.before):
        yield "the factors are zero: nothing is left of the adapter"
    if hidden := [p for p in products if p.hidden]:
        first, last = hidden[0].hidden or (0, 0)
        yield (
            f"{len(hidden)} modules still hold the source's factors beside others that make up for them, such as "
            f"{hidden[0].module} in ranks {first} to {last}"
        )


def _comparable(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of the A factors of modules whose products can be compared, whatever their ranks."""
    return [
        key
        for key in before
        if _LORA_A.search(key)
        and all(
            name in state and state[name].dim() == 2 and bool(torch.isfinite(state[name]).all())
            for name in (key, _other(key))
            for state in (before, after)
        )
        and before[key].shape[1] == after[key].shape[1]
        and before[_other(key)].shape[0] == after[_other(key)].shape[0]
    ]


def _other(key: str) -> str:
    """The name of the B factor that belongs to an A factor."""
    return _LORA_A.sub(lambda found: found.group().replace("A", "B"), key)


def _products(key: str, source: Files, result: Files) -> Products:
    """Compare B A of both, by products of the factors with each other: nothing as large as a weight is formed.

    With parts P_i = b_i a_i of the result and Q_j of the source, <P_i, Q_j> = (b_i . b_j) (a_i . a_j).
    """
    module = _LORA_A.split(key)[0].removeprefix("base_model.model.")
    old, new = (_factors(files, key, module) for files in (source, result))
    before, after = _inner(old, old), _inner(new, new)  # (r, r), (r', r')
    mixed = _inner(new, old)  # (r', r)
    return Products(
        module, float(before.sum()), float(after.sum()), float(mixed.sum()), _hidden(before, after, mixed.sum(1))
    )


def _factors(files: Files, key: str, module: str) -> tuple[Tensor, Tensor]:
    """A as (rank, in), and B with the scaling as (rank, out), in float64."""
    a, b = files.state[key].double(), files.state[_other(key)].double()
    return a, b.T * _scaling(files.config, module, a.shape[0])


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """LoRA's alpha / rank, or alpha / sqrt(rank) (rsLoRA), where a pattern may give a module its own alpha."""
    patterns = config.get("alpha_pattern") or {}
    own = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    alpha = float(next(own, config.get("lora_alpha") or rank))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _inner(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    """Inner products of the rank-one parts of two adapters: (r, r')."""
    return (left[0] @ right[0].T) * (left[1] @ right[1].T)


def _hidden(before: Tensor, after: Tensor, mixed: Tensor) -> tuple[int, int] | None:
    """The slice of neighbouring ranks whose product is the source's up to a factor, beside a rest that changes it.

    This is what a concatenation of old and new factors looks like: PEFT's "cat" keeps the old ones as they were.

    Args:
        before: (r, r) inner products of the source's parts.
        after: (r', r') of the result's.
        mixed: (r',) of the result's parts with the source's whole product.

    Returns:
        First and last rank, or None.
    """
    rank = after.shape[0]
    to = F.pad(after.cumsum(0).cumsum(1), (1, 0, 1, 0))  # sums over [0, i) x [0, j)
    corner = to.diagonal()
    part = corner[None, :] - 2 * to + corner[:, None]  # [first, end] -> ||sum of P_i||^2 over the slice
    with_all = F.pad(after.sum(1).cumsum(0), (1, 0))
    rest = to[-1, -1] - 2 * (with_all[None, :] - with_all[:, None]) + part  # the same over all others
    with_source = F.pad(mixed.cumsum(0), (1, 0))
    shared = with_source[None, :] - with_source[:, None]  # <slice, source>
    square = before.sum()
    index = torch.arange(rank + 1)
    proper = (index[None, :] > index[:, None]) & (part > 0) & (square > 0)
    unexplained = 1 - shared**2 / (part * square).clamp_min(torch.finfo(torch.float64).tiny)  # sine squared
    least = SAME if rank > before.shape[0] else COUNTERWEIGHT
    found = proper & (unexplained <= UNEXPLAINED**2) & (rest >= least**2 * part)
    if not bool(found.any()):
        return None
    first, end = divmod(int(unexplained.masked_fill(~found, math.inf).argmin()), rank + 1)
    return first, end - 1


def _found(violations: Sequence[str], products: Sequence[Products], tensors: int) -> Found:
    words = f"departures from what the file should be: {'; '.join(violations) or 'none'}"
    check = at_most("integrity", "integrity_violations", words, Value(float(len(violations)), tensors), 0.0)
    return Found(list(_measures(violations, products, tensors)), [check], NOTE if products else "")


def _measures(violations: Sequence[str], products: Sequence[Products], tensors: int) -> Iterator[Measure]:
    yield Measure("integrity_violations", "result", float(len(violations)), tensors)
    if not products:
        return
    for found in (_whole(products), *sorted(products, key=lambda p: p.cosine)[:MOST_CHANGED]):
        numbers: dict[tuple[str, ModelName], float] = {
            ("delta_norm", "source"): math.sqrt(found.before),
            ("delta_norm", "result"): math.sqrt(found.after),
            ("delta_cosine", "result"): found.cosine,
        }
        for (name, model), value in numbers.items():
            yield Measure(name, model, value, len(products) if found.module == WHOLE else 1, detail=found.module)


def _whole(products: Sequence[Products]) -> Products:
    """All modules as one."""
    return Products(
        WHOLE,
        math.fsum(p.before for p in products),
        math.fsum(p.after for p in products),
        math.fsum(p.both for p in products),
    )
