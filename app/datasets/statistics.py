"""What is in a dataset, in tokens of one base model: numbers, never text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated

from pydantic import BaseModel, Field

from app.datasets.tables import Dataset
from app.datasets.tokens import Counted, TokenCounter, context_length, counter_of
from app.datasets.vault import Vault

WHOLE_BYTES = 1024**2  # larger sets are sampled: counting takes about a second for so much
_SPOTS = 64
_SPOT_BYTES = 16 * 1024
_MOST_BYTES = 4 * WHOLE_BYTES
_KEPT = 512
_TOGETHER = 64  # records that are encoded at once: other threads run meanwhile


class TokenStatistics(BaseModel):
    """Tokens of the records, as training reads them."""

    counted: Annotated[int, Field(description="Records that the figures are from: all, or an even sample.")]
    sampled: Annotated[bool, Field(description="Whether `total`, `longer` and `sequences` are extrapolated.")]
    min: int
    median: float
    max: int
    total: int
    max_length: Annotated[int, Field(description="Tokens per training sequence: the method's, or the context.")]
    longer: Annotated[int, Field(description="Records with more tokens than that.")]
    sequences: Annotated[int, Field(description="Training sequences that the records become.")]
    unusable: Annotated[int, Field(description="Conversations that the tokenizer's chat template does not render.")]


class SetStatistics(BaseModel):
    """What a set holds."""

    dataset: Annotated[str | None, Field(description="Null for records that came inside a request and are not kept.")]
    records: int
    duplicates: int | None
    bytes: int
    tokens: Annotated[TokenStatistics | None, Field(description="Null where tokenizer.json cannot be read here.")]


_cache: dict[tuple[str, str, int], TokenStatistics] = {}


def token_statistics(vault: Vault, dataset: Dataset, directory: Path, max_length: int) -> TokenStatistics | None:
    """Count the tokens of a dataset; a dataset never changes, so that it is counted once.

    Args:
        max_length: tokens per sequence that the method asks for; the model's context bounds it.
    """
    context = context_length(directory)
    longest = min(max_length, context) if context else max_length
    key = (dataset.id, str(directory), longest)
    if key not in _cache:
        counter = counter_of(directory)
        found = None if counter is None else _count(vault, dataset, counter, longest)
        if found is None:
            return None
        if len(_cache) >= _KEPT:
            _cache.pop(next(iter(_cache)), None)
        _cache[key] = found
    return _cache[key]


def _count(vault: Vault, dataset: Dataset, counter: TokenCounter, longest: int) -> TokenStatistics | None:
    sampled = dataset.size > WHOLE_BYTES
    counted: list[Counted] = []
    seen = unusable = 0
    lines = iter(_sample(vault, dataset) if sampled else vault.lines(dataset))
    while records := [json.loads(line) for line in islice(lines, _TOGETHER)]:
        usable = [each for each in counter.count_all(records) if each is not None]
        counted += usable
        seen += len(records)
        unusable += len(records) - len(usable)
    if not seen:
        return None
    lengths = [each.tokens for each in counted] or [0]
    scale = dataset.records / seen
    return TokenStatistics(
        counted=seen,
        sampled=sampled,
        min=min(lengths),
        median=median(lengths),
        max=max(lengths),
        total=round(sum(lengths) * scale),
        max_length=longest,
        longer=round(sum(length > longest for length in lengths) * scale),
        sequences=round(sum(each.sequences(longest) for each in counted) * scale),
        unusable=round(unusable * scale),
    )


def _sample(vault: Vault, dataset: Dataset) -> Iterator[bytes]:
    """Some lines from places all over the dataset, the same ones each time, without reading all of it."""
    taken = 0
    places = random.Random(dataset.sha256).sample(range(1000), _SPOTS)  # noqa: S311 - no secret
    for place in places:
        here = 0
        for line in vault.lines_from(dataset, place / 1000):
            yield line
            here += len(line)
            if here >= _SPOT_BYTES:
                break
        taken += here
        if taken >= _MOST_BYTES:
            return
